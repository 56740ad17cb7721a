"""All that is measured of a machine, stage by stage: ours, the peers' ways and the floor, in one run on the same sites."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from cellsignal.bench import baselines, limits, ours, timeline
from cellsignal.bench.sample import CHANNELS, MOST, Sample, reduced_sample, take_sample
from cellsignal.bench.timer import CPU, Candidate, Piece, Row, measure, throughput
from cellsignal.errors import InputError
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import read_batches
from cellsignal.machine import cores

SMALL = 64  # px that a CPU's network sees
LEAST = 400  # batches that a data path holds out for
BAGGED = (32, 80, 128)  # of the 97 batch sizes, those whose passes are measured
PLATES = 4  # how often the sample's sites stand in the experiment that is predicted


@dataclass
class Benchmark:
    """A machine with some sites and a network, to be measured; `rows` and `lanes` grow with each stage.

    `folder` is scratch and is filled. `data`: a data set, None for drawn sites of `image_size` px. `network_size`: px that the
    network sees; 0 means `image_size` on a GPU and 64 on a CPU. `workers`: readers of our data path, 0 means one a core; the peers
    have two. `floor_bytes`: of the buffers that are copied. Raises InputError for numbers that make no measurement.
    """

    folder: Path
    data: Path | None = None
    sites: int = MOST
    image_size: int = 512
    network_size: int = 0
    backbone: str = "densenet121"
    batch_size: int = 8
    rounds: int = 5
    seconds: float = 1.0
    workers: int = 0
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    floor_bytes: int = limits.MEMORY_BYTES
    rows: list[Row] = field(default_factory=list)
    lanes: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for knob, least in (("rounds", 1), ("seconds", 0), ("workers", 0), ("batch_size", 2), ("network_size", 0), ("image_size", 16)):
            if getattr(self, knob) < least:
                raise InputError(f"{knob} is {getattr(self, knob)}", where=knob, cure=f"use {least} or more")
        self.chosen = devices.pick_device(self.device)
        self.bits = devices.resolve_precision(self.chosen, self.precision)
        self.workers = self.workers or cores()

    @cached_property
    def sample(self) -> Sample:
        """The sites as they are stored."""
        return take_sample(self.folder, data=self.data, count=self.sites, image_size=self.image_size, seed=self.seed)

    @cached_property
    def store(self) -> Path:
        """The same in a store."""
        return ours.packed(self.sample.root, self.folder / "store")

    @cached_property
    def small(self) -> Sample:
        """The sites as the network sees them."""
        full = self.sample.image_size
        return reduced_sample(self.sample, self.folder, self.network_size or (full if self.chosen.type == "cuda" else min(SMALL, full)))

    @cached_property
    def small_store(self) -> Path:
        """The same in a store."""
        return self.store if self.small is self.sample else ours.packed(self.small.root, self.folder / "small-store")

    @cached_property
    def learner(self) -> ours.Learner:
        """Our network."""
        return ours.Learner(self.backbone, batch_size=self.batch_size, device=self.chosen, precision=self.precision, workers=self.workers)

    @cached_property
    def eager(self) -> baselines.Eager:
        """The peers' network, of the same kind."""
        return baselines.Eager(self.backbone, channels=CHANNELS, classes=ours.CLASSES, device=self.chosen)

    def stage(self, name: str, ways: list[Candidate], *, device: torch.device = CPU) -> list[Row]:
        """Measure the ways of a stage and keep what was found."""
        found = measure(name, ways, rounds=self.rounds, seconds=self.seconds, sites=self.sites, seed=self.seed, device=device)
        self.rows += found
        return found

    def machine(self) -> list[Row]:
        """What the machine can do at best."""
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
        self.folder.mkdir(parents=True, exist_ok=True)
        side = 0 if self.floor_bytes == limits.MEMORY_BYTES else 64
        with one_thread():
            self.stage("machine", [limits.memory_bandwidth(size=self.floor_bytes), limits.disk_rate(self.folder, size=self.floor_bytes)])
        ways = [limits.matrix_rate(self.chosen, kinds[self.bits], side=side)]
        if self.chosen.type == "cuda":
            ways += [limits.memory_bandwidth(self.chosen, size=self.floor_bytes), limits.transfer_rate(self.chosen, size=self.floor_bytes)]
        self.stage("machine", ways, device=self.chosen)
        return self.rows

    def reading(self) -> list[Row]:
        """From the disk, or its cache, to uint8[C, H, W]: one core."""
        root, stems = self.sample.root, self.sample.stems
        ways = [Candidate("ours: store", "ours", ours.reading(self.store, stems)),
                Candidate("ours: PNG, checked", "ours", ours.reading_pngs(root, stems)),
                Candidate("OpenCV, six PNGs", "peer", _each(lambda stem: baselines.opencv(root, stem), stems)),
                limits.decoding_rate([self.sample.paths(stem) for stem in stems]), limits.site_copy(self.sample.pictures())]
        if find_spec("skimage"):
            ways.append(Candidate("official: scikit-image, six PNGs", "peer", _each(lambda stem: baselines.official(root, stem), stems)))
        with one_thread():
            return self.stage("read", ways)

    def augmenting(self) -> list[Row]:
        """From pictures in memory to what the network is given: one core, or the GPU."""
        pictures, data = self.sample.pictures(), ours.dataset(self.store, self.sample.sites)
        grey, turning = [picture.transpose(1, 2, 0) for picture in pictures], baselines.Brodt(self.sample.root, self.sample.stems)
        zooming = baselines.Sypetkowski(self.sample.root, self.sample.stems)
        kept = torch.from_numpy(pictures[:self.batch_size])
        floats = torch.empty(kept.shape)
        ways = [Candidate("ours: bytes turned, floats on the device", "ours", ours.augmenting(pictures, self.learner, data=data)),
                Candidate("Brodt: turned, floats, put together", "peer", _together(turning, grey, baselines.BRODT)),
                Candidate("Sypetkowski: turned, zoomed, standardised, put together", "peer", _together(zooming, grey, baselines.SYPETKOWSKI)),
                Candidate("bytes to floats alone", "floor", lambda: len(floats.copy_(kept)))]
        with one_thread():
            return self.stage("augment", ways, device=self.chosen)

    def data_path(self) -> list[Row]:
        """From the disk to what the network is given, everybody as set up for two cores: their two processes, our threads."""
        data, sent = ours.dataset(self.store, self.sample.sites), self.chosen
        batches = ours.batches_of(self.sites, self.batch_size, least=LEAST)
        feeding = throughput(lambda: read_batches(data, batches, workers=self.workers, device=self.chosen), self.learner.inputs,
                         wave=3, seconds=self.seconds)
        ways = [Candidate("ours: store, threads", "ours", feeding)]
        for kind, size in ((baselines.Brodt, baselines.BRODT), (baselines.Sypetkowski, baselines.SYPETKOWSKI)):
            endless = kind(self.sample.root, self.sample.stems, epochs=1 + LEAST * size // self.sites)
            begin = _begin(endless, min(size, self.sites))
            path = throughput(begin, lambda images: images.to(sent, non_blocking=True), wave=baselines.WORKERS, seconds=self.seconds)
            ways.append(Candidate(f"{kind.__name__}: two processes, batches of {size}", "peer", path))
        return self.stage("data path", ways)

    def training(self) -> list[Row]:
        """Steps of the optimiser: ours fed from the store, ours fed from memory, the peers' on batches that lie ready."""
        near = ours.dataset(self.small.root, self.small.sites, cache=True)
        far = ours.dataset(self.small_store, self.small.sites)
        steps = max(1, self.sites // self.batch_size) * (8 if self.chosen.type == "cuda" else 1)
        ready = self._floats(self.batch_size)
        targets = torch.eye(ours.CLASSES)
        ways = [Candidate("ours: from the store", "ours", self.learner.epoch(far, batches=steps)),
                Candidate("ours: from memory", "ours", self.learner.epoch(near, batches=steps)),
                Candidate("eager, channels first", "peer", lambda: sum(self.eager.learn(each, targets[:len(each)]) for each in ready))]
        return self.stage("train", ways, device=self.chosen)

    def predicting(self) -> list[Row]:
        """One pass: ours over a whole plate that normalises itself, the peers' by batches of 32 that lie ready."""
        pictures, ready = self.small.pictures(), self._floats(32)
        ways = [Candidate("ours: whole plate", "ours", lambda: len(self.learner.adapted(pictures))),
                Candidate("eager, channels first", "peer", lambda: sum(map(self.eager.predict, ready)))]
        return self.stage("predict", ways, device=self.chosen)

    def experiment(self) -> list[Row]:
        """From the disk to answers of an experiment: once with the plate's statistics, or in 97 passes that decode every time."""
        stems, source = self.small.stems * PLATES, ours.open_store(self.small_store)
        sites = baselines.Sites(self.small.root, stems)

        def bagged() -> tuple[float, float]:
            _, seconds = baselines.bagging(self.eager, sites, sizes=BAGGED)
            return len(stems), len(baselines.BAGGING) * float(np.mean(seconds))

        ways = [Candidate("ours: store, adapted", "ours", lambda: len(self.learner.adapted(source.read_many(stems)))),
                Candidate("97 decoding passes", "peer", bagged, note=f"{len(BAGGED)} of the 97 passes measured, in the sizes {BAGGED}")]
        return self.stage("experiment", ways, device=self.chosen)

    def timeline(self) -> dict[str, dict[str, float]]:
        """The parts of a training step, milliseconds a site."""
        lanes = {"ours: store": timeline.our_step(self.small_store, self.small.stems, self.learner),
                 "Brodt: PNGs": timeline.eager_step(self.small.root, self.small.stems, self.eager, batch_size=self.batch_size)}
        self.lanes = {lane: timeline.measure_step(step, rounds=self.rounds, device=self.chosen) for lane, step in lanes.items()}
        return self.lanes

    def everything(self) -> None:
        """Every stage, in turn, once network and sites are found to be what they should be."""
        print(f"{self.learner.model.settings.backbone} on {self.sites} sites, {self.sample.origin}", flush=True)
        for stage in (self.machine, self.reading, self.augmenting, self.data_path, self.training, self.predicting, self.experiment):
            stage()
        self.timeline()

    def _floats(self, size: int) -> list[torch.Tensor]:
        """The sites as floats on the host, in batches."""
        floats = torch.from_numpy(self.small.pictures()).float() / 255
        return [batch.pin_memory() if self.chosen.type == "cuda" else batch for batch in floats.split(size) if len(batch) > 1]


def _each(read: Callable[[str], object], stems: list[str]) -> Piece:
    def work() -> float:
        for stem in stems:
            read(stem)
        return len(stems)
    return work


def _together(sites: baselines.Sites, grey: list[np.ndarray], size: int) -> Piece:
    """Pictures made and put together in batches, as a loader does."""
    def work() -> float:
        for first in range(0, len(grey), size):
            torch.stack([sites.made(picture) for picture in grey[first:first + size]])
        return len(grey)
    return work


def _begin(sites: baselines.Sites, size: int) -> Callable[[], DataLoader]:
    return lambda: baselines.loader(sites, batch_size=size)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, libraries do each operation with one thread: rates are those of a core."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])

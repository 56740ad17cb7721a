"""The benchmark, stage by stage: our implementation, those of peers, and the hardware limit, on the same sites in one run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader

from cellsignal.bench import baselines, ours, timeline
from cellsignal.bench.sample import CHANNELS, MAX_SITES, Sample, reduced_sample, take_sample
from cellsignal.bench.timer import CPU, Candidate, Row, WorkFunction, measure, throughput
from cellsignal.errors import InputError
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import read_batches
from cellsignal.provenance import cores

Records = list[dict[str, Any]]  # rows as benchmark.json has them

CPU_NETWORK_SIZE = 64  # px that a CPU's network sees
MIN_BATCHES = 400  # batches that a data path can deliver at least
MEASURED_BATCH_SIZES = (32, 80, 128)  # of the 97 batch sizes, those whose passes are measured
PLATES_PER_EXPERIMENT = 4  # repetitions of the sample's sites in the predicted experiment


@dataclass
class Benchmark:
    """A benchmark of this machine with some sites and a network; every stage adds to `rows` and `timelines`.

    `folder` is scratch and is filled. `data`: a data set, None for drawn sites of `image_size` px. `network_size`: px that the
    network sees; 0 means `image_size` on a GPU and 64 on a CPU. `workers`: threads that read in training, 0 means one per core; the data path
    has two at most, as the peers'. `floor_bytes`: of the buffers that are copied. Raises InputError for invalid numbers.
    """

    folder: Path
    data: Path | None = None
    sites: int = MAX_SITES
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
    floor_bytes: int = baselines.MEMORY_BYTES
    rows: list[Row] = field(default_factory=list)
    timelines: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, minimum in (("rounds", 1), ("seconds", 0), ("workers", 0), ("batch_size", 2), ("network_size", 0), ("image_size", 16)):
            if getattr(self, name) < minimum:
                raise InputError(f"{name} is {getattr(self, name)}", where=name, cure=f"use {minimum} or more")
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
        return ours.pack_store(self.sample.root, self.folder / "store")

    @cached_property
    def small(self) -> Sample:
        """The sites as the network sees them."""
        full = self.sample.image_size
        return reduced_sample(self.sample, self.folder, self.network_size or (full if self.chosen.type == "cuda" else min(CPU_NETWORK_SIZE, full)))

    @cached_property
    def small_store(self) -> Path:
        """The same in a store."""
        return self.store if self.small is self.sample else ours.pack_store(self.small.root, self.folder / "small-store")

    @cached_property
    def trainer(self) -> ours.Trainer:
        """Our network."""
        return ours.Trainer(self.backbone, batch_size=self.batch_size, device=self.chosen, precision=self.precision, workers=self.workers)

    @cached_property
    def eager(self) -> baselines.Eager:
        """The peers' network, of the same kind."""
        return baselines.Eager(self.backbone, channels=CHANNELS, classes=ours.CLASSES, device=self.chosen)

    def describe(self) -> str:
        """Which sites are measured, and what the network sees of them, on what device."""
        sample = self.sample
        return (f"{self.sites} sites of {sample.image_size} px, {sample.originals} as they are and the others turned; {sample.origin}\n"
                f"{sample.bytes_per_site / 1e6:.2f} MB a site as PNGs; the network sees {self.small.image_size} px on {self.chosen}, {self.bits}")

    def stage(self, name: str, candidates: list[Candidate], *, device: torch.device = CPU) -> Records:
        """Measure the candidates of a stage; returns its rows as benchmark.json has them."""
        rows = measure(name, candidates, rounds=self.rounds, seconds=self.seconds, sites=self.sites, seed=self.seed, device=device)
        self.rows += rows
        return [row.as_json() for row in rows]

    def machine(self) -> Records:
        """What the machine can do at best."""
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
        self.folder.mkdir(parents=True, exist_ok=True)
        side = 0 if self.floor_bytes == baselines.MEMORY_BYTES else 64
        with threads(1):
            self.stage("machine", [baselines.memory_bandwidth(size=self.floor_bytes), baselines.disk_rate(self.folder, size=self.floor_bytes)])
        candidates = [baselines.matrix_rate(self.chosen, kinds[self.bits], side=side)]
        if self.chosen.type == "cuda":
            candidates += [baselines.memory_bandwidth(self.chosen, size=self.floor_bytes), baselines.transfer_rate(self.chosen, size=self.floor_bytes)]
        self.stage("machine", candidates, device=self.chosen)
        return [row.as_json() for row in self.rows]

    def reading(self) -> Records:
        """From the disk, or its cache, to uint8[C, H, W]: one core."""
        root, stems = self.sample.root, self.sample.stems
        candidates = [Candidate("ours: store", "ours", ours.reading(self.store, stems)),
                Candidate("ours: PNG, checked", "ours", ours.reading_pngs(root, stems)),
                Candidate("OpenCV, six PNGs", "peer", _read_all(lambda stem: baselines.opencv(root, stem), stems)),
                baselines.decoding_rate([self.sample.paths(stem) for stem in stems]), baselines.site_copy(self.sample.images())]
        if find_spec("skimage"):
            candidates.append(Candidate("official: scikit-image, six PNGs", "peer", _read_all(lambda stem: baselines.official(root, stem), stems)))
        with threads(1):
            return self.stage("read", candidates)

    def augmenting(self) -> Records:
        """From images in memory to the network's input: one core, or the GPU."""
        images, data = self.sample.images(), ours.dataset(self.store, self.sample.sites)
        grey_images, brodt = [image.transpose(1, 2, 0) for image in images], baselines.Brodt(self.sample.root, self.sample.stems)
        sypetkowski = baselines.Sypetkowski(self.sample.root, self.sample.stems)
        batch = torch.from_numpy(images[:self.batch_size])
        floats = torch.empty(batch.shape)
        candidates = [Candidate("ours: bytes turned, floats on the device", "ours", ours.augmenting(images, self.trainer, data=data)),
                Candidate("Brodt: turned, floats, put together", "peer", _collate(brodt, grey_images, baselines.BRODT)),
                Candidate("Sypetkowski: turned, zoomed, standardised, put together", "peer", _collate(sypetkowski, grey_images, baselines.SYPETKOWSKI)),
                Candidate("bytes to floats alone", "floor", lambda: len(floats.copy_(batch)))]
        with threads(1):
            return self.stage("augment", candidates, device=self.chosen)

    def data_path(self) -> Records:
        """From the disk to the network's input on two cores: two processes for the peers, threads for ours."""
        data, sent = ours.dataset(self.store, self.sample.sites), self.chosen
        batches = ours.batches_of(self.sites, self.batch_size, min_batches=MIN_BATCHES)
        workers = min(baselines.WORKERS, self.workers)
        feeding = throughput(lambda: read_batches(data, batches, workers=workers, device=self.chosen), self.trainer.inputs, wave=3, seconds=self.seconds)
        candidates = [Candidate("ours: store, threads", "ours", feeding)]
        for kind, size in ((baselines.Brodt, baselines.BRODT), (baselines.Sypetkowski, baselines.SYPETKOWSKI)):
            endless = kind(self.sample.root, self.sample.stems, epochs=1 + MIN_BATCHES * size // self.sites)
            begin = _loader_factory(endless, min(size, self.sites))
            path = throughput(begin, lambda images: images.to(sent, non_blocking=True), wave=baselines.WORKERS, seconds=self.seconds)
            candidates.append(Candidate(f"{kind.__name__}: two processes, batches of {size}", "peer", path))
        with threads(min(baselines.WORKERS, torch.get_num_threads())):
            return self.stage("data path", candidates)

    def training(self) -> Records:
        """Steps of the optimiser: ours with data from the store, ours with data from memory, the peers' on prepared batches."""
        near = ours.dataset(self.small.root, self.small.sites, cache=True)
        far = ours.dataset(self.small_store, self.small.sites)
        steps = max(1, self.sites // self.batch_size) * (8 if self.chosen.type == "cuda" else 1)
        ready = self._floats(self.batch_size)
        targets = torch.eye(ours.CLASSES)
        candidates = [Candidate("ours: from the store", "ours", self.trainer.epoch(far, batches=steps)),
                Candidate("ours: from memory", "ours", self.trainer.epoch(near, batches=steps)),
                Candidate("eager, channels first", "peer", lambda: sum(self.eager.learn(batch, targets[:len(batch)]) for batch in ready))]
        return self.stage("train", candidates, device=self.chosen)

    def predicting(self) -> Records:
        """One pass: ours over a whole plate with adapted statistics, the peers' on prepared batches of 32."""
        images, ready = self.small.images(), self._floats(32)
        candidates = [Candidate("ours: whole plate", "ours", lambda: len(self.trainer.adapted(images))),
                Candidate("eager, channels first", "peer", lambda: sum(map(self.eager.predict, ready)))]
        return self.stage("predict", candidates, device=self.chosen)

    def experiment(self) -> Records:
        """From the disk to predictions of an experiment: one pass with the plate's statistics, or 97 passes that decode again."""
        stems, source = self.small.stems * PLATES_PER_EXPERIMENT, ours.open_store(self.small_store)
        sites = baselines.Sites(self.small.root, stems)

        def bagged() -> tuple[float, float]:
            _, seconds = baselines.bagging(self.eager, sites, sizes=MEASURED_BATCH_SIZES)
            return len(stems), len(baselines.BATCH_SIZES) * float(np.mean(seconds))

        candidates = [Candidate("ours: store, adapted", "ours", lambda: len(self.trainer.adapted(source.read_many(stems)))),
                Candidate("97 decoding passes", "peer", bagged, note=f"{len(MEASURED_BATCH_SIZES)} of the 97 passes measured, in the sizes {MEASURED_BATCH_SIZES}")]
        return self.stage("experiment", candidates, device=self.chosen)

    def timeline(self) -> dict[str, dict[str, float]]:
        """The parts of a training step, milliseconds a site."""
        timelines = {"ours: store": timeline.our_step(self.small_store, self.small.stems, self.trainer),
                 "Brodt: PNGs": timeline.eager_step(self.small.root, self.small.stems, self.eager, batch_size=self.batch_size)}
        self.timelines = {name: timeline.measure_step(step, rounds=self.rounds, device=self.chosen) for name, step in timelines.items()}
        return self.timelines

    def everything(self) -> None:
        """Run every stage; network and sites are created first, so that wrong arguments fail early."""
        print(f"{self.trainer.model.settings.backbone} on {self.sites} sites, {self.sample.origin}", flush=True)
        for stage in (self.machine, self.reading, self.augmenting, self.data_path, self.training, self.predicting, self.experiment):
            stage()
        self.timeline()

    def _floats(self, size: int) -> list[torch.Tensor]:
        """The sites as floats on the host, in batches."""
        floats = torch.from_numpy(self.small.images()).float() / 255
        return [batch.pin_memory() if self.chosen.type == "cuda" else batch for batch in floats.split(size) if len(batch) > 1]


def _read_all(read: Callable[[str], object], stems: list[str]) -> WorkFunction:
    def work() -> float:
        for stem in stems:
            read(stem)
        return len(stems)
    return work


def _collate(sites: baselines.Sites, grey: list[np.ndarray], size: int) -> WorkFunction:
    """Images converted and collated in batches, as a loader does."""
    def work() -> float:
        for start in range(0, len(grey), size):
            torch.stack([sites.to_input(image) for image in grey[start:start + size]])
        return len(grey)
    return work


def _loader_factory(sites: baselines.Sites, size: int) -> Callable[[], DataLoader]:
    return lambda: baselines.loader(sites, batch_size=size)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within this block libraries use so many threads: rates are those of so many cores."""
    previous = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous[0])
        cv2.setNumThreads(previous[1])

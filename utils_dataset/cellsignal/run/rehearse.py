"""A recipe rehearsed on this machine: a few real steps of each phase of each network, and its forecast with the rates that they had."""

import ctypes
import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch

from cellsignal import provenance
from cellsignal.bench.cost import Host, measured
from cellsignal.bench.sample import take_sample
from cellsignal.data import simulated
from cellsignal.data.images.reader import PLANE, file_suffix, read_site, whole_sites
from cellsignal.data.packing.pack import pack, plan_pack
from cellsignal.data.tables import labelled_sites, wells
from cellsignal.data.tables.splits import TRAIN
from cellsignal.decide.predict.inference import InferenceOptions, PlateInference, log_probabilities, predict_experiment
from cellsignal.errors import InputError
from cellsignal.files import write_json
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import LABELS_COLUMN, MAX_CACHE_BYTES, SiteImages, read_batches, virtual_batches
from cellsignal.learn.devices import DTYPES, free_memory, pick_device, resolve_precision
from cellsignal.learn.networks.classifier import Classifier, ModelConfig
from cellsignal.learn.networks.covariates import covariate_levels
from cellsignal.learn.networks.pretrained import load_pretrained
from cellsignal.learn.settings import NetworkSettings
from cellsignal.learn.training.checkpoint import Checkpoint, TrainingState
from cellsignal.learn.training.distributed import ProcessGroup, process_count
from cellsignal.learn.training.epoch import train_epoch
from cellsignal.learn.training.fit import checkpointed
from cellsignal.learn.training.phase import Phase
from cellsignal.progress_bars import progress_bar
from cellsignal.provenance import cores
from cellsignal.run import inputs
from cellsignal.run.forecast import HERE, RXRX1_IMAGE_SIZE, Forecast, count_sites, forecast, plate_sites
from cellsignal.run.recipe import Recipe, ensemble_members
from cellsignal.tasks import RXRX1, TASKS, Task

SECONDS = 3.0  # that each phase is measured for at least, after steps that do not count; a step that takes longer counts at once
DRAWN_SITES = 16  # the virtual microscope draws half of them
NUM_CONTROLS = 6  # of these
GPU_BATCHES = 16  # of a virtual batch; on a CPU one
CPU_PIXELS = 2**23  # of the images of a rehearsed plate on a CPU; a GPU predicts a whole one
VIEWS = 2  # further ones are the same work again


@dataclass(frozen=True)
class PhaseRates:
    """What was measured of one phase: `parts` of gradient checkpointing, images a second through steps and from the loader, bytes at the peak.

    On a GPU the peak is that of allocated memory, on a CPU the growth of the process.
    """

    network: str
    phase: str
    image_size: int
    batch: int
    parts: int
    images_per_second: float
    memory: float
    loader: float


@dataclass(frozen=True)
class Rehearsal:
    """The rows of all phases, and the forecast with their rates; `origin`: of the images."""

    rows: tuple[PhaseRates, ...]
    forecast: Forecast
    origin: str
    device: str
    precision: str

    def table(self) -> pd.DataFrame:
        """A row for each phase of each network."""
        return pd.DataFrame([{
            "network": row.network, "phase": row.phase, "px": row.image_size, "batch": row.batch,
            "checkpointing": f"in {row.parts} parts" if row.parts > 1 else "yes" if row.parts else "no",
            "images/s": f"{row.images_per_second:.3g}", "peak memory": f"{row.memory / 1e9:.2f} GB", "loader images/s": f"{row.loader:.3g}",
            "loader keeps up": "yes" if row.loader >= row.images_per_second else "no",
        } for row in self.rows])

    def conditions(self) -> str:
        """What the rates were measured on."""
        return f"rehearsed on {self.device} in {self.precision}, images {self.origin}"

    def __str__(self) -> str:
        return f"{self.conditions()}\n{self.table().to_string(index=False)}\n\n{self.forecast}"

    def write(self, path: Path, *, recipe: Recipe) -> None:
        """Write all of it as JSON, and the table as text."""
        networks = [asdict(network) for network in self.forecast.networks]
        write_json(path, {
            "recipe": recipe.model_dump(), "origin": self.origin, "device": self.device, "precision": self.precision, "hardware": provenance.hardware(),
            "rows": [asdict(row) for row in self.rows], "networks": networks, "hours": self.forecast.hours, "sessions": self.forecast.sessions,
            "weeks": self.forecast.weeks, "text": str(self).splitlines()})


def rehearse(recipe: Recipe, *, run: str = "") -> Rehearsal:
    """Take a few steps of each phase of each network on this machine, with the recipe's own batches, sizes and precision.

    On sites of the recipe's data where they are, else on drawn ones. Members of an ensemble with one backbone are rehearsed once.
    Raises InputError, which names the setting, where a batch does not fit into the memory.
    """
    check_memory(recipe)
    with tempfile.TemporaryDirectory(prefix="cellsignal-rehearse-") as folder:
        rehearsing = _Rehearsing(recipe, Path(folder), *_sites(recipe, Path(folder), run=run))
        for backbone in ensemble_members(recipe.network.backbone, recipe.network.ensemble).values():
            rehearsing.host(backbone)  # here, because a forecast notes errors and goes on
        needed = forecast(recipe, rehearsing.host)
    return Rehearsal(tuple(rehearsing.rows), needed, rehearsing.origin, str(rehearsing.device), rehearsing.precision)


def this_machine(recipe: Recipe) -> Callable[[str], Host]:
    """For `forecast`: from a backbone to this machine, whose rates a few training steps and passes of prediction measure on images of noise.

    On a CPU, seconds are those of its threads at work, whatever else the machine does.
    """
    sites, size = count_sites(recipe)
    task = TASKS[recipe.task]
    count = min(plate_sites(recipe, next(iter(sites.values()))), CPU_PIXELS // size**2 or 2)
    images = np.random.default_rng(0).integers(0, 256, (count, len(task.channels), size, size), dtype=np.uint8)
    return _Rehearsing(recipe, Path(), Path(), _drawn_table(task, [str(row) for row in range(count)]), "of noise", list(images)).host


def check_memory(recipe: Recipe) -> None:
    """Raise InputError, which names the setting, if by estimate a network cannot be trained in this machine's memory."""
    device = pick_device(recipe.machine.device)
    free = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else free_memory(device)
    width = 2 if resolve_precision(device, recipe.machine.precision) in DTYPES else 4
    forecast(recipe, lambda backbone: Host(HERE, 1, 1e12, 1e11, free, cores(), width=width, is_gpu=device.type == "cuda")).check()


# The sites: of the recipe's data, or drawn.


def _sites(recipe: Recipe, folder: Path, *, run: str) -> tuple[Path, pd.DataFrame, str]:
    """The folder of some images, a table of their sites, and where they are from."""
    task, data = TASKS[recipe.task], None
    with suppress(InputError):
        root, preset = inputs.resolve(recipe.data, run=run or recipe.run, preset=recipe.preset, seed=recipe.seed, task=task)
        data = None if preset else root
    packed_size = recipe.wells.packed_size
    if data is not None and not packed_size:
        return data, TABLES[task.reader](data, task), f"of {simulated.described(data)}"
    size = RXRX1_IMAGE_SIZE if packed_size else count_sites(recipe)[1]
    sample = take_sample(folder, data=data, count=DRAWN_SITES, image_size=size, seed=recipe.seed)
    table, root = _drawn_table(task, sample.stems), sample.root
    if task.suffixes != RXRX1.suffixes:
        for stem, image in zip(sample.stems, sample.images(), strict=True):
            _write_site(root / stem, image[:len(task.channels)], task)
    if packed_size:
        root = folder / "packed"
        pack(plan_pack(sample.root, codec="zstd" if find_spec("blosc2") else "raw", sizes=[packed_size]), root, progress=False)
    return root, table, f"{sample.origin}, packed at {packed_size} px" if packed_size else sample.origin


def _drawn_table(task: Task, stems: Sequence[str]) -> pd.DataFrame:
    """A table of sites of one plate: treatments, and where the task has them controls."""
    count, controls = len(stems), min(NUM_CONTROLS, len(stems) // 2) * bool(task.controls)
    numbers = [*range(count - controls), *islice(cycle([*task.positive_controls[:2], task.negative_control]), controls)]
    kinds = ["treatment"] * (count - controls) + ["negative_control" if number == task.negative_control else "positive_control" for number in numbers[count - controls:]]
    table = pd.DataFrame({
        "id_code": [f"HUVEC-01_1_{row}" for row in range(count)], "stem": list(stems), "experiment": "HUVEC-01", "cell_type": "HUVEC", "plate": 1,
        "well": [str(row) for row in range(count)], "site": 1, "sirna": numbers, "well_type": kinds})
    return table.assign(**{LABELS_COLUMN: [(number % task.classes,) for number in numbers]}) if task.labels == "many" else table


def _write_site(stem: Path, image: np.ndarray, task: Task) -> None:
    """A site's uint8[C, H, W] in the files of a task."""
    if any(PLANE in suffix for suffix in task.suffixes):
        cv2.imwrite(f"{stem}{file_suffix(task.suffixes[0])}", image[::-1].transpose(1, 2, 0))  # OpenCV's order is blue, green, red
        return
    for plane, suffix in zip(image, task.suffixes, strict=True):
        cv2.imwrite(f"{stem}{suffix}", plane)


def _one_plate(root: Path, sites: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The complete sites of the plate with most of them."""
    sites, _ = whole_sites(root, sites[sites["plate"] == sites["plate"].iloc[0]], channels=task.suffixes)
    plates = sites.groupby(["experiment", "plate"])["stem"].transform("size")
    return sites[plates == plates.max()].groupby(["experiment", "plate"]).get_group(tuple(sites.loc[plates.idxmax(), ["experiment", "plate"]])).reset_index(drop=True)


def _of_wells(root: Path, task: Task) -> pd.DataFrame:
    sites = wells.read_tables(root).sites
    return _one_plate(root, sites[sites["dataset"] == TRAIN], task)


def _of_benchmark(root: Path, task: Task) -> pd.DataFrame:
    sites = wells.read_benchmark_sites(root)
    return _one_plate(root, sites[sites["split"] == wells.TRAIN_SPLIT], task).assign(well_type="treatment")


def _of_labels(root: Path, task: Task) -> pd.DataFrame:
    sites = labelled_sites.read_site_tables(root, task).sites
    sites, _ = whole_sites(root, sites[sites["dataset"] == TRAIN].head(DRAWN_SITES), channels=task.suffixes)
    return sites.reset_index(drop=True).assign(experiment="", plate=1, well_type="treatment", sirna=0)


TABLES: dict[str, Callable[[Path, Task], pd.DataFrame]] = {"wells": _of_wells, "splits": _of_benchmark, "sites": _of_labels}


# The steps.


class _Rehearsing:
    """Rehearses the networks of a recipe, each backbone once; `images`: those of the sites, read from `root` if not given."""

    def __init__(self, recipe: Recipe, folder: Path, root: Path, sites: pd.DataFrame, origin: str, images: list[np.ndarray] | None = None) -> None:
        self.recipe, self.folder, self.root, self.sites, self.origin, self.task = recipe, folder, root, sites, origin, TASKS[recipe.task]
        self.images = images if images is not None else [read_site(root, stem, channels=self.task.suffixes) for stem in sites["stem"]]
        self.from_disk, self.sizes = images is None, count_sites(recipe)[0]
        self.device = pick_device(recipe.machine.device)
        self.precision = resolve_precision(self.device, recipe.machine.precision)
        self.rows: list[PhaseRates] = []
        self.hosts: dict[str, Host] = {}

    def host(self, backbone: str) -> Host:
        """This machine with the rates of a backbone."""
        if backbone not in self.hosts:
            self.hosts[backbone] = self._measure(backbone)
        return self.hosts[backbone]

    def _measure(self, backbone: str) -> Host:
        members = Counter(ensemble_members(self.recipe.network.backbone, self.recipe.network.ensemble).values())
        name = f"{members[backbone]} {backbone}" if members[backbone] > 1 else backbone
        first = len(self.rows)
        for phase, network in progress_bar(self._phases() if self.from_disk else self._phases()[-1:], desc=f"rehearse {backbone}", unit="phase"):
            self.rows.append(self._train(name, phase, network.model_copy(update={"backbone": backbone})))
        self.rows.append(self._predict(name, self._network(self._phases()[-1][1].model_copy(update={"backbone": backbone}), self.sites)))
        rows = self.rows[first:]
        rates = {row.phase: row.images_per_second for row in rows}
        whole = [row for row in rows if row.phase.startswith("whole")]
        on_gpu = self.device.type == "cuda"
        memory = torch.cuda.get_device_properties(self.device).total_memory if on_gpu else 0
        cards = process_count(self.recipe.machine.device, self.recipe.machine.num_processes) if on_gpu else 1
        host = Host(HERE, cards, 1e12, 1e11, memory, cores(), width=2 if self.precision in DTYPES else 4, is_gpu=on_gpu)
        if not self.from_disk:  # the share of the roofline that one size had holds for all
            return measured(host, trained_per_second=whole[-1].images_per_second, inferred_per_second=rates["prediction"], backbone=backbone,
                            image_size=whole[-1].image_size, classes=self.task.classes)
        inferred = rates["prediction"]
        by_part = {(part, None): (rates.get(phase, whole[-1].images_per_second), inferred) for part, phase in (
            ("controls", "controls"), ("held out", ""), ("pseudo-labels", ""), ("labelling", ""), ("final", "final"), ("prediction", ""))}
        by_part |= {("head", None): (1.0, rates.get("head", inferred))}
        sizes = self.recipe.augmentation.progressive_sizes or [None]
        by_part |= {("whole", size): (row.images_per_second, inferred) for size, row in zip(sizes, whole, strict=True)}
        return replace(host, rates=by_part, loader=self.loader)

    def _phases(self) -> list[tuple[Phase, NetworkSettings]]:
        """The phases of a network as its notebooks train them, one for each size of images, and the network's settings there."""
        training, augmentation, network = self.recipe.training, self.recipe.augmentation, self.recipe.network
        if self.task.reader != "wells":
            settings_of = training.sites if self.task.reader == "splits" else training.labels
            return [(phase, network.labels) for phase in _by_size(Phase(name="whole", training=settings_of, augmentation=augmentation.labels))]
        phases = [(Phase(name="controls", training=training.pretraining, augmentation=augmentation.pretraining), network.pretraining)]
        phases += [(Phase(name="head", training=training.head, augmentation=augmentation.pretraining, trainable="head"), network.classifier)]
        phases += [(Phase(name="final", training=training.final, augmentation=augmentation.final), network.classifier)]
        whole = Phase(name="whole", training=training.whole.model_copy(update={"pseudo_label_epochs": 0}), augmentation=augmentation.whole)
        return [(phase, each) for phase, each in phases if phase.training.epochs] + [(phase, network.classifier) for phase in _by_size(whole)]

    def _network(self, network: NetworkSettings, sites: pd.DataFrame, *, on_controls: bool = False) -> Classifier:
        levels = covariate_levels(sites, network.covariates)
        model = Classifier(network, channels=len(self.task.suffixes), classes=len(self._classes(on_controls)), levels=levels)
        if self.from_disk and self.recipe.network.pretrained:
            load_pretrained(model, inputs.find_pretrained(self.recipe.network.pretrained, network.backbone))
        return model.to(self.device)

    def _classes(self, on_controls: bool = False) -> list[int]:
        if on_controls:
            return list(self.task.controls)
        return [*range(self.task.classes), *(self.task.controls if self.recipe.wells.classes == "all" and self.task.reader == "wells" else ())]

    def _data(self, sites: pd.DataFrame, *, on_controls: bool = False, cached: bool = True) -> SiteImages:
        data = SiteImages(self.root, sites, class_numbers=self._classes(on_controls), channels=self.task.suffixes,
                          augment=build_augmentation(self.recipe.augmentation.pretraining, seed=0))
        data.cached = [self.images[row] for row in sites.index] if cached else None
        return data

    def _train(self, name: str, phase: Phase, network: NetworkSettings) -> PhaseRates:
        """Steps of a phase, on images in memory."""
        on_controls, is_control = phase.name == "controls", self.sites["well_type"] != "treatment"
        sites = self.sites[is_control] if on_controls else self.sites if self.recipe.wells.classes == "all" else self.sites[~is_control]
        data, batch = self._data(sites, on_controls=on_controls), self.batch_size(phase)
        controls = self._data(self.sites[is_control]) if network.control_features else None
        group = ProcessGroup(device=self.device)
        with _peak_memory(self.device) as peak:
            model = self._network(network, sites, on_controls=on_controls)
            how = checkpointed(model, self._of_a_batch(data, batch), phase, self.recipe.machine, group)
            state = TrainingState(model, phase, Checkpoint(self.folder / "rehearsal.safetensors", fingerprint={}), machine=self.recipe.machine,
                                  process_group=group, saved=None, checkpointing=how)
            count = GPU_BATCHES if self.device.type == "cuda" else 1
            batches = [np.arange(number * batch, (number + 1) * batch) % len(data) for number in range(max(1, min(count, phase.training.virtual_batch // batch)))]
            steps = virtual_batches(batches, phase.training.virtual_batch)
            images_per_second = _rate(lambda: train_epoch(state.trainer, data, steps, controls=controls), batch * len(batches), self.device)
        size = phase.augmentation.progressive_sizes[0] if phase.augmentation.progressive_sizes else data.shape[1]
        label = phase.name if len(self.recipe.augmentation.progressive_sizes) < 2 or phase.name != "whole" else f"whole, {size} px"
        return PhaseRates(name, label, size, batch, how.parts, images_per_second, peak[0], self.loader)

    @staticmethod
    def _of_a_batch(data: SiteImages, batch: int) -> SiteImages:
        """As many sites as a batch has: by these the memory is estimated."""
        rows = np.arange(batch) % len(data)
        more = SiteImages(data.root, data.sites.iloc[rows], class_numbers=data.class_numbers, channels=data.channels)
        more.cached = [data.image(row) for row in rows]
        return more

    def batch_size(self, phase: Phase) -> int:
        """The sites of a batch of a phase: of a plate at most as many as it has."""
        plate = max(plate_sites(self.recipe, size) for size in self.sizes.values())
        return min(phase.training.batch_size, plate) if phase.training.batch_scope == "plate" else phase.training.batch_size

    def _predict(self, name: str, model: Classifier) -> PhaseRates:
        """The prediction of a plate: each kind of statistics that the recipe computes, and views."""
        prediction = self.recipe.prediction
        count = max(2, int(max(size.plate for size in self.sizes.values())))
        if self.device.type == "cpu":
            count = min(count, max(2, CPU_PIXELS // int(np.prod(self.images[0].shape[1:]))))
        treatments = np.flatnonzero(self.sites["well_type"] == "treatment")
        rows = np.resize(treatments, count)
        sites = self.sites.iloc[rows].assign(id_code=[f"site {number}" for number in range(count)])
        sites = pd.concat([sites, self.sites[self.sites["well_type"] != "treatment"]])
        images = {stem: image for stem, image in zip(self.sites["stem"], self.images, strict=True)}
        kinds = [prediction.statistics, *["views"] * (prediction.tta_views > 1)]
        options = InferenceOptions(batch_sizes=(prediction.min_batch_size,), precision=self.precision, basis=prediction.statistics, views=min(VIEWS, prediction.tta_views))
        config = ModelConfig.from_model(model, class_numbers=self._classes(), well_types=["treatment"], scope="plate", task=self.task.name)
        passes = [0]
        def read(some: pd.DataFrame) -> np.ndarray:
            return np.stack([images[stem] for stem in some["stem"]])
        def predict() -> None:
            if self.task.reader == "wells":
                results = predict_experiment(model, config, self.root, sites, kinds=kinds, options=options, read=read)
                passes[0] = sum(facts["images"] for _, facts in results.values())
            else:
                inference = PlateInference(model, read(sites), precision=self.precision)
                log_probabilities(inference, prediction.statistics)
                passes[0] = inference.images_sent
        with _peak_memory(self.device) as peak:
            plates_per_second = _rate(predict, 1, self.device)
        return PhaseRates(name, "prediction", self.images[0].shape[1], count, 0, plates_per_second * passes[0], peak[0], self.loader)

    @cached_property
    def loader(self) -> float:
        """Sites a second that the loader gives with the recipe's threads: from memory where a training would keep all images there."""
        if not self.from_disk:
            return 0.0
        sites = max(size.train + size.held_out for size in self.sizes.values())
        cached = sites * self.images[0].nbytes <= MAX_CACHE_BYTES
        data, batch, workers = self._data(self.sites, cached=cached), self.batch_size(self._phases()[-1][0]), self.recipe.machine.num_workers
        batches = [np.arange(number * batch, (number + 1) * batch) % len(data) for number in range(max(4, 64 // batch))]
        def read() -> None:
            for _ in read_batches(data, batches, workers=workers, device=self.device):
                pass
        return _rate(read, sum(map(len, batches)), self.device, threads=1 if workers == 0 else min(workers, cores()))


def _by_size(phase: Phase) -> Iterator[Phase]:
    """A phase for each size of its images."""
    for size in phase.augmentation.progressive_sizes or [None]:
        sizes = [] if size is None else [size]
        yield phase.model_copy(update={"augmentation": phase.augmentation.model_copy(update={"progressive_sizes": sizes})})


def _rate(work: Callable[[], object], count: int, device: torch.device, *, threads: int = 0) -> float:
    """Sites a second of some work on `count` sites, on a CPU by the time of its `threads`."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    def seconds(rounds: int) -> float:
        began = clock()
        for _ in range(rounds):
            work()
        if on_gpu:
            torch.cuda.synchronize(device)
        return clock() - began
    first = seconds(1)  # libraries load, cuDNN chooses its kernels
    if first > SECONDS:
        rounds, spent = 1, first if not on_gpu else seconds(1)
    else:
        rounds = max(1, round(SECONDS / max(seconds(1), 1e-6)))
        spent = seconds(rounds)
    return rounds * count / max(spent, 1e-9) * (1 if on_gpu else threads or torch.get_num_threads())


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Inside, the peak of memory is recorded, which the list then holds, in bytes: on a GPU all that is allocated, else the growth of the process."""
    peak: list[float] = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError, AttributeError):  # not Linux with glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_bytes("VmRSS")
    yield peak
    peak.append(max(0.0, _status_bytes("VmHWM") - before))


def _status_bytes(name: str) -> float:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
    return 0.0

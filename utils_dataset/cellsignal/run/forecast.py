"""What a recipe will need on a machine before it runs there: memory, hours, sessions, weeks of Kaggle's quota, network by network."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from cellsignal import settings
from cellsignal.bench import cost
from cellsignal.bench.cost import DatasetSize, Host, Source, Workload
from cellsignal.data.images.packed_store import is_store
from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.splits import HELD_OUT, TEST, TRAIN, split_sites
from cellsignal.data.tables.wells import read_tables, select
from cellsignal.errors import InputError
from cellsignal.learn.batches.dataset import MAX_CACHE_BYTES
from cellsignal.learn.networks.memory import SMALL_BATCH_PIXELS, fitting_parts, training_memory
from cellsignal.run import environment, inputs, mounts
from cellsignal.run.kernels.benchmark import COST_PARAMETERS
from cellsignal.run.recipe import ALL, Recipe, ensemble_members
from cellsignal.tasks import TASKS

# The sites of a recipe, by what a network is trained on.

SITES_A_WELL = 2
RXRX1_EXPERIMENTS = {"HUVEC": (16, 8), "HEPG2": (7, 4), "RPE": (7, 4), "U2OS": (3, 2)}  # for training, and to predict
RXRX1_WELLS = 1106.1  # treatments of an experiment: 1,108 but for lost wells
CONTROLS, PLATES = 124, 4  # of an experiment
RXRX1_IMAGE_SIZE = 512
ATLAS_SITES = (31_072, 11_702)  # of the Human Protein Atlas, for training and to predict
WILDS_SITES, WILDS_TRAINING_PLATES, WILDS_IMAGE_SIZE = (40_612, 9_854, 75_044), 132, 256  # of RxRx1-WILDS: to train on, to choose the epoch, to answer
RANDOM_HELD_OUT = 0.05


def count_sites(recipe: Recipe) -> tuple[dict[str, DatasetSize], int]:
    """The sites of each cell type (in a task without them of each fold, or of a benchmark's one network), and their image size in px.

    Of wells by the tables in the folder that `data` names, where it has some; else of simulated plates as their preset has them, and of
    real ones as the competition has them. With `wells.packed_size` the images have at most this size. Raises InputError for an unknown
    preset, and where no experiment is left.
    """
    sizes, image_size = _count_tables(recipe) or _count_known(recipe)
    return sizes, min(image_size, recipe.wells.packed_size or image_size)


def _count_tables(recipe: Recipe) -> tuple[dict[str, DatasetSize], int] | None:
    """The sites of the user's own tables; None without these, or for a task that has no wells."""
    root = environment.data_folder(recipe.data) if recipe.data else None
    if root is None or TASKS[recipe.task].reader != "wells" or not mounts.has_task_tables(root, TASKS[recipe.task]):
        return None
    tables = select(read_tables(root), cell_types=recipe.wells.cell_types, experiments=recipe.wells.experiments)
    sites = tables.sites.assign(split=split_sites(tables.wells, tables.sites, recipe.wells.held_out, seed=recipe.seed))
    try:
        image_size = read_site(root, sites["stem"].iloc[0]).shape[-1]
    except InputError:  # the tables alone are here, and the images on Kaggle
        image_size = RXRX1_IMAGE_SIZE
    return {name: _of_sites(group, recipe) for name, group in sites.groupby("cell_type", sort=False)}, image_size


def _of_sites(sites: pd.DataFrame, recipe: Recipe) -> DatasetSize:
    treatment = sites["well_type"] == "treatment"
    counts = sites.groupby([treatment, "split"]).size()
    treatments, controls = ([float(counts.get((kind, split), 0)) for split in (TRAIN, HELD_OUT, TEST)] for kind in (True, False))
    more = controls[2] * (recipe.wells.classes == "all")
    plate = float(sites[treatment].groupby(["experiment", "plate"]).size().max())
    return DatasetSize(treatments[0] + more, treatments[1], treatments[2], controls[0], controls[1], plate)


def _count_known(recipe: Recipe) -> tuple[dict[str, DatasetSize], int]:
    """The sites of a preset, or of the competition or benchmark itself."""
    preset = None
    if recipe.preset:
        from cellsignal.data.microscope.simulate import PRESETS  # pulls in SciPy

        inputs.check_preset(recipe.preset, TASKS[recipe.task])
        preset = PRESETS[recipe.preset]
    image_size, task = preset.image_size if preset else RXRX1_IMAGE_SIZE, TASKS[recipe.task]
    if task.reader == "splits":
        return {task.name: DatasetSize(*WILDS_SITES, 0, 0, WILDS_SITES[0] / WILDS_TRAINING_PLATES)}, WILDS_IMAGE_SIZE
    if not task.cell_types:
        train, test = (preset.train, preset.test) if preset else ATLAS_SITES
        held_out = train / recipe.wells.folds
        return {f"fold-{fold}": DatasetSize(train - held_out, held_out, test, 0, 0, test) for fold in range(recipe.wells.folds)}, image_size
    counts = {name: (preset.train, preset.test) for name in preset.cell_types} if preset else RXRX1_EXPERIMENTS
    wells = preset.classes if preset else RXRX1_WELLS
    sizes = {name: _of_cell_type(name, *counts[name], wells, recipe) for name in recipe.wells.cell_types or counts if name in counts}
    sizes = {name: size for name, size in sizes.items() if size.train or size.test}
    if not sizes:
        where = recipe.location("wells.experiments" if recipe.wells.experiments else "wells.cell_types")
        raise InputError(f"no such wells among those of {f'the preset {recipe.preset}' if preset else 'the competition'}", where=where,
                         cure=f"choose from {', '.join(counts)}, or set `data` to a folder with your tables")
    return sizes, image_size


def _of_cell_type(name: str, train: int, test: int, wells: float, recipe: Recipe) -> DatasetSize:
    """The sites of one cell type with so many experiments for training and to predict, and treatment wells an experiment."""
    if chosen := recipe.wells.experiments:
        numbers = [int(experiment.rpartition("-")[2]) for experiment in chosen if re.fullmatch(rf"{name}-[0-9]+", experiment)]
        train, test = sum(number <= train for number in numbers), sum(number > train for number in numbers)
    held_out = RANDOM_HELD_OUT * train if recipe.wells.split == "random" else max(0, min(recipe.wells.validation_experiments, train - 1))
    treatments, controls = SITES_A_WELL * wells, SITES_A_WELL * CONTROLS
    # With the controls as classes, those of the experiments to predict are learnt from too.
    more = test * controls * (recipe.wells.classes == "all")
    return DatasetSize((train - held_out) * treatments + more, held_out * treatments, test * treatments, (train - held_out) * controls,
                       held_out * controls, treatments / PLATES)


def _sum(sizes: Sequence[DatasetSize]) -> DatasetSize:
    columns = [list(vars(size).values()) for size in sizes]
    return DatasetSize(*map(sum, zip(*(column[:-1] for column in columns), strict=True)), max(column[-1] for column in columns))


# The forecast.


@dataclass(frozen=True)
class NetworkForecast:
    """One network: its training's batch, memory in bytes and hours; `problem` says why these are not known, or why it cannot train there."""

    name: str  # "HUVEC", or "HUVEC, model-2"
    backbone: str
    batch: str = ""
    memory: float = 0.0
    parts: int = 0  # of gradient checkpointing
    hours: float = 0.0
    sessions: int = 0
    problem: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Forecast:
    """What a recipe needs on a machine."""

    host: Host
    networks: tuple[NetworkForecast, ...]
    prediction_hours: float
    session_hours: float
    packing_hours: float = 0.0  # of a session without a GPU, which costs nothing of the quota
    one_notebook: bool = False  # trains all networks and predicts

    @property
    def hours(self) -> float:
        """Hours of all networks and of the prediction, one after the other; packing, which needs no GPU, is not among them."""
        return sum(network.hours for network in self.networks) + self.prediction_hours

    @property
    def sessions(self) -> int:
        """Sessions with a GPU, of which every notebook has at least one."""
        if self.one_notebook:
            return ceil(self.hours / self.session_hours)
        return sum(network.sessions for network in self.networks) + ceil(self.prediction_hours / self.session_hours)

    @property
    def weeks(self) -> float:
        """Weeks of Kaggle's quota."""
        return self.hours / cost.QUOTA_HOURS

    def check(self) -> None:
        """Raise InputError, with the setting that makes it fit, if a network does not fit into the memory."""
        for network in self.networks:
            if network.cure:
                raise InputError(network.problem, where=network.name, cure=network.cure)

    def __str__(self) -> str:
        host, on_kaggle = self.host, self.host.name == cost.KAGGLE or environment.platform() == "kaggle"
        basis = "measured by a few steps" if host.name == HERE else f"at {host.efficiency:.0%} of the roofline, an assumption"
        memory = f"{host.memory / 1e9:.0f} GB{' a card' if host.cards > 1 else ''}, " if host.is_gpu else ""
        def sessions(count: int) -> str:
            return "" if self.one_notebook else str(count)
        rows = [("network", "backbone", "batch", "memory", "time", *["sessions"] * on_kaggle)]
        for each in self.networks:
            known = (_memory(each), _hours(each.hours), *[sessions(each.sessions)] * on_kaggle) if each.memory else (each.problem, "", *[""] * on_kaggle)
            rows.append((each.name, each.backbone, each.batch, *known))
        if self.packing_hours:
            rows.insert(1, ("packing", "", "no GPU", "", _hours(self.packing_hours), *["1"] * on_kaggle))
        rows.append(("prediction", "", "", "", _hours(self.prediction_hours), *[sessions(ceil(self.prediction_hours / self.session_hours))] * on_kaggle))
        rows.append(("in all", "", "", "", _hours(self.hours), *[str(self.sessions)] * on_kaggle))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(width) if number < 4 else text.rjust(width) for number, (text, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
        quota = [f"{self.weeks:.1f} weeks of Kaggle's {cost.QUOTA_HOURS:.0f} hours, in sessions of {self.session_hours:g} h"] * on_kaggle
        return "\n".join([f"forecast for {host.name} ({memory}{basis})", *map(str.rstrip, lines), *quota])


def _memory(network: NetworkForecast) -> str:
    text = f"{network.memory / 1e9:.1f} GB"
    if network.cure:
        return f"{text}: does not fit"
    return text + (f", checkpointed in {network.parts} parts" if network.parts > 1 else ", checkpointed" if network.parts else "")


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"


HERE = "this machine"
PLAIN = "plain"  # the network without a virtual batch, which starts from the pretraining of another
PROCESS_BYTES = 1.07e9  # of a notebook on a CPU with PyTorch and its figures, before it trains
# Of a notebook's start, imports, first steps and figures, on one core, and of the prediction's, which fits temperatures, decides and
# draws more. Without a GPU notebooks are forked from one process, whose own start the prediction's seconds include.
GPU_NOTEBOOK_SECONDS, FORKED_NOTEBOOK_SECONDS = (8.0, 16.0), (4.0, 11.0)
MAPPED_EXPERIMENTS, MAX_MAP_SIRNAS = 6, 100  # of the map of embeddings (run.kernels.prediction)
PNG = Source("PNG", 0.44e6, 45.0, RXRX1_IMAGE_SIZE)  # measured on real sites and one core (utils_dataset/README.md)
# Of real sites too (papermill_params/README.md): read from a store with the codec zstd at 192 px; and read as PNGs, reduced, packed into it.
PACKED, PACKING = Source("packed store", 0.12e6, 3900.0, 192), Source("packing", 0.44e6, 32.0, RXRX1_IMAGE_SIZE)
# The time of a training step with gradient checkpointing, and in parts of a batch, over the time without (utils_dataset/README.md).
CHECKPOINTED, IN_PARTS = 4 / 3, 2.5


def forecast(recipe: Recipe, machine: str | Callable[[str], Host] = "t4x2") -> Forecast:
    """What a recipe needs on one of `cost.MACHINES`, or on `machine(backbone)`.

    Hours are those of networks, from the work of their layers, of decoding PNGs, and of the start of notebooks.
    """
    def host_of(backbone: str) -> Host:
        host = cost.MACHINES[machine] if isinstance(machine, str) else machine(backbone)
        return host if host.name == HERE else _as_configured(host, recipe)
    sizes, image_size = count_sites(recipe)
    session_hours = (recipe.machine.time_budget_minutes or environment.SESSION_MINUTES) / 60
    groups = {ALL: _sum(list(sizes.values()))} if recipe.network.one_network and TASKS[recipe.task].cell_types else sizes
    values = {name: value for name, value in settings.flatten(recipe.model_dump()).items() if name in COST_PARAMETERS}
    members = ensemble_members(recipe.network.backbone, recipe.network.ensemble)
    plain = {PLAIN: members["model"]} if recipe.training.ablate_virtual_batch else {}
    networks, prediction, one_notebook = [], 0.0, TASKS[recipe.task].reader != "wells"
    for name, size in groups.items():
        for number, (member, backbone) in enumerate([*members.items(), *plain.items()]):
            row = NetworkForecast(name if member == "model" else f"{name}, {member}", backbone)
            changes = {"network.ensemble": [], "training.ablate_virtual_batch": False}
            changes |= {"training.pretrain_epochs": 0, "training.final_epochs": 0} if member == PLAIN else {}
            try:
                host = host_of(backbone)
                seconds = 0.0 if one_notebook and networks else _notebook_seconds(host)[0]
                networks.append(_network(row, recipe, host, {**values, **changes}, size, image_size, session_hours, notebook_seconds=seconds))
                prediction += _prediction(recipe, host, size, image_size, backbone=backbone, first=not number, final=member != PLAIN) / 3600
            except InputError as error:  # a backbone of timm, which is not installed
                networks.append(replace(row, problem=f"not known here: {error}"))
    host, size = host_of(members["model"]), next(iter(sizes.values()))
    prediction += _notebook_seconds(host)[1] / 3600
    if not one_notebook:
        prediction += _seconds([_map(recipe, size)], host=host, backbone=members["model"], image_size=image_size, recipe=recipe) / 3600
    return Forecast(host, tuple(networks), prediction, session_hours, _packing_hours(recipe, host, sizes.values()), one_notebook)


def _as_configured(host: Host, recipe: Recipe) -> Host:
    """A machine with the cards that a recipe uses, in its precision."""
    cards = min(host.cards, recipe.machine.num_processes or host.cards)
    return replace(host, cards=cards, **({"width": 4, "flops": host.fp32_flops} if recipe.machine.precision == "fp32" else {}))


def _notebook_seconds(host: Host) -> tuple[float, float]:
    """The fixed seconds of a training notebook and of the prediction's."""
    return GPU_NOTEBOOK_SECONDS if host.is_gpu else FORKED_NOTEBOOK_SECONDS


def _map(recipe: Recipe, size: DatasetSize) -> Workload:
    """The embeddings for the map of the prediction's notebook: of some experiments with known siRNAs, or of a plate of each, under two kinds of statistics."""
    plates = MAPPED_EXPERIMENTS * (PLATES if PLATES * size.plate <= SITES_A_WELL * MAX_MAP_SIRNAS else 1)
    sites = min(plates * size.plate, size.train + size.held_out + size.test * bool(recipe.preset))
    return Workload("prediction", 0, 2 * sites, 2 * sites)


def _packing_hours(recipe: Recipe, host: Host, sizes: Iterable[DatasetSize]) -> float:
    """Hours in which the cores read, reduce and pack all images, where the recipe asks for it."""
    if not recipe.wells.packed_size:
        return 0.0
    sites = sum(sum(vars(replace(size, plate=0)).values()) for size in sizes)
    return (GPU_NOTEBOOK_SECONDS[0] + max(sites / PACKING.per_core / host.cores, sites * PACKING.site_bytes / host.disk)) / 3600


def _network(row: NetworkForecast, recipe: Recipe, host: Host, values: Mapping[str, Any], size: DatasetSize, image_size: int,
             session_hours: float, *, notebook_seconds: float) -> NetworkForecast:
    """The training of one network on sites `size`; `values`: the parameters that its work depends on."""
    training, wanted = recipe.training, recipe.machine.gradient_checkpointing
    cropped = round(recipe.augmentation.crop * image_size)
    largest = max(recipe.augmentation.progressive_sizes, default=cropped)
    batch_size = min(training.batch_size, plate_sites(recipe, size)) if training.batch_scope == "plate" else training.batch_size
    task, capacity = TASKS[recipe.task], host.memory or np.inf
    facts = {"size": largest, "channels": len(task.channels), "classes": task.classes, "precision": "fp16" if host.width == 2 else "fp32",
             "training": training}
    def bytes_in(parts: int, sites: int = batch_size) -> float:
        memory = training_memory(row.backbone, batch_size=sites * (1 + recipe.network.control_features), parts=parts, **facts)
        return memory.total if host.is_gpu else memory.tensors
    automatic = 0 if batch_size * largest**2 <= SMALL_BATCH_PIXELS else fitting_parts(capacity, batch_size, bytes_in)
    parts = automatic if wanted == "auto" else int(wanted)
    bytes_of_sites = (size.train + size.held_out) * len(task.channels) * image_size**2
    memory = bytes_in(parts) + (0 if host.is_gpu else PROCESS_BYTES + bytes_of_sites * (bytes_of_sites <= MAX_CACHE_BYTES))
    if host.name != HERE:  # there the measured steps had it
        host = replace(host, efficiency=host.efficiency / (CHECKPOINTED if parts == 1 else IN_PARTS if parts else 1))
    options = {"backbone": row.backbone, "image_size": cropped, "recipe": recipe, "cached": bytes_of_sites <= MAX_CACHE_BYTES}
    def hours(workloads: Sequence[Workload]) -> float:
        return (notebook_seconds + _seconds(workloads, host=host, **options)) / 3600
    workloads = cost.training_workloads(size, values, adapted_passes=cost.adapted_passes(size, host, image_size))
    notebooks = [[each for each in workloads if each.part not in ("controls", "prediction")]]
    if training.pretrain_epochs and not row.name.endswith(PLAIN):
        notebooks.append([each for each in workloads if each.part == "controls"])
    row = replace(row, batch=f"{batch_size} of {largest} px", memory=memory, parts=parts, hours=sum(map(hours, notebooks)),
                  sessions=sum(ceil(hours(each) / session_hours) for each in notebooks))
    where = f"a card of {host.name} has {host.memory / 1e9:.0f} GB" if host.is_gpu else f"{host.memory / 1e9:.1f} GB are free"
    if bytes_in(parts) > capacity:
        what = f"a {row.backbone} needs {bytes_in(parts) / 1e9:.1f} GB for batches of {batch_size} sites of {largest} px, and {where}"
        if wanted is False and bytes_in(fitting_parts(capacity, batch_size, bytes_in)) <= capacity:
            return replace(row, problem=what, cure="set machine.gradient_checkpointing: auto")
        sites = batch_size
        while sites > 2 and bytes_in(0 if wanted is False else 1, sites) > capacity:
            sites //= 2
        return replace(row, problem=what, cure=f"set training.batch_size: {sites}, or smaller images (augmentation.progressive_sizes)")
    if parts and recipe.machine.compile:
        what = f"a {row.backbone} needs {bytes_in(0) / 1e9:.1f} GB for batches of {batch_size} sites of {largest} px, {where}, and a compiled network is not checkpointed"
        return replace(row, problem=what, cure="set machine.compile: false, or lower training.batch_size")
    return row


def plate_sites(recipe: Recipe, size: DatasetSize) -> int:
    """The most sites of a plate that training batches are taken from: its treatments, or the controls on which a network is pretrained."""
    on_controls = recipe.training.pretrain_epochs > 0 or recipe.wells.classes == "all"
    return max(int(size.plate), SITES_A_WELL * CONTROLS // PLATES * on_controls)


def _prediction(recipe: Recipe, host: Host, size: DatasetSize, image_size: int, *, backbone: str, first: bool, final: bool) -> float:
    """Seconds of the prediction by one network, and by its weights before the last epochs where there are such.

    Experiments are scored whole: with a random split, in which each has held-out wells, those of the training too. Prototypes need the
    embeddings of all labelled sites.
    """
    if recipe.wells.split == "random":
        size = replace(size, held_out=size.held_out + size.train)
    passes = cost.adapted_passes(size, host, image_size)
    def workload(networks: int) -> Workload:
        return cost.prediction_workloads(size, recipe.prediction, networks=networks, adapted_passes=passes, tests_answered=bool(recipe.preset))
    both, alone, more = workload(2), workload(1), 1 + (final and recipe.training.final_epochs > 0)
    further = Workload("prediction", 0, both.inferred - alone.inferred, both.reads - alone.reads)
    workloads = [alone] * first + [further] * (more - first)
    if recipe.prediction.prototype_weight and recipe.wells.split != "random":
        workloads.append(Workload("prediction", 0, more * passes * size.train, more * size.train))
    return _seconds(workloads, host=host, backbone=backbone, image_size=image_size, recipe=recipe)


def _seconds(workloads: Sequence[Workload], *, host: Host, backbone: str, image_size: int, recipe: Recipe, cached: bool = False) -> float:
    """The time of some work: images are read by `machine.num_workers` threads beside it, or without such in turn with it; cached ones are not counted."""
    source = PACKED if recipe.wells.packed_size or (recipe.data and is_store(environment.data_folder(recipe.data))) else PNG
    if len({each.part in cost.ONE_CARD_PARTS for each in workloads}) > 1:  # they are read by the threads of one process
        parts = [[each for each in workloads if (each.part in cost.ONE_CARD_PARTS) == one_card] for one_card in (False, True)]
        return sum(_seconds(part, host=host, backbone=backbone, image_size=image_size, recipe=recipe, cached=cached) for part in parts)
    needed = cost.estimate(workloads, host, source, backbone=backbone, image_size=image_size)
    if cached:
        return needed.compute
    workers, cards = recipe.machine.num_workers, 1 if workloads and workloads[0].part in cost.ONE_CARD_PARTS else host.cards
    if host.loader:
        reading = sum(workload.reads for workload in workloads) / host.loader
        return max(reading, needed.compute) if workers else reading + needed.compute
    decode = needed.decode * host.cores / min(host.cores, cards * max(1, workers))
    return max(needed.read, decode, needed.compute) if workers else max(needed.read, decode + needed.compute)


def gpu_host(gpus: Sequence[str]) -> Host | None:
    """The machine with these GPUs, by their names from nvidia-smi, if `cost.MACHINES` has their kind."""
    host = next((host for host in cost.MACHINES.values() if gpus and host.name.split()[0] in gpus[0].replace("-", " ").split()), None)
    if host is None or len(gpus) == host.cards:
        return host
    return replace(host, cards=len(gpus), name=f"{host.name.split()[0]}{f' x {len(gpus)}' if len(gpus) > 1 else ''}")


# The page of the recipes.


def recipes_table(recipes: Mapping[str, Recipe], *, machine: str = "t4x2") -> str:
    """What recipes for real plates, by name, need on a machine, as a Markdown table. It stands in papermill_params/README.md."""
    rows = [f"| recipe | networks | GPU memory | hours on {cost.MACHINES[machine].name} | sessions | weeks of quota |", "|---|---|---|---:|---:|---:|"]
    for name, recipe in recipes.items():
        needed = forecast(recipe, machine)
        kinds = Counter(network.backbone for network in needed.networks)
        memory = max(needed.networks, key=lambda network: network.memory)
        networks = ", ".join(f"{count} {backbone}" for backbone, count in kinds.items())
        rows.append(f"| `{name}` | {networks} | {_memory(memory)} | {needed.hours:.0f} | {needed.sessions} | {needed.weeks:.1f} |")
    return "\n".join(rows) + "\n"

"""The cost of a recipe: the number of sites through networks times the time of a site, measured here or estimated for other machines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import ceil
from typing import Any

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cellsignal.decide.settings import PredictionSettings
from cellsignal.learn.networks.batchnorm import BYTES_PER_PIXEL, CPU_BATCH_PIXELS, GPU_BATCH_PIXELS, REFINEMENTS
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.tasks import RXRX1

# The work of a network: operations and memory traffic of a site, counted on the meta device.


EPOCHS = ("pretrain_epochs", "head_epochs", "epochs", "final_epochs")
COUNTED_BATCH = 4  # of the sites that are counted; a batch's constant part, the weights, is divided by it as in training by small ones


@dataclass(frozen=True)
class Work:
    """Of one site: each operator's floating-point operations and the numbers that it reads and writes, as they come."""

    operators: tuple[tuple[float, float], ...]

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiplication and an addition are two."""
        return sum(flops for flops, _ in self.operators)

    @property
    def numbers(self) -> float:
        """Numbers read and written, were each operator to begin and end in memory, as eager ones do."""
        return sum(numbers for _, numbers in self.operators)

    def seconds(self, flops: float, bandwidth: float, *, width: int) -> float:
        """The least time on a machine of so many operations and bytes a second, in numbers of `width` bytes.

        Every operator takes what its arithmetic or its traffic takes, whichever is more: the roofline (Williams et al. 2009).
        """
        return sum(max(operations / flops, width * numbers / bandwidth) for operations, numbers in self.operators)


@cache
def count_work(backbone: str, image_size: int, *, channels: int = len(RXRX1.channels), classes: int = 1108) -> tuple[Work, Work]:
    """The work of a site in inference, and in training (forwards and backwards, without the optimiser)."""
    with torch.device("meta"):
        model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes)
        images = torch.empty(COUNTED_BATCH, channels, image_size, image_size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _OperatorCounter() as inference:
        model.eval().classify(model.embed(images))
    with _OperatorCounter() as training:
        model.train().classify(model.embed(images)).sum().backward()
    return inference.work(), training.work()


def count_weights(backbone: str, *, channels: int = len(RXRX1.channels), classes: int = 1108) -> int:
    """How many weights a network has."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).parameters())


class _OperatorCounter(TorchDispatchMode):
    """Records every operator that runs within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[float, float]] = []

    def __torch_dispatch__(self, operator: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        out = operator(*args, **kwargs)
        if not _is_view(operator):
            count: Callable | None = flop_registry.get(operator._overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            self.operators.append((flops / COUNTED_BATCH, (_numbers(args) + _numbers(kwargs.values()) + _numbers([out])) / COUNTED_BATCH))
        return out

    def work(self) -> Work:
        """The counted operators."""
        return Work(tuple(self.operators))


def _is_view(operator: Any) -> bool:
    """Whether an operator returns a view of its input."""
    returns = operator._schema.returns
    return any(value.alias_info is not None and not value.alias_info.is_write for value in returns)


def _numbers(values: Any) -> int:
    """Numbers in all tensors among some values."""
    leaves = torch.utils._pytree.tree_leaves(list(values))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))


QUOTA_HOURS, SESSION_HOURS = 30.0, 11.0  # of GPU a week on Kaggle, and of one session there
EFFICIENCY = 0.5  # of the roofline, where nobody measured: an assumption
MULTI_GPU_EFFICIENCY = 0.95  # of a card's speed when several train together, where nobody measured: an assumption
SCALES = (1, 10, 100)


@dataclass(frozen=True)
class DatasetSize:
    """Number of sites of each kind: treatments in training, held-out and test wells, and controls."""

    train: float
    held_out: float
    test: float
    controls: float
    controls_held_out: float
    plate: float  # sites in one scope of statistics

    @property
    def controls_share(self) -> float:
        """Control sites for each treatment site, which the plates of all experiments have about equally."""
        if self.held_out and self.controls_held_out:
            return self.controls_held_out / self.held_out
        return self.controls / self.train if self.train else 0.0

    def times(self, factor: float) -> "DatasetSize":
        """So many times as many plates."""
        return DatasetSize(*(factor * count for count in list(vars(self).values())[:-1]), self.plate)


# Two sites a well: 36,515 treatment wells in train.csv, of which one experiment of each cell type is held out (4 x 1,107), 19,897 in
# test.csv, 4,097 control wells in 33 training experiments; 277 treatments a plate.
RXRX1_SIZE = DatasetSize(train=2 * 32_087, held_out=2 * 4_428, test=2 * 19_897, controls=2 * 3_600, controls_held_out=2 * 497, plate=2 * 277)


@dataclass(frozen=True)
class Workload:
    """Sites in one part of a run: trained on, inferred and read; `image_size` in px, None as stored. ONE_CARD_PARTS use one card."""

    part: str
    trained: float
    inferred: float
    reads: float
    image_size: int | None = None


ONE_CARD_PARTS = ("labelling", "prediction")  # the main process of a training labels alone, and prediction uses one card


def training_workloads(data_set: DatasetSize, recipe: Mapping[str, Any], *, adapted_passes: int = 1, **prediction: Any) -> list[Workload]:
    """The workloads of a recipe, given by dotted key (0 epochs where it names none); `prediction`: parameters of `prediction_workloads`.

    Held-out sites are scored after every epoch. Members of an ensemble are assumed to be as large as the first network.
    """
    pretrain_epochs, head_epochs, epochs, final_epochs = (recipe.get(f"training.{name}", 0) for name in EPOCHS)
    pseudo_epochs, pseudo_share, pseudo_increment = (recipe.get(f"training.pseudo_label_{name}", 0) for name in ("epochs", "share", "increment"))
    classes, sizes = recipe.get("wells.classes", "treatments"), recipe.get("augmentation.progressive_sizes", ())
    networks = 1 + len(recipe.get("network.ensemble", ()))
    trainings = networks + recipe.get("training.ablate_virtual_batch", False)  # the network without a virtual batch is trained once more from the same pretraining
    training_sites = data_set.train + (data_set.controls + data_set.controls_held_out) * (classes == "all")
    workloads = [Workload("controls", pretrain_epochs * data_set.controls * networks, pretrain_epochs * data_set.controls_held_out * networks,
                pretrain_epochs * (data_set.controls + data_set.controls_held_out) * networks)]
    workloads.append(Workload("head", 0, trainings * head_epochs * (training_sites + data_set.held_out), trainings * head_epochs * (training_sites + data_set.held_out)))
    for size in sizes or (None,):
        epochs_per_size = trainings * epochs / len(sizes or (None,))
        workloads.append(Workload("whole", epochs_per_size * training_sites, 0, epochs_per_size * training_sites, size))
    workloads.append(Workload("held out", 0, trainings * epochs * data_set.held_out, trainings * epochs * data_set.held_out))
    pseudo_labelled = sum(min(1.0, pseudo_share + step * pseudo_increment) for step in range(pseudo_epochs)) * data_set.test
    workloads.append(Workload("pseudo-labels", trainings * pseudo_labelled, 0, trainings * pseudo_labelled))
    # Each labelling also scores the held-out sites, for the temperature, and the controls on both if they were learnt from.
    with_controls = 1 + (classes == "all") * data_set.controls_share
    scored = trainings * pseudo_epochs * (data_set.test + data_set.held_out) * with_controls
    workloads.append(Workload("labelling", 0, scored * adapted_passes, scored))
    final_sites = networks * final_epochs * (training_sites + data_set.held_out)
    workloads.append(Workload("final", final_sites, 0, final_sites))
    settings = PredictionSettings(**{key.partition(".")[2]: value for key, value in recipe.items() if key.startswith("prediction.")})
    workloads.append(prediction_workloads(data_set, settings, networks=trainings + networks * (final_epochs > 0), adapted_passes=adapted_passes, **prediction))
    return [workload for workload in workloads if workload.trained or workload.inferred]


def prediction_workloads(data_set: DatasetSize, settings: PredictionSettings, *, networks: int, adapted_passes: int = 1,
                         tests_answered: bool = False) -> Workload:
    """The prediction: every kind of statistics by the first network, only the chosen one by the others; sites are decoded once a network.

    Only sites with known answers are worth the passes of `batch` where that is a mere rung: held-out ones, and the test's where
    `tests_answered`.
    """
    sites, statistics, passes, views = data_set.held_out + data_set.test, settings.statistics, settings.num_batch_sizes, settings.tta_views
    passes_of = {"running": 1, "batch": passes, **dict.fromkeys(("adapted", "plate_with_controls", "controls", "auto"), adapted_passes)}
    first_network = sites * (passes_of["running"] + passes_of["adapted"]) + passes * (sites if statistics == "batch" or tests_answered else data_set.held_out)
    other_networks = (networks - 1) * sites * passes_of[statistics] + networks * (views - 1) * sites * passes_of[statistics]
    return Workload("prediction", 0, first_network + other_networks, networks * sites)


@dataclass(frozen=True)
class Host:
    """A machine: cards, of each the fp16 matrix rate (operations/s), bandwidth (bytes/s), memory (bytes); cores; disk (bytes/s).

    Without cards (`is_gpu` false) `memory` is that of the machine, 0 where it does not matter.
    """

    name: str
    cards: int
    flops: float
    bandwidth: float
    memory: float
    cores: int
    disk: float = 5e8
    width: int = 2  # bytes of a number
    efficiency: float = EFFICIENCY  # of training: the share of the roofline that it reaches
    inference_efficiency: float = EFFICIENCY  # the same of inference
    # Where they were measured, sites a second trained and inferred on, by part and size of a workload; and sites a second read.
    rates: Mapping[tuple[str, int | None], tuple[float, float]] = field(default_factory=dict)
    loader: float = 0.0
    fp32_flops: float = 0.0  # the rate of convolutions in fp32, which are TF32 where the card has it
    is_gpu: bool = True

    @property
    def pixels(self) -> float:
        """How many image pixels one batch may have for exact statistics (`batchnorm.max_batch_pixels`)."""
        return min(GPU_BATCH_PIXELS, 0.75 * self.memory / BYTES_PER_PIXEL) if self.is_gpu else CPU_BATCH_PIXELS


# Peaks without sparsity: NVIDIA's data sheets of T4 (2019: 65 TFLOPS fp16, 320 GB/s), L4 (2023: 242 TFLOPS fp16 with sparsity, half
# without, 300 GB/s), A100 SXM 40 GB (2021: 312 TFLOPS, 1,555 GB/s) and H100 SXM (2023: 1,979 TFLOPS with sparsity, half without,
# 3.35 TB/s). In fp32 the T4 has 8.1 TFLOPS; the others have TF32, at half the rate of fp16. Kaggle gives two T4s 4 cores, Colab 12 to
# L4 and A100 and 26 to H100. The disks' 0.5 GB/s are an assumption.
HOSTS = (
    Host("T4 x 2", 2, 65e12, 320e9, 15e9, 4, fp32_flops=8.1e12),
    Host("L4", 1, 121e12, 300e9, 23e9, 12, fp32_flops=60.5e12),
    Host("A100", 1, 312e12, 1555e9, 40e9, 12, fp32_flops=156e12),
    Host("H100", 1, 989.5e12, 3350e9, 80e9, 26, fp32_flops=494.75e12),
)
KAGGLE = "T4 x 2"
# By the names that commands take. NVIDIA's data sheet of the P100 (PCIe, 2016): 18.7 TFLOPS fp16, 9.3 fp32 and 732 GB/s; Kaggle gives T4s instead today.
MACHINES = {"t4x2": HOSTS[0], "p100": Host("P100", 1, 18.7e12, 732e9, 16e9, 4, fp32_flops=9.3e12), "l4": HOSTS[1], "a100": HOSTS[2], "h100": HOSTS[3]}


@dataclass(frozen=True)
class Source:
    """Where sites come from: bytes of one on the disk, and sites that one core reads and decodes a second, at `image_size` px."""

    name: str
    site_bytes: float
    per_core: float
    image_size: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run that its parts would take alone; reading, decoding and computing go on at the same time."""

    read: float
    decode: float
    compute: float

    @property
    def seconds(self) -> float:
        """The time of the slowest part."""
        return max(vars(self).values())

    @property
    def bottleneck(self) -> str:
        """The slowest part."""
        return max(vars(self), key=vars(self).__getitem__)


def estimate(workloads: Sequence[Workload], host: Host, source: Source, *, backbone: str, image_size: int) -> Estimate:
    """The time of workloads on a host, for network inputs of `image_size` px."""
    compute = 0.0
    for workload in workloads:
        cards = 1.0 if host.cards == 1 or workload.part in ONE_CARD_PARTS else host.cards * MULTI_GPU_EFFICIENCY
        if rates := host.rates.get((workload.part, workload.image_size)):
            compute += (workload.trained / rates[0] + workload.inferred / rates[1]) / cards
            continue
        inference_seconds, training_seconds = (work.seconds(host.flops, host.bandwidth, width=host.width)
                        for work in count_work(backbone, workload.image_size or image_size))
        compute += (workload.inferred * inference_seconds / host.inference_efficiency + workload.trained * training_seconds / host.efficiency) / cards
    reads = sum(workload.reads for workload in workloads)
    scale = (image_size / source.image_size) ** 2
    return Estimate(reads * source.site_bytes * scale / host.disk, reads * scale / source.per_core / host.cores, compute)


def adapted_passes(data_set: DatasetSize, host: Host, image_size: int) -> int:
    """Passes per site for adapted statistics: one if a plate is one batch, else one plus the refinements."""
    return 1 if data_set.plate * image_size**2 <= host.pixels else 1 + REFINEMENTS


def page(recipe: Mapping[str, Any], sources: Sequence[Source], *, backbone: str, image_size: int, hosts: Sequence[Host] = HOSTS) -> pd.DataFrame:
    """Hours and bottleneck of a recipe on RxRx1 on every host, from every source, at every scale.

    `recipe`: as `training_workloads` takes it. Columns host, source, scale, hours, bottleneck, read, decode, compute (hours
    alone), quota_weeks and sessions (of Kaggle's, None elsewhere).
    """
    return pd.DataFrame(_page(recipe, sources, backbone=backbone, image_size=image_size, hosts=hosts))


def _page(recipe: Mapping[str, Any], sources: Sequence[Source], *, backbone: str, image_size: int, hosts: Sequence[Host]) -> Iterator[dict[str, Any]]:
    for host in hosts:
        passes = adapted_passes(RXRX1_SIZE, host, image_size)
        workloads = training_workloads(RXRX1_SIZE, recipe, adapted_passes=passes)
        for source in sources:
            seconds_of = estimate(workloads, host, source, backbone=backbone, image_size=image_size)
            for scale in SCALES:
                hours = {part: scale * seconds / 3600 for part, seconds in vars(seconds_of).items()}
                total = max(hours.values())
                quota = (total / QUOTA_HOURS, ceil(total / SESSION_HOURS)) if host.name == KAGGLE else (None, None)
                labels = {"host": host.name, "source": source.name, "scale": scale, "hours": total, "bottleneck": seconds_of.bottleneck}
                yield {**labels, **hours, **dict(zip(("quota_weeks", "sessions"), quota, strict=True))}


def measured(host: Host, *, trained_per_second: float, inferred_per_second: float, backbone: str, image_size: int, classes: int = 1108) -> Host:
    """The host with the shares of its roofline that training and prediction had there."""
    inference_seconds, training_seconds = (work.seconds(host.flops, host.bandwidth, width=host.width) for work in count_work(backbone, image_size, classes=classes))
    return replace(host, efficiency=training_seconds * trained_per_second, inference_efficiency=inference_seconds * inferred_per_second)

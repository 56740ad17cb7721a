"""What a recipe will cost: sites through networks, counted, times what a site takes, measured here or worked out for other machines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import pandas as pd

from cellsignal.bench.work import work
from cellsignal.learn.batchnorm import EXACT_PIXELS, GPU_PIXELS, PIXEL_BYTES, REFINEMENTS

QUOTA_HOURS, SESSION_HOURS = 30.0, 11.0  # of GPU a week on Kaggle, and of one session there
EFFICIENCY = 0.5  # of the roofline, where nobody measured: an assumption
PAIR = 0.95  # of a card's speed when several train together, where nobody measured: an assumption
SCALES = (1, 10, 100)


@dataclass(frozen=True)
class Screen:
    """How many sites of each kind there are: treatments to learn from, held out and to be tested, controls beside each."""

    taught: float
    watched: float
    tested: float
    controls: float
    controls_watched: float
    plate: float  # sites in one scope of statistics

    def times(self, factor: float) -> "Screen":
        """So many times as many plates."""
        return Screen(*(factor * count for count in list(vars(self).values())[:-1]), self.plate)


# Two sites a well: 36,515 treatment wells in train.csv, of which one experiment of each cell type is held out (4 x 1,107), 19,897 in
# test.csv, 4,097 control wells in 33 training experiments; 277 treatments a plate.
RXRX1 = Screen(taught=2 * 32_087, watched=2 * 4_428, tested=2 * 19_897, controls=2 * 3_600, controls_watched=2 * 497, plate=2 * 277)


def screen_of(sites: pd.DataFrame) -> Screen:
    """The counts of a table of sites with columns split and well_type."""
    treatment = sites["well_type"] == "treatment"
    of = {split: ((sites["split"] == split) & treatment).sum() for split in ("train", "held_out", "test")}
    beside = {split: ((sites["split"] == split) & ~treatment).sum() for split in ("train", "held_out")}
    plate = sites[treatment].groupby(["experiment", "plate"]).size().max()
    return Screen(of["train"], of["held_out"], of["test"], beside["train"], beside["held_out"], plate)


@dataclass(frozen=True)
class Lot:
    """Sites on their way through networks in one part of a run: learnt from, only looked at, and read; px, None as stored."""

    part: str
    learnt: float
    seen: float
    reads: float
    image_size: int | None = None


def course(screen: Screen, *, pretrain_epochs: int = 0, head_epochs: int = 0, epochs: int = 0, final_epochs: int = 0,
           classes: str = "treatments", ensemble: Sequence[str] = (), compare_batches: bool = False, sizes: Sequence[int] = (),
           pseudo_epochs: int = 0, pseudo_share: float = 0.0, pseudo_step: float = 0.0, **prediction: Any) -> list[Lot]:
    """All that a recipe sends through networks, in the names of its parameters; `prediction`: those of `predicted`.

    Held-out sites are scored after every epoch. Members of an ensemble are taken for as large as the first network.
    """
    networks = 1 + len(ensemble)
    again = networks + compare_batches  # the network without a virtual batch is trained once more from the same pretraining
    taught = screen.taught + (screen.controls + screen.controls_watched) * (classes == "all")
    lots = [Lot("controls", pretrain_epochs * screen.controls * networks, pretrain_epochs * screen.controls_watched * networks,
                pretrain_epochs * (screen.controls + screen.controls_watched) * networks)]
    lots.append(Lot("head", 0, again * head_epochs * (taught + screen.watched), again * head_epochs * (taught + screen.watched)))
    for size in sizes or (None,):
        share = again * epochs / len(sizes or (None,))
        lots.append(Lot("whole", share * taught, 0, share * taught, size))
    lots.append(Lot("held out", 0, again * epochs * screen.watched, again * epochs * screen.watched))
    named = sum(min(1.0, pseudo_share + step * pseudo_step) for step in range(pseudo_epochs)) * screen.tested
    asked = pseudo_epochs * screen.tested
    lots.append(Lot("pseudo-labels", again * named, again * asked, again * (named + asked)))
    everything = networks * final_epochs * (taught + screen.watched)
    lots.append(Lot("final", everything, 0, everything))
    lots.append(predicted(screen, networks=again + networks * (final_epochs > 0), **prediction))
    return [lot for lot in lots if lot.learnt or lot.seen]


def predicted(screen: Screen, *, networks: int, statistics: str = "adapted", passes: int = 1, views: int = 1, adapted_passes: int = 1,
              tests_answered: bool = False) -> Lot:
    """The prediction: every kind of statistics by the first network, only the chosen one by the others; sites are decoded once a network.

    Only sites with known answers are worth the passes of `batch` where that is a mere rung: held-out ones, and the test's where
    `tests_answered`.
    """
    asked = screen.watched + screen.tested
    each = {"running": 1, "batch": passes, "adapted": adapted_passes}
    first = asked * (each["running"] + each["adapted"]) + passes * (asked if statistics == "batch" or tests_answered else screen.watched)
    rest = (networks - 1) * asked * each[statistics] + networks * (views - 1) * asked * each[statistics]
    return Lot("prediction", 0, first + rest, networks * asked)


@dataclass(frozen=True)
class Host:
    """A machine: cards, of each the fp16 matrix rate (operations/s), bandwidth (bytes/s), memory (bytes); cores; disk (bytes/s)."""

    name: str
    cards: int
    flops: float
    bandwidth: float
    memory: float
    cores: int
    disk: float = 5e8
    width: int = 2  # bytes of a number
    efficiency: float = EFFICIENCY  # of learning: the share of the roofline that it reaches
    looking: float = EFFICIENCY  # the same of sites that are only looked at

    @property
    def pixels(self) -> float:
        """How many image pixels one batch may have for exact statistics (`batchnorm.exact_pixels`)."""
        return min(GPU_PIXELS, 0.75 * self.memory / PIXEL_BYTES) if self.memory else EXACT_PIXELS


# Peaks without sparsity: NVIDIA's data sheets of T4 (2019: 65 TFLOPS fp16, 320 GB/s), L4 (2023: 242 TFLOPS fp16 with sparsity, half
# without, 300 GB/s), A100 SXM 40 GB (2021: 312 TFLOPS, 1,555 GB/s) and H100 SXM (2023: 1,979 TFLOPS with sparsity, half without,
# 3.35 TB/s). Kaggle gives two T4s 4 cores, Colab 12 to L4 and A100 and 26 to H100. The disks' 0.5 GB/s are an assumption.
HOSTS = (
    Host("T4 x 2", 2, 65e12, 320e9, 15e9, 4),
    Host("L4", 1, 121e12, 300e9, 23e9, 12),
    Host("A100", 1, 312e12, 1555e9, 40e9, 12),
    Host("H100", 1, 989.5e12, 3350e9, 80e9, 26),
)
KAGGLE = "T4 x 2"


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
        """What the slowest takes."""
        return max(vars(self).values())

    @property
    def bottleneck(self) -> str:
        """Which that is."""
        return max(vars(self), key=vars(self).__getitem__)


def estimate(lots: Sequence[Lot], host: Host, source: Source, *, backbone: str, image_size: int, classes: int = 1108) -> Estimate:
    """What lots of sites take on a host, whose network sees images of `image_size` px."""
    compute = 0.0
    for lot in lots:
        seen, learnt = (each.seconds(host.flops, host.bandwidth, width=host.width)
                        for each in work(backbone, lot.image_size or image_size, classes=classes))
        compute += lot.seen * seen / host.looking + lot.learnt * learnt / host.efficiency
    reads = sum(lot.reads for lot in lots)
    scale = (image_size / source.image_size) ** 2
    cards = host.cards * (PAIR if host.cards > 1 else 1)
    return Estimate(reads * source.site_bytes * scale / host.disk, reads * scale / source.per_core / host.cores, compute / cards)


def adapted_passes(screen: Screen, host: Host, image_size: int) -> int:
    """How often a site is looked at for adapted statistics: once where a plate is one batch, else with refinements."""
    return 1 if screen.plate * image_size**2 <= host.pixels else 1 + REFINEMENTS


def page(recipe: Mapping[str, Any], sources: Sequence[Source], *, backbone: str, image_size: int, hosts: Sequence[Host] = HOSTS,
         screen: Screen = RXRX1, scales: Sequence[float] = SCALES) -> pd.DataFrame:
    """Hours and bottleneck of a recipe on every host, from every source, at every scale.

    `recipe`: the parameters that `course` knows. Columns host, source, scale, hours, bottleneck, read, decode, compute (hours
    alone), quota_weeks and sessions (of Kaggle's, None elsewhere).
    """
    return pd.DataFrame(_page(recipe, sources, backbone=backbone, image_size=image_size, hosts=hosts, screen=screen, scales=scales))


def _page(recipe: Mapping[str, Any], sources: Sequence[Source], *, backbone: str, image_size: int, hosts: Sequence[Host],
          screen: Screen, scales: Sequence[float]) -> Iterator[dict[str, Any]]:
    for host in hosts:
        passes = adapted_passes(screen, host, image_size)
        lots = course(screen, **recipe, adapted_passes=passes)
        for source in sources:
            once = estimate(lots, host, source, backbone=backbone, image_size=image_size)
            for scale in scales:
                hours = {part: scale * seconds / 3600 for part, seconds in vars(once).items()}
                total = max(hours.values())
                quota = (total / QUOTA_HOURS, ceil(total / SESSION_HOURS)) if host.name == KAGGLE else (None, None)
                named = {"host": host.name, "source": source.name, "scale": scale, "hours": total, "bottleneck": once.bottleneck}
                yield {**named, **hours, **dict(zip(("quota_weeks", "sessions"), quota, strict=True))}


def measured(host: Host, *, learnt_per_second: float, seen_per_second: float, backbone: str, image_size: int, classes: int = 1108) -> Host:
    """The host with the shares of its roofline that training and prediction had there."""
    seen, learnt = (each.seconds(host.flops, host.bandwidth, width=host.width) for each in work(backbone, image_size, classes=classes))
    return replace(host, efficiency=learnt * learnt_per_second, looking=seen * seen_per_second)

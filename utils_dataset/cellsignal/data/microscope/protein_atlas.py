"""A simulated Protein Atlas: real frequencies of label sets, four stains, and rendered images."""

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.data.images.reader import write_channel
from cellsignal.data.microscope import optics
from cellsignal.data.microscope.cell_types import CELL_TYPES, TRAITS, stream, traits
from cellsignal.data.microscope.cells import Territory, draw_territory, organelles
from cellsignal.data.microscope.proteins import by_component, chromosomes, dividing, microtubules, pattern, spindle
from cellsignal.data.microscope.workdir import WORKING_FOLDER, ParallelMap, worker_folder
from cellsignal.data.tables.labelled_sites import SAMPLE, SOLUTION, TRAIN, Labels, read_site_tables, write_labels
from cellsignal.errors import InputError
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import PROTEIN_ATLAS

# One site of the simulated Protein Atlas under its four stains: microtubules, protein, nucleus, endoplasmic reticulum.


CELL_LINES = ("U2OS", "RPE", "HUVEC")  # cell lines; the atlas has 27
SPINDLE = 17  # the class that only cells in division show
DIVIDING = 0.1  # share of the other sites that show such cells too
VARIETY = 0.5  # how far the cells of a site differ from their line's, in units of one siRNA's effect


@dataclass(frozen=True)
class Subject:
    """One site to render; `twin_of` is the id that its image follows from."""

    seed: int
    dataset: str
    id_code: str
    twin_of: str
    labels: Labels
    image_size: int
    pixel_size: float


def render_site(subject: Subject) -> np.ndarray:
    """The image of a site, uint8[4, H, W]."""
    rng = stream(subject.seed, "atlas", subject.twin_of)
    cell_type = CELL_TYPES[CELL_LINES[int(rng.integers(len(CELL_LINES)))]]
    factors = traits(VARIETY * rng.standard_normal(len(TRAITS)))
    density = float(np.exp(0.15 * rng.standard_normal()))
    territory = draw_territory(rng, subject.image_size, pixel_size=subject.pixel_size, cell_type=cell_type, traits=factors, density=density)
    parts = by_component(organelles(rng, territory, cell_type=cell_type, traits=factors))
    divides = SPINDLE in subject.labels or rng.random() < DIVIDING
    parts["dividing"] = dividing(rng, territory) * np.float32(divides)
    light = _stains(rng, territory, parts, labels=subject.labels)
    return optics.expose(rng, light, optics=_optics(rng), background=np.full(4, 1.5), pixel_size=subject.pixel_size)


def _stains(rng: np.random.Generator, territory: Territory, parts: dict[str, np.ndarray], *, labels: Labels) -> np.ndarray:
    """Light float32[4, H, W] before the microscope, in 8-bit units."""
    cells = parts["dividing"]
    threads = microtubules(rng, territory, parts) * territory.coverage
    nucleus = parts["nucleus"] * (1 - cells) + np.float32(1.6) * chromosomes(territory, cells)
    red = np.float32(75) * (threads * (1 - np.float32(0.7) * cells) + spindle(territory, cells)) + np.float32(14) * parts["body"]
    protein = np.float32(6) * parts["body"] + np.float32(2) * parts["nucleus"]  # what an antibody binds to besides
    for label in labels:
        strength = np.float32(150 * rng.uniform(0.45, 1.0))
        protein = protein + strength * np.minimum(pattern(label, rng, territory, parts=parts), np.float32(1.4))
    return np.stack([red, protein, np.float32(130) * nucleus, np.float32(80) * parts["er"]]).astype(np.float32)


def _optics(rng: np.random.Generator) -> optics.Optics:
    """Confocal images are sharp and evenly lit; their brightness is set by hand, site by site."""
    bleed = np.eye(4, dtype=np.float32) + np.float32(0.02) * (1 - np.eye(4, dtype=np.float32))
    return optics.Optics(
        gain=np.exp(0.3 * rng.standard_normal(4)),
        offset=0.5 * rng.random(4),
        blur=0.6 + 0.4 * rng.random(4),
        vignette=0.1 * rng.random(4),
        centre=0.5 + 0.1 * (rng.random(2) - 0.5),
        bleed=bleed,
    )


# How often each set of labels occurs among the 31,072 training rows of the Protein Atlas competition.


# A line: how often, and the sets that occur so often, class numbers joined by "+".
_COUNTS = """
2414: 0
1998: 0+25
1653: 23
1470: 25
1163: 7
1077: 4
1058: 21
996: 0+2
983: 5
808: 2
769: 0+21
668: 0+7
654: 3
622: 6
601: 11
572: 0+23
522: 19
484: 14
479: 0+5
425: 21+25
395: 0+19
383: 0+3
350: 5+25
317: 0+1
314: 18
301: 2+25
271: 1
269: 4+25
257: 0+2+25
232: 12
213: 22
206: 0+21+25
192: 0+22
173: 7+25
157: 13
153: 0+18
150: 0+11
144: 0+7+25
143: 0+5+25 18+25
136: 19+25
134: 26
132: 3+25
129: 0+14
128: 2+23
122: 24
102: 0+1+25
101: 1+25 23+25
98: 20
96: 0+3+25
91: 0+19+25 14+25
84: 0+12
81: 0+26
80: 6+25
76: 4+21
75: 0+2+7 0+4 0+16 2+21
72: 21+22
71: 0+18+25 2+7
70: 0+16+25
68: 12+25
67: 0+13
66: 11+25
64: 5+21
61: 0+23+25
60: 1+2
57: 13+21
55: 12+21
54: 0+2+23
52: 0+6 0+7+21
50: 13+25
45: 0+1+2
44: 4+23 5+7
42: 0+24
41: 0+2+21
40: 2+14
38: 0+12+25 0+22+25 7+21
37: 2+6+25
36: 0+20 2+11 22+25
35: 0+5+21 24+25 25+26
32: 0+13+25
31: 0+11+25 1+23 8
30: 14+16
29: 2+6 3+23 16+25
28: 0+2+21+25
27: 0+2+22 5+23 16
26: 1+4 3+7
25: 0+5+7
24: 5+24 19+23
23: 0+14+25 2+4 2+21+25 5+14 19+21
22: 6+7 6+21 12+21+25 17+25
21: 0+19+21 4+7 4+21+25
20: 0+2+5 0+7+21+25 0+12+21 1+21 2+19 21+23
19: 0+14+16 1+6 7+16
18: 0+1+21 0+2+11 0+2+11+25 2+5 2+21+23 3+21 14+16+17 18+21
17: 3+6 9 9+10 13+21+25 14+21
16: 0+2+19 4+26 11+24
15: 0+2+14 0+2+16 0+3+23 0+16+17+25 0+17+25 0+21+22 1+5 1+21+25 14+17
14: 0+6+25 0+13+21 0+16+17+18 0+17 0+20+23 2+5+25 5+11 16+21
13: 0+1+2+4 0+24+25 2+22 4+12 4+22 5+22 17+18+25
12: 0+1+13 0+7+13 0+11+19 0+18+21 2+7+25 5+19 5+21+25 13+18 19+21+25
11: 0+3+7 0+5+23 0+12+23 1+7 3+22 4+11 5+6 6+9+10 11+21 17+21 21+22+25
10: 0+3+14 0+3+19 0+5+11 0+5+19 0+7+22 2+8 2+14+25 2+23+25 4+14 4+19 4+21+22 5+12 7+21+25 12+13 12+14 18+24
  21+23+25
9: 0+1+23 0+2+12 0+5+16 0+7+12 0+16+21 0+21+23 0+25+26 2+15+16 2+18 5+18 7+19 14+16+25 14+19 14+21+25 17+18+21
8: 0+1+7 0+1+7+25 0+1+11 0+2+24 0+2+26 0+5+15 1+3 3+4 4+14+16 4+24 7+22 11+13 11+21+25 16+17+18 17+19 18+21+25
  21+25+26 22+23
7: 0+1+2+7 0+1+5 0+1+18 0+3+11 0+5+12+26 0+5+13 0+7+16 0+16+17 0+16+22 0+19+23 0+22+23 1+19 3+19 3+21+25 3+26
  4+7+25 7+14 7+18 11+22
6: 0+1+3 0+1+19 0+2+7+25 0+5+24 0+12+21+25 0+14+21 0+16+19 0+18+21+23 0+19+22 1+2+25 1+4+25 1+5+7 1+7+25
  2+4+25 2+11+25 2+12+25 2+14+17+25 2+16+21 2+19+21 3+13 3+14 4+18+21 5+14+16 6+18 6+20 11+19 12+19 13+19+25
5: 0+1+7+21 0+2+19+25 0+2+20 0+3+5+25 0+3+6+25 0+4+21 0+5+21+25 0+5+22 0+7+19 0+8 0+13+19 0+13+21+25 0+16+24
  1+3+4 1+5+25 1+11 1+12+21 2+4+7 2+16+25 3+4+25 3+5 3+11 4+5 4+13 4+18 6+21+25 6+23 7+16+19 12+21+22 14+18
  17+18 18+23 21+24 21+26
4: 0+2+3 0+2+6 0+2+13+25 0+2+18 0+3+21 0+5+27 0+7+13+25 0+7+23 0+12+13+21 0+18+22+25 2+12+21 2+24 3+8 3+23+25
  4+7+21 4+12+21 4+13+21 5+18+25 5+23+25 6+16 7+16+17 7+24 12+19+25 12+23 13+22 14+17+21 16+23 19+22 20+25
3: 0+1+2+23 0+1+21+25 0+1+22 0+2+6+16 0+2+13 0+2+19+21 0+2+23+25 0+3+22 0+6+21+25 0+14+16+17 0+14+16+25 0+15
  0+16+23 0+17+23 0+20+25 0+23+26 1+22 2+6+14 2+18+23 3+24 4+12+25 4+18+25 5+7+25 5+16 5+17 5+19+25 6+14 6+19
  7+11+14 7+13 7+21+22 7+22+25 7+23 11+14+25 11+16 11+23 13+21+22+25 14+22 16+17+25 16+18+22+25 18+22 19+22+25
  22+24 23+24
2: 0+1+2+13 0+1+5+19 0+1+6 0+1+14 0+2+7+21 0+2+12+25 0+2+16+25 0+2+18+21 0+2+22+25 0+3+5+26 0+3+13+25
  0+3+18+25 0+3+26 0+4+11 0+4+25 0+6+16 0+7+14 0+7+19+25 0+11+16 0+12+13 0+12+19 0+12+19+25 0+14+16+21 0+14+19
  0+16+17+21 0+21+26 0+22+24 0+27 1+2+5+21 1+2+7 1+2+19 1+2+21 1+2+21+25 1+4+7 1+14 1+18 1+19+21+25 2+5+6+25
  2+7+16 2+7+21+25 2+11+22 2+12 2+13 2+13+23 2+16 2+16+26 2+19+25 2+22+23 2+22+25 3+4+12+18 3+4+21+25 3+5+23
  3+6+25 3+11+25 3+16+25 3+19+25 3+21+22+25 4+6 4+7+12 4+11+19 4+16+25 4+19+21 4+20 5+13 5+26 6+7+25 6+13 6+22
  7+11 7+12+25 8+21+25 11+14 11+24+25 12+13+21 12+18 13+14 13+21+22 14+16+21 14+18+25 14+23 16+17 16+21+25
  16+22 18+25+26 19+21+23 20+23+25 21+24+25 23+27
1: 0+1+5+21 0+1+5+25 0+1+12+21 0+1+18+25 0+1+23+25 0+2+5+23 0+2+6+25 0+2+7+13+25 0+2+7+22 0+2+15 0+2+27
  0+3+7+19 0+3+16 0+3+21+23 0+3+21+26 0+5+6 0+5+12 0+5+16+25 0+6+11 0+6+19 0+7+13+22 0+7+18 0+7+22+25 0+12+16
  0+12+16+25 0+13+21+23 0+14+16+23 0+16+19+21 0+17+19+25 0+17+21 0+18+22 0+18+23 0+19+21+25 0+19+23+24 0+21+24
  1+2+7+25 1+12 1+18+25 1+22+23 1+24 2+4+26 2+5+12 2+5+22 2+7+8 2+7+22 2+11+19 2+12+23 2+16+22 2+16+23 2+17+19
  2+20 3+4+7 3+7+25 3+12 3+12+25 3+14+16 3+16 3+18 4+13+21+22+25 4+13+25 4+19+25 4+19+27 5+7+14+25 5+7+22
  5+11+25 5+12+21 5+16+25 6+12 6+12+21 7+12 7+12+21 7+14+18+21 7+17 7+17+25 7+21+24+25 7+26 11+12 11+12+23
  11+12+25 11+13+21 11+14+21 11+18 11+19+25 11+21+23 12+14+19 12+21+23 16+17+22 16+18+25 16+19+25 16+24
  19+21+22 19+23+25 20+23 27
"""


@cache
def label_sets() -> dict[tuple[int, ...], int]:
    """Count by set of class numbers, ascending in each set; the most frequent set first."""
    counts: dict[tuple[int, ...], int] = {}
    for word in _COUNTS.split():
        if word.endswith(":"):
            count = int(word[:-1])
        else:
            counts[tuple(map(int, word.split("+")))] = count
    return counts


SITES_PER_PART = 64  # sites that are rendered together


@dataclass(frozen=True)
class Preset:
    """The size and the difficulty of a simulated atlas."""

    train: int  # sites
    test: int
    image_size: int
    pixel_size: float  # native pixels (512 across a real field) per image pixel
    rarest_sites: int  # sites that show the rarest class in training; half as many in the test
    twins: int = 0  # training sites whose image is in the data a second time, under another id
    cell_types: tuple[str, ...] = ()  # whose cells are no part of the task


PRESETS = {
    "atlas-demo": Preset(train=1800, test=600, image_size=64, pixel_size=1.6, rarest_sites=12, twins=18),
    "atlas-tiny": Preset(train=120, test=48, image_size=32, pixel_size=3.0, rarest_sites=2, twins=2),
}


@dataclass(frozen=True)
class _Sites:
    """Sites to draw: id_code, labels (as text), dataset, twin_of (the id whose image it has, or its own)."""

    table: pd.DataFrame
    preset: Preset
    seed: int

    def write(self, out: Path, *, parallel_map: ParallelMap) -> None:
        """Render missing images, then write the tables."""
        _render(out, self.table, preset=self.preset, seed=self.seed, parallel_map=parallel_map)
        _write_tables(out, self.table)


def draw_atlas(preset: Preset, *, seed: int, like: Path | None, experiments: Sequence[str]) -> _Sites:
    """The sites to draw: the preset's own, or those of the tables in the folder `like`."""
    if experiments:
        raise InputError("the Protein Atlas has no experiments", where="simulate", cure="leave them out")
    sites = _draw_sites(preset, seed=seed) if like is None else _from_tables(like, seed=seed)
    return _Sites(sites, preset, seed)


def _draw_sites(preset: Preset, *, seed: int) -> pd.DataFrame:
    parts = []
    for kind, count, rarest_sites in (("train", preset.train - preset.twins, preset.rarest_sites), ("test", preset.test, preset.rarest_sites // 2)):
        labels = draw_labels(stream(seed, "labels", kind), count, rarest_sites=max(1, rarest_sites))
        ids = [_id(seed, kind, number) for number in range(count)]
        parts.append(pd.DataFrame({"id_code": ids, "labels": labels, "dataset": kind, "twin_of": ids}))
    twins = parts[0].head(preset.twins).assign(id_code=[_id(seed, "twin", number) for number in range(preset.twins)])
    table = pd.concat([parts[0], twins, parts[1]], ignore_index=True)
    return table.assign(labels=table["labels"].map(write_labels))


def _from_tables(like: Path, *, seed: int) -> pd.DataFrame:
    """The sites of real tables; unknown test labels are drawn."""
    tables = read_site_tables(like, PROTEIN_ATLAS)
    drawn_test_labels = pd.Series(draw_labels(stream(seed, "labels", "test"), len(tables.sample), rarest_sites=0), index=tables.sample)
    test_labels = drawn_test_labels if tables.solution is None else tables.solution.combine_first(drawn_test_labels)
    labels = tables.sites["labels"].where(tables.sites["dataset"] == "train", tables.sites["id_code"].map(test_labels))
    return tables.sites[["id_code", "dataset"]].assign(labels=labels.map(write_labels), twin_of=tables.sites["id_code"])


def draw_labels(rng: np.random.Generator, count: int, *, rarest_sites: int) -> list[Labels]:
    """Label sets of so many sites, as often as in the real training table, in random order.

    Drawn at even steps through the real table, so that a few hundred sites have its frequencies as well as they can.
    Classes on fewer than `rarest_sites` sites then replace the labels of sites with the most frequent class.
    """
    sets, weights = list(label_sets()), np.array(list(label_sets().values()), float)
    steps = (rng.random() + np.arange(count)) / max(count, 1)
    # Sorted by size the sets of a class lie scattered: a random order of the table gives each the same chance.
    order = rng.permutation(len(sets))
    rows = np.searchsorted(np.cumsum(weights[order] / weights.sum()), steps)
    labels_of_sites = [sets[order[min(row, len(sets) - 1)]] for row in rows]
    _raise_rare_classes(rng, labels_of_sites, sets, weights, rarest_sites=rarest_sites)
    return [labels_of_sites[i] for i in rng.permutation(count)]


def _raise_rare_classes(rng: np.random.Generator, labels_of_sites: list[Labels], sets: list[Labels], weights: np.ndarray, *, rarest_sites: int) -> None:
    """Give every class `rarest_sites` sites where possible, with label sets that occur in the real data."""
    for label in sorted(range(PROTEIN_ATLAS.classes), key=lambda label: sum(label in labels for labels in labels_of_sites)):
        with_class = [i for i, labels in enumerate(sets) if label in labels]
        chances = weights[with_class] / weights[with_class].sum()
        missing = rarest_sites - sum(label in labels for labels in labels_of_sites)
        free = [i for i, labels in enumerate(labels_of_sites) if labels == (0,)]
        for i in rng.permutation(free)[: max(missing, 0)]:
            labels_of_sites[i] = sets[with_class[int(rng.choice(len(with_class), p=chances))]]


def _id(seed: int, kind: str, number: int) -> str:
    """An id in the format of the real ones."""

    return str(uuid.UUID(bytes=hashlib.sha256(f"{seed} {kind} {number}".encode()).digest()[:16]))


def _render(out: Path, table: pd.DataFrame, *, preset: Preset, seed: int, parallel_map: ParallelMap) -> None:
    """Render the sites part by part; a part is done when its file in the working folder is there."""
    work_folder = worker_folder(out)
    for kind in ("train", "test"):
        (out / kind).mkdir(exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(table), SITES_PER_PART)):
        rows = table.iloc[start : start + SITES_PER_PART]
        subjects = tuple(
            Subject(seed, row.dataset, row.id_code, row.twin_of, tuple(map(int, row.labels.split())), preset.image_size, preset.pixel_size)
            for row in rows.itertuples()
        )
        if not (out / WORKING_FOLDER / f"part-{number}").exists():
            parts.append((number, subjects, work_folder / f"part-{number}"))
    for number, folder in progress_bar(parallel_map(_render_part, parts), total=len(parts), desc="simulate", unit="part"):
        for path in sorted(folder.rglob("*.png")):
            os.rename(path, out / path.relative_to(folder))
        files.write_text(out / WORKING_FOLDER / f"part-{number}", "")


def _render_part(work: tuple[int, tuple[Subject, ...], Path]) -> tuple[int, Path]:
    number, subjects, folder = work
    for subject in subjects:
        (folder / subject.dataset).mkdir(parents=True, exist_ok=True)
        for suffix, image in zip(PROTEIN_ATLAS.suffixes, render_site(subject)):
            write_channel(folder / subject.dataset / f"{subject.id_code}{suffix}", image)
    return number, folder


def _write_tables(out: Path, table: pd.DataFrame) -> None:
    """The competition's CSV files and the truth."""
    id_column, label_column, prediction = PROTEIN_ATLAS.id_column, PROTEIN_ATLAS.label_column, PROTEIN_ATLAS.answer_column
    train, test = (table[table["dataset"] == kind] for kind in ("train", "test"))
    sources = {id_column: "id_code", label_column: "labels"}
    for name, part in ((TRAIN, train), (SOLUTION, test)):
        _write_csv(out / name, pd.DataFrame({column: part[source] for column, source in sources.items()}))
    _write_csv(out / SAMPLE, pd.DataFrame({id_column: test["id_code"], prediction: 0}))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n"))

"""A simulated Protein Atlas: its class frequencies, which labels share a cell, four stains, and pictures to name them by."""

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal import files
from cellsignal.data.atlas import SAMPLE, SOLUTION, TRAIN, read_site_tables
from cellsignal.data.atlas_drawing import Subject, photograph
from cellsignal.data.images import write_channel
from cellsignal.data.labels import Labels, write_labels
from cellsignal.data.labelsets import label_sets
from cellsignal.data.phenotypes import stream
from cellsignal.data.workshop import WORKSHOP, SideBySide, desk, side_by_side
from cellsignal.errors import InputError
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import PROTEIN_ATLAS

PART = 64  # sites that are photographed together


@dataclass(frozen=True)
class Preset:
    """The size and the difficulty of a simulated atlas."""

    train: int  # sites
    test: int
    image_size: int
    pixel_size: float  # native pixels (512 across a real field) per image pixel
    least: int  # sites that show the rarest class in training; half as many in the test
    twins: int = 0  # training sites whose picture is in the data a second time, under another id
    cell_types: tuple[str, ...] = ()  # whose cells are no part of the task


PRESETS = {
    "atlas-demo": Preset(train=1800, test=600, image_size=64, pixel_size=1.6, least=12, twins=18),
    "atlas-tiny": Preset(train=120, test=48, image_size=32, pixel_size=3.0, least=2, twins=2),
}


@dataclass(frozen=True)
class _Sites:
    """Sites to draw: id_code, labels (as text), dataset, twin_of (the id whose picture it has, or its own)."""

    table: pd.DataFrame
    preset: Preset
    seed: int

    def write(self, out: Path, *, processes: int | None, by: SideBySide = side_by_side) -> None:
        """Photograph what is not there yet, then write the tables."""
        _render(out, self.table, preset=self.preset, seed=self.seed, processes=processes, by=by)
        _write_tables(out, self.table)


def screen(preset: Preset, *, seed: int, like: Path | None, experiments: Sequence[str]) -> _Sites:
    """What is to be drawn: the preset's own sites, or those of the tables in the folder `like`."""
    if experiments:
        raise InputError("the Protein Atlas has no experiments", where="simulate", cure="leave them out")
    sites = _designed(preset, seed=seed) if like is None else _of_tables(like, seed=seed)
    return _Sites(sites, preset, seed)


def _designed(preset: Preset, *, seed: int) -> pd.DataFrame:
    parts = []
    for kind, count, least in (("train", preset.train - preset.twins, preset.least), ("test", preset.test, preset.least // 2)):
        labels = drawn_labels(stream(seed, "labels", kind), count, least=max(1, least))
        ids = [_id(seed, kind, number) for number in range(count)]
        parts.append(pd.DataFrame({"id_code": ids, "labels": labels, "dataset": kind, "twin_of": ids}))
    twins = parts[0].head(preset.twins).assign(id_code=[_id(seed, "twin", number) for number in range(preset.twins)])
    table = pd.concat([parts[0], twins, parts[1]], ignore_index=True)
    return table.assign(labels=table["labels"].map(write_labels))


def _of_tables(like: Path, *, seed: int) -> pd.DataFrame:
    """The sites of real tables; test labels that they do not tell are drawn."""
    tables = read_site_tables(like, PROTEIN_ATLAS)
    drawn = pd.Series(drawn_labels(stream(seed, "labels", "test"), len(tables.sample), least=0), index=tables.sample)
    known = drawn if tables.solution is None else tables.solution.combine_first(drawn)
    labels = tables.sites["labels"].where(tables.sites["dataset"] == "train", tables.sites["id_code"].map(known))
    return tables.sites[["id_code", "dataset"]].assign(labels=labels.map(write_labels), twin_of=tables.sites["id_code"])


def drawn_labels(rng: np.random.Generator, count: int, *, least: int) -> list[Labels]:
    """Label sets of so many sites, as often as in the real training table, in random order.

    Drawn at even steps through the real table, so that a few hundred sites have its frequencies as well as they can.
    Classes that `least` sites do not show then take the places of sites with the most frequent class.
    """
    sets, weights = list(label_sets()), np.array(list(label_sets().values()), float)
    steps = (rng.random() + np.arange(count)) / max(count, 1)
    # Sorted by size the sets of a class lie scattered: a random order of the table gives each the same chance.
    order = rng.permutation(len(sets))
    places = np.searchsorted(np.cumsum(weights[order] / weights.sum()), steps)
    drawn = [sets[order[min(place, len(sets) - 1)]] for place in places]
    _lift(rng, drawn, sets, weights, least=least)
    return [drawn[i] for i in rng.permutation(count)]


def _lift(rng: np.random.Generator, drawn: list[Labels], sets: list[Labels], weights: np.ndarray, *, least: int) -> None:
    """Give every class `least` sites where there is room, in real company."""
    for label in sorted(range(PROTEIN_ATLAS.classes), key=lambda label: sum(label in each for each in drawn)):
        holding = [i for i, each in enumerate(sets) if label in each]
        chances = weights[holding] / weights[holding].sum()
        missing = least - sum(label in each for each in drawn)
        free = [i for i, each in enumerate(drawn) if each == (0,)]
        for i in rng.permutation(free)[: max(missing, 0)]:
            drawn[i] = sets[holding[int(rng.choice(len(holding), p=chances))]]


def _id(seed: int, kind: str, number: int) -> str:
    """An id that looks as the real ones do."""
    return str(uuid.UUID(bytes=hashlib.sha256(f"{seed} {kind} {number}".encode()).digest()[:16]))


def _render(out: Path, table: pd.DataFrame, *, preset: Preset, seed: int, processes: int | None, by: SideBySide) -> None:
    """Photograph the sites part by part; a part is done when its marker is there."""
    made = desk(out)
    for kind in ("train", "test"):
        (out / kind).mkdir(exist_ok=True)
    parts = []
    for number, start in enumerate(range(0, len(table), PART)):
        rows = table.iloc[start : start + PART]
        subjects = tuple(
            Subject(seed, row.dataset, row.id_code, row.twin_of, tuple(map(int, row.labels.split())), preset.image_size, preset.pixel_size)
            for row in rows.itertuples()
        )
        if not (out / WORKSHOP / f"part-{number}").exists():
            parts.append((number, subjects, made / f"part-{number}"))
    for number, folder in progress_bar(by(_photograph, parts, processes=processes), total=len(parts), desc="simulate", unit="part"):
        for picture in sorted(folder.rglob("*.png")):
            os.rename(picture, out / picture.relative_to(folder))
        files.write_text(out / WORKSHOP / f"part-{number}", "")


def _photograph(work: tuple[int, tuple[Subject, ...], Path]) -> tuple[int, Path]:
    number, subjects, folder = work
    for subject in subjects:
        (folder / subject.dataset).mkdir(parents=True, exist_ok=True)
        for suffix, image in zip(PROTEIN_ATLAS.suffixes, photograph(subject)):
            write_channel(folder / subject.dataset / f"{subject.id_code}{suffix}", image)
    return number, folder


def _write_tables(out: Path, table: pd.DataFrame) -> None:
    """The competition's CSV files and the truth."""
    ids, answers, asked = PROTEIN_ATLAS.id_column, PROTEIN_ATLAS.label_column, PROTEIN_ATLAS.answer_column
    train, test = (table[table["dataset"] == kind] for kind in ("train", "test"))
    named = {ids: "id_code", answers: "labels"}
    for name, part in ((TRAIN, train), (SOLUTION, test)):
        _write_csv(out / name, pd.DataFrame({column: part[source] for column, source in named.items()}))
    _write_csv(out / SAMPLE, pd.DataFrame({ids: test["id_code"], asked: 0}))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n"))

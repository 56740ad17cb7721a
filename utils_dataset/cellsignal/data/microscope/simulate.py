"""The virtual microscope: writes a complete data set in the competition's format, with the true labels."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal import files
from cellsignal.data.microscope import optics, protein_atlas
from cellsignal.data.microscope.batch_effects import Effects
from cellsignal.data.microscope.cell_types import CELL_TYPES, stream
from cellsignal.data.microscope.cells import FIELD
from cellsignal.data.microscope.layout import complete_labels, draw_design
from cellsignal.data.microscope.rendering import Plate, render_plate
from cellsignal.data.microscope.workdir import RECEIPT, WORKING_FOLDER, ParallelMap, run_in_processes, worker_folder, working_folder
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError, name_advice
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import TASKS, Task

__all__ = ["PRESETS", "RECEIPT", "WORKING_FOLDER", "Preset", "presets_of", "simulate"]
PIXEL_STATS_HEADER = "id_code,experiment,plate,well,site,channel,mean,std,median,min,max\n"


@dataclass(frozen=True)
class Preset:
    """The size and the difficulty of a simulated screen."""

    cell_types: tuple[str, ...]
    classes: int
    train: int  # experiments per cell type
    test: int
    image_size: int
    pixel_size: float  # native pixels (512 across a real field) per image pixel
    phenotype: float = 1.0  # strength of the siRNAs' effects
    batch: float = 1.0  # strength of the batch effects; 1 has the real spread of brightness
    missing: int = 6  # treatment wells lost
    repeats: tuple[tuple[str, str], ...] = ()  # (experiment, the one whose layout it repeats)
    effects: Effects = Effects()  # what no gain and offset undo


PLATES = {
    "demo": Preset(
        cell_types=("HEPG2", "HUVEC", "RPE", "U2OS"), classes=48, train=6, test=2, image_size=64, pixel_size=3.0,
        phenotype=2.0, repeats=(("HUVEC-06", "RPE-03"), ("HUVEC-08", "RPE-03")),
    ),
    "small": Preset(
        cell_types=("HUVEC",), classes=100, train=6, test=2, image_size=64, pixel_size=3.0, phenotype=2.0, missing=3,
        repeats=(("HUVEC-08", "HUVEC-03"),),
    ),
    # As `small`, of the cell type that most real networks failed on, under batch effects that standardising does not undo.
    "hard": Preset(
        cell_types=("U2OS",), classes=100, train=6, test=2, image_size=64, pixel_size=3.0, phenotype=2.0, missing=3,
        repeats=(("U2OS-08", "U2OS-03"),),
        effects=Effects(defocus=2.0, tilt=1.2, density=0.3, crowding=1.0, bleed=0.1, staining=0.2, edge=0.25, drift=0.2),
    ),
    "tiny": Preset(
        cell_types=("HUVEC", "RPE"), classes=8, train=2, test=1, image_size=32, pixel_size=3.0, missing=1,
        repeats=(("HUVEC-03", "RPE-01"),),
    ),
}
PRESETS: dict[str, Preset | protein_atlas.Preset] = {**PLATES, **protein_atlas.PRESETS}


def presets_of(task: Task) -> list[str]:
    """The presets that draw for a task: all but those that another one names."""
    others = {name for other in TASKS.values() if other != task for name in other.presets}
    return [name for name in PRESETS if name not in others]


def simulate(
    out: Path, *, preset: str = "demo", seed: int = 0, like: Path | None = None, experiments: Sequence[str] = (),
    image_size: int | None = None, parallel_map: ParallelMap = run_in_processes, keep: bool = True,
) -> None:
    """Write a simulated data set to `out`: the competition's files, solution.csv and simulate.json.

    `like` names a folder with real tables whose wells are drawn instead of the preset's own design;
    `experiments` and `image_size` override the preset's. The same arguments give the same bytes for any
    `parallel_map`, by which plates are drawn side by side, such as `map`; a second call resumes a killed one, or does nothing. Complete plates drawn by another
    version of the code are kept if `keep`, with a note. InputError if `out` holds anything else, an argument is
    unknown, the task has other channels, or the disk is full.
    """
    if seed < 0:
        raise InputError(f"seed {seed}", where="simulate", cure="choose 0 or more")
    check_channels(preset)
    preset_values = _preset(preset, image_size=image_size)
    data_set = DESIGNERS[type(preset_values)](preset_values, seed=seed, like=like, experiments=experiments)
    # Plates without effects keep the identity that they had before there were any.
    parameters = {name: value for name, value in asdict(preset_values).items() if (name, value) != ("effects", asdict(Effects()))}
    identity = {"preset": preset, "seed": seed, "parameters": parameters, "wells": _digest(data_set.table)}
    own_design = like is None and not experiments and image_size is None
    with working_folder(Path(out), identity, keep_other_code=keep, own_design=own_design) as unfinished:
        if unfinished:
            with files.on_a_full_disk(Path(out)):
                data_set.write(Path(out), parallel_map=parallel_map)


def check_channels(preset: str) -> None:
    """Raise InputError where the microscope draws another number of channels than the preset's task has."""
    task = next((task for task in TASKS.values() if preset in task.presets), None)
    if task and (drawn := DRAWN_CHANNELS[type(PRESETS[preset])]) != len(task.channels):
        what = f"the virtual microscope draws {drawn} channels, and the task {task.name} has {len(task.channels)}"
        raise InputError(what, where=f"preset {preset}", cure="leave `preset` empty and name a folder with images in `data`")


def _preset(name: str, *, image_size: int | None) -> Any:
    if name not in PRESETS:
        raise InputError(f"no preset '{name}'", where="simulate", cure=f"choose one of {', '.join(PRESETS)}")
    if image_size is None:
        return PRESETS[name]
    if not 16 <= image_size <= 2048:
        raise InputError(f"image size {image_size}", where="simulate", cure="choose 16 to 2048 pixels")
    # An image never shows more than a real field: from 256 pixels on the resolution grows instead of the field.
    pixel_size = min(PRESETS[name].pixel_size, FIELD / image_size)
    return replace(PRESETS[name], image_size=image_size, pixel_size=pixel_size)


@dataclass(frozen=True)
class _Plates:
    """Plates to draw: one row of `table` per well, columns as in `Tables.wells`, a class in every row."""

    table: pd.DataFrame
    preset: Preset
    seed: int

    def write(self, out: Path, *, parallel_map: ParallelMap) -> None:
        """Render every plate, then write the tables."""
        _render(out, _plates(self.table, seed=self.seed, preset=self.preset), parallel_map=parallel_map)
        _write_tables(out, self.table)


def _design_plates(preset: Preset, *, seed: int, like: Path | None, experiments: Sequence[str]) -> _Plates:
    if like is None:
        wells = draw_design(
            seed, preset.cell_types, classes=preset.classes, train=preset.train, test=preset.test,
            repeats=preset.repeats, missing=preset.missing,
        )
    else:
        tables = read_tables(like)
        wells = complete_labels(tables.wells, seed=seed, solution=tables.solution)
    return _Plates(_select_wells(wells, experiments), preset, seed)


# By type of preset; the result has a `table` of wells or sites, and a method `write`.
DESIGNERS = {Preset: _design_plates, protein_atlas.Preset: protein_atlas.draw_atlas}
DRAWN_CHANNELS = {Preset: optics.CHANNELS, protein_atlas.Preset: 4}


def _select_wells(wells: pd.DataFrame, experiments: Sequence[str]) -> pd.DataFrame:
    """The wells of these experiments (all if empty); InputError for wells that cannot be drawn."""
    names = wells["experiment"].unique()
    if unknown := sorted(set(experiments) - set(names)):
        raise InputError(f"no experiment {', '.join(unknown)}", where="simulate", cure=name_advice(unknown[0], names))
    wells = wells[wells["experiment"].isin(list(experiments) or names)].reset_index(drop=True)
    if undrawable := sorted(set(wells["cell_type"]) - set(CELL_TYPES)):
        cure = f"choose experiments of {', '.join(CELL_TYPES)}"
        raise InputError(f"cannot draw {', '.join(undrawable)} cells", where="simulate", cure=cure)
    if unnumbered := sorted(name for name in wells["experiment"].unique() if not name.rpartition("-")[2].isdecimal()):
        cure = "rename it in the tables, such as U2OS-01, or choose others"
        raise InputError(f"cannot draw {unnumbered[0]}: brightness follows the number of an experiment", where="simulate", cure=cure)
    if "train" not in set(wells["dataset"]):
        raise InputError("no training experiment is chosen", where="simulate", cure="name one of them too")
    return wells


def _digest(wells: pd.DataFrame) -> str:
    return hashlib.sha256(wells.to_csv(index=False).encode()).hexdigest()


def _plates(wells: pd.DataFrame, *, seed: int, preset: Preset) -> dict[str, list[Plate]]:
    """The plates to render, by the folder of their experiment."""
    plates: dict[str, list[Plate]] = {}
    lost_site = _lost_site(wells, seed=seed)
    for (dataset, experiment, number), part in wells.groupby(["dataset", "experiment", "plate"]):
        plate = Plate(
            seed=seed, experiment=experiment, plate=int(number),
            wells=tuple(zip(part["well"], part["sirna"].tolist(), strict=True)),
            image_size=preset.image_size, pixel_size=preset.pixel_size,
            phenotype=preset.phenotype, batch=preset.batch, effects=preset.effects,
            lost=lost_site[2] if (experiment, number) == lost_site[:2] else "",
        )
        plates.setdefault(f"{dataset}/{experiment}", []).append(plate)
    return plates


def _lost_site(wells: pd.DataFrame, *, seed: int) -> tuple[str, int, str]:
    """Experiment, plate and well of the one test treatment that loses a site, as real ones did."""
    treated = wells[(wells["dataset"] == "test") & (wells["well_type"] == "treatment")]
    if treated.empty:
        return "", 0, ""
    row = treated.iloc[int(stream(seed, "lost site").integers(len(treated)))]
    return row["experiment"], row["plate"], row["well"]


def _render(out: Path, plates: dict[str, list[Plate]], *, parallel_map: ParallelMap) -> None:
    """Render missing experiments; each is moved into place when it is complete."""
    work_folder = worker_folder(out)
    todo = {experiment_folder: parts for experiment_folder, parts in plates.items() if not (out / experiment_folder).exists()}
    work = [(part, work_folder / experiment_folder / f"Plate{part.plate}") for experiment_folder, parts in todo.items() for part in parts]
    done: dict[str, dict[int, str]] = {experiment_folder: {} for experiment_folder in todo}
    rendered = parallel_map(_render_work, work)
    for plate, folder, rows in progress_bar(rendered, total=len(work), desc="simulate", unit="plate"):
        experiment_folder = str(folder.parent.relative_to(work_folder))
        done[experiment_folder][plate] = rows
        if len(done[experiment_folder]) == len(todo[experiment_folder]):
            _move_into_place(out, experiment_folder, work_folder=work_folder, rows=[done[experiment_folder][number] for number in sorted(done[experiment_folder])])


def _move_into_place(out: Path, experiment_folder: str, *, work_folder: Path, rows: list[str]) -> None:
    """Write the statistics first: an experiment in its final folder is complete."""
    files.write_text(out / WORKING_FOLDER / f"{Path(experiment_folder).name}.csv", "".join(rows))
    (out / experiment_folder).parent.mkdir(exist_ok=True)
    os.rename(work_folder / experiment_folder, out / experiment_folder)


def _render_work(work: tuple[Plate, Path]) -> tuple[int, Path, str]:
    plate, folder = work
    return plate.plate, folder, "".join(render_plate(plate, folder))


def _write_tables(out: Path, wells: pd.DataFrame) -> None:
    """The competition's CSV files and the solution."""
    columns = ["id_code", "experiment", "plate", "well", "sirna"]
    for dataset, table_columns in (("train", columns), ("test", columns[:-1])):
        part = wells[wells["dataset"] == dataset]
        treated = part["well_type"] == "treatment"
        _write_csv(out / f"{dataset}.csv", part.loc[treated, table_columns])
        _write_csv(out / f"{dataset}_controls.csv", part.loc[~treated, [*columns, "well_type"]])
    test_wells = wells.loc[(wells["dataset"] == "test") & (wells["well_type"] == "treatment"), ["id_code", "sirna"]]
    _write_csv(out / "solution.csv", test_wells)
    _write_csv(out / "sample_submission.csv", test_wells.assign(sirna=0))
    pieces = [out / WORKING_FOLDER / f"{name}.csv" for name in wells["experiment"].unique()]
    files.write_text(out / "pixel_stats.csv", PIXEL_STATS_HEADER + "".join(piece.read_text() for piece in pieces))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n"))

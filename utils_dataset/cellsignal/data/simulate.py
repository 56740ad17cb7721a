"""The virtual microscope: writes a whole data set in the competition's format, truth included."""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from tqdm import tqdm

from cellsignal import files
from cellsignal.data.celltypes import CELL_TYPES
from cellsignal.data.layouts import design
from cellsignal.data.phenotypes import stream
from cellsignal.data.rendering import Plate, photograph
from cellsignal.data.tissue import FIELD
from cellsignal.data.truths import completed
from cellsignal.data.wells import read_tables
from cellsignal.errors import InputError

WORKSHOP = ".simulation"  # inside `out` until it is whole: the plan, finished statistics, unfinished plates
RECEIPT = "simulate.json"
STATISTICS = "id_code,experiment,plate,well,site,channel,mean,std,median,min,max\n"


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


PRESETS = {
    "demo": Preset(
        cell_types=("HEPG2", "HUVEC", "RPE", "U2OS"), classes=48, train=6, test=2, image_size=64, pixel_size=3.0,
        phenotype=2.0, repeats=(("HUVEC-06", "RPE-03"), ("HUVEC-08", "RPE-03")),
    ),
    "small": Preset(
        cell_types=("HUVEC",), classes=100, train=6, test=2, image_size=64, pixel_size=3.0, phenotype=2.0, missing=3,
        repeats=(("HUVEC-08", "HUVEC-03"),),
    ),
    "tiny": Preset(
        cell_types=("HUVEC", "RPE"), classes=8, train=2, test=1, image_size=32, pixel_size=3.0, missing=1,
        repeats=(("HUVEC-03", "RPE-01"),),
    ),
}


def simulate(
    out: Path, *, preset: str = "demo", seed: int = 0, like: Path | None = None, experiments: Sequence[str] = (),
    image_size: int | None = None, processes: int | None = None,
) -> None:
    """Write a simulated data set to `out`: the competition's files, solution.csv and simulate.json.

    `like` names a folder with real tables whose wells are drawn instead of the preset's own design;
    `experiments` and `image_size` override the preset's. The same arguments give the same bytes whatever
    the number of processes; a second call goes on where a killed one stopped, or does nothing.
    Raises InputError when `out` holds anything else, or an argument names nothing.
    """
    if seed < 0:
        raise InputError(f"seed {seed}", where="simulate", cure="choose 0 or more")
    out, chosen = Path(out), _preset(preset, image_size=image_size)
    wells = _wells(chosen, seed=seed, like=like, experiments=experiments)
    receipt = {"preset": preset, "seed": seed, "parameters": asdict(chosen), "wells": _digest(wells)}
    with _alone(out):
        if _claim(out, receipt=json.loads(json.dumps(receipt))):
            _render(out, _plates(wells, seed=seed, preset=chosen), processes=processes)
            _write_tables(out, wells)
            files.sweep(out, ())
            files.write_json(out / RECEIPT, receipt)
        shutil.rmtree(out / WORKSHOP, ignore_errors=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold `out`, made for it, against a second simulation; the folder is its own lock and nothing is left of it."""
    if out.exists() and not out.is_dir():
        raise InputError("holds files that no simulation wrote", where=out, cure="choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with files.locked(out, refusal="another simulation works in this folder"):
        yield


def _preset(name: str, *, image_size: int | None) -> Preset:
    if name not in PRESETS:
        raise InputError(f"no preset '{name}'", where="simulate", cure=f"choose one of {', '.join(PRESETS)}")
    if image_size is None:
        return PRESETS[name]
    if not 16 <= image_size <= 2048:
        raise InputError(f"image size {image_size}", where="simulate", cure="choose 16 to 2048 pixels")
    # A picture never shows more than a real field: from 256 pixels on it is drawn finer instead of wider.
    pixel_size = min(PRESETS[name].pixel_size, FIELD / image_size)
    return replace(PRESETS[name], image_size=image_size, pixel_size=pixel_size)


def _wells(preset: Preset, *, seed: int, like: Path | None, experiments: Sequence[str]) -> pd.DataFrame:
    """One row per well, columns as in `Tables.wells`, a class in every row."""
    if like is None:
        wells = design(
            seed, preset.cell_types, classes=preset.classes, train=preset.train, test=preset.test,
            repeats=preset.repeats, missing=preset.missing,
        )
    else:
        tables = read_tables(like)
        wells = completed(tables.wells, seed=seed, solution=tables.solution)
    return _chosen(wells, experiments)


def _chosen(wells: pd.DataFrame, experiments: Sequence[str]) -> pd.DataFrame:
    """The wells of these experiments (all when empty), checked to be something we can draw."""
    names = wells["experiment"].unique()
    if unknown := sorted(set(experiments) - set(names)):
        cure = f"choose from {', '.join(names)}"
        raise InputError(f"no experiment {', '.join(unknown)}", where="simulate", cure=cure)
    wells = wells[wells["experiment"].isin(list(experiments) or names)].reset_index(drop=True)
    if strange := sorted(set(wells["cell_type"]) - set(CELL_TYPES)):
        cure = f"choose experiments of {', '.join(CELL_TYPES)}"
        raise InputError(f"cannot draw {', '.join(strange)} cells", where="simulate", cure=cure)
    if "train" not in set(wells["dataset"]):
        raise InputError("no training experiment is chosen", where="simulate", cure="name one of them too")
    return wells


def _digest(wells: pd.DataFrame) -> str:
    return hashlib.sha256(wells.to_csv(index=False).encode()).hexdigest()


def _claim(out: Path, *, receipt: dict[str, Any]) -> bool:
    """Whether anything is left to do in `out`; InputError when it holds anything but this simulation."""
    cure = "choose another folder, or delete this one"
    found = [path for path in (out / RECEIPT, out / WORKSHOP / RECEIPT) if path.exists()]
    if found and _read_receipt(found[0], out=out) != receipt:
        raise InputError("holds a different simulation", where=out, cure=cure)
    if found:
        return found[0] != out / RECEIPT
    if any(path.name != WORKSHOP for path in out.iterdir()):
        raise InputError("holds files that no simulation wrote", where=out, cure=cure)
    files.write_json(out / WORKSHOP / RECEIPT, receipt)
    return True


def _read_receipt(path: Path, *, out: Path) -> Any:
    try:
        return files.read_json(path)
    except InputError:  # without its receipt the rest cannot be told from foreign files
        cure = f"delete the whole folder {out} and simulate again"
        raise InputError("not readable as JSON", where=path, cure=cure) from None


def _plates(wells: pd.DataFrame, *, seed: int, preset: Preset) -> dict[str, list[Plate]]:
    """The plates to photograph, by the folder of their experiment."""
    plates: dict[str, list[Plate]] = {}
    lost = _lost_site(wells, seed=seed)
    for (kind, experiment, number), part in wells.groupby(["dataset", "experiment", "plate"]):
        plate = Plate(
            seed=seed, experiment=experiment, plate=int(number),
            wells=tuple(zip(part["well"], part["sirna"].tolist(), strict=True)),
            image_size=preset.image_size, pixel_size=preset.pixel_size,
            phenotype=preset.phenotype, batch=preset.batch,
            lost=lost[2] if (experiment, number) == lost[:2] else "",
        )
        plates.setdefault(f"{kind}/{experiment}", []).append(plate)
    return plates


def _lost_site(wells: pd.DataFrame, *, seed: int) -> tuple[str, int, str]:
    """Experiment, plate and well of the one test treatment that loses a site, as real ones did."""
    treated = wells[(wells["dataset"] == "test") & (wells["well_type"] == "treatment")]
    if treated.empty:
        return "", 0, ""
    row = treated.iloc[int(stream(seed, "lost site").integers(len(treated)))]
    return row["experiment"], row["plate"], row["well"]


def _render(out: Path, plates: dict[str, list[Plate]], *, processes: int | None) -> None:
    """Photograph what is not there yet; each experiment appears in its place when it is whole."""
    for orphan in (out / WORKSHOP).glob("plates-*"):
        shutil.rmtree(orphan)
    desk = out / WORKSHOP / f"plates-{os.getpid()}"
    todo = {place: parts for place, parts in plates.items() if not (out / place).exists()}
    work = [(part, desk / place / f"Plate{part.plate}") for place, parts in todo.items() for part in parts]
    done: dict[str, dict[int, str]] = {place: {} for place in todo}
    finished = _photographs(work, processes=processes)
    for plate, folder, rows in tqdm(finished, total=len(work), desc="simulate", unit="plate"):
        place = str(folder.parent.relative_to(desk))
        done[place][plate] = rows
        if len(done[place]) == len(todo[place]):
            _put(out, place, desk=desk, rows=[done[place][number] for number in sorted(done[place])])


def _put(out: Path, place: str, *, desk: Path, rows: list[str]) -> None:
    """Statistics first: an experiment that is in its place is one that needs nothing more."""
    files.write_text(out / WORKSHOP / f"{Path(place).name}.csv", "".join(rows))
    (out / place).parent.mkdir(exist_ok=True)
    os.rename(desk / place, out / place)


def _photographs(work: list[tuple[Plate, Path]], *, processes: int | None) -> Iterator[tuple[int, Path, str]]:
    count = min(processes or os.cpu_count() or 1, len(work))
    if count <= 1:
        yield from map(_photograph, work)
        return
    with multiprocessing.get_context("spawn").Pool(count, initializer=_start_worker) as pool:
        yield from pool.imap_unordered(_photograph, work)


def _photograph(work: tuple[Plate, Path]) -> tuple[int, Path, str]:
    plate, folder = work
    return plate.plate, folder, "".join(photograph(plate, folder))


def _start_worker() -> None:
    """One thread each; and a worker whose parent was killed must not wait for work for ever."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_tables(out: Path, wells: pd.DataFrame) -> None:
    """The competition's CSV files and the truth."""
    columns = ["id_code", "experiment", "plate", "well", "sirna"]
    for kind, known in (("train", columns), ("test", columns[:-1])):
        part = wells[wells["dataset"] == kind]
        treated = part["well_type"] == "treatment"
        _write_csv(out / f"{kind}.csv", part.loc[treated, known])
        _write_csv(out / f"{kind}_controls.csv", part.loc[~treated, [*columns, "well_type"]])
    asked = wells.loc[(wells["dataset"] == "test") & (wells["well_type"] == "treatment"), ["id_code", "sirna"]]
    _write_csv(out / "solution.csv", asked)
    _write_csv(out / "sample_submission.csv", asked.assign(sirna=0))
    pieces = [out / WORKSHOP / f"{name}.csv" for name in wells["experiment"].unique()]
    files.write_text(out / "pixel_stats.csv", STATISTICS + "".join(piece.read_text() for piece in pieces))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n"))

"""The virtual microscope: writes a whole data set in the competition's format, truth included."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from cellsignal import files
from cellsignal.data.layouts import design
from cellsignal.data.rendering import Plate, photograph
from cellsignal.data.phenotypes import stream
from cellsignal.errors import InputError

WORKSHOP = ".simulation"  # inside OUT while it is not whole: the plan, finished statistics, unfinished plates
WHOLE = "simulate.json"
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
    batch: float = 1.0  # strength of the batch effects; 1 has the real brightness spread
    missing: int = 6  # treatment wells lost
    repeats: tuple[tuple[str, str], ...] = ()  # (experiment, source of its layout)


PRESETS = {
    "demo": Preset(
        cell_types=("HEPG2", "HUVEC", "RPE", "U2OS"), classes=48, train=6, test=2, image_size=64, pixel_size=2.0,
        repeats=(("HUVEC-06", "RPE-03"), ("HUVEC-08", "RPE-03")),
    ),
    "tiny": Preset(
        cell_types=("HUVEC", "RPE"), classes=8, train=2, test=1, image_size=32, pixel_size=3.0, missing=1,
        repeats=(("HUVEC-03", "RPE-01"),),
    ),
}


def simulate(
    out: Path, *, preset: str = "demo", seed: int = 0, like: Path | None = None, experiments: tuple[str, ...] = (),
    image_size: int | None = None, processes: int | None = None,
) -> None:
    """Write a simulated data set to `out`: the competition's files, solution.csv and simulate.json.

    The same arguments give the same bytes whatever the number of processes; a second call goes on where
    a killed one stopped, or does nothing. Raises InputError when `out` holds anything else.
    """
    plan = _plan(preset, seed, image_size=image_size)
    if _claim(Path(out), plan=plan):
        wells = _wells(plan)
        _render(Path(out), wells, plan=plan, processes=processes)
        _tables(Path(out), wells)
        files.write_json(Path(out) / WHOLE, plan)
    shutil.rmtree(Path(out) / WORKSHOP, ignore_errors=True)


def _plan(preset: str, seed: int, *, image_size: int | None) -> dict[str, Any]:
    """Everything that decides the bytes, as it is written to simulate.json."""
    if preset not in PRESETS:
        raise InputError(f"no preset '{preset}'", where="simulate", cure=f"choose one of {', '.join(PRESETS)}")
    plan = {"preset": preset, "seed": seed, "parameters": asdict(PRESETS[preset])}
    if image_size is not None:
        plan["parameters"]["image_size"] = image_size
    return plan


def _claim(out: Path, *, plan: dict[str, Any]) -> bool:
    """Whether anything is left to do in `out`; InputError when it belongs to something else."""
    cure = "choose another folder, or delete this one"
    marks = [path for path in (out / WHOLE, out / WORKSHOP / WHOLE) if path.exists()]
    if marks:
        if files.read_json(marks[0]) != _as_json(plan):
            raise InputError("holds a different simulation", where=out, cure=cure)
        return marks[0] != out / WHOLE
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("holds files that no simulation wrote", where=out, cure=cure)
    files.write_json(out / WORKSHOP / WHOLE, plan)
    return True


def _as_json(plan: dict[str, Any]) -> dict[str, Any]:
    import json
    return json.loads(json.dumps(plan))


def _wells(plan: dict[str, Any]) -> pd.DataFrame:
    p = plan["parameters"]
    return design(
        plan["seed"], tuple(p["cell_types"]), classes=p["classes"], train=p["train"], test=p["test"],
        repeats=tuple(map(tuple, p["repeats"])), missing=p["missing"],
    )


def _missing_site(wells: pd.DataFrame, seed: int) -> tuple[str, int, str]:
    """The one test treatment whose site 2 loses channels 5 and 6, as real ones did."""
    chosen = wells[(wells.dataset == "test") & (wells.well_type == "treatment")]
    row = chosen.iloc[int(stream(seed, "missing site").integers(len(chosen)))]
    return row.experiment, row.plate, row.well


def _jobs(wells: pd.DataFrame, plan: dict[str, Any]) -> list[Plate]:
    p, seed = plan["parameters"], plan["seed"]
    lost = _missing_site(wells, seed)
    return [
        Plate(
            seed=seed, experiment=experiment, plate=int(plate), wells=list(zip(part.well, part.sirna.tolist())),
            image_size=p["image_size"], pixel_size=p["pixel_size"], phenotype=p["phenotype"], batch=p["batch"],
            missing=frozenset((lost[2], 2, c) for c in (5, 6) if (experiment, plate) == lost[:2]),
        )
        for (experiment, plate), part in wells.groupby(["experiment", "plate"])
    ]


def _render(out: Path, wells: pd.DataFrame, *, plan: dict[str, Any], processes: int | None) -> None:
    """Photograph what is not there yet, an experiment at a time, and put each in place when it is whole."""
    places = {name: out / kind / name for name, kind in zip(wells.experiment, wells.dataset, strict=True)}
    jobs = [job for job in _jobs(wells, plan) if not places[job.experiment].exists()]
    desk = out / WORKSHOP / f"plates-{os.getpid()}"
    for orphan in (out / WORKSHOP).glob("plates-*"):
        shutil.rmtree(orphan)
    rows: dict[str, dict[int, list[str]]] = {}
    work = [(job, desk / job.experiment / f"Plate{job.plate}") for job in jobs]
    for job, statistics in tqdm(_photographs(work, processes), total=len(work), desc="simulate", unit="plate"):
        done = rows.setdefault(job.experiment, {})
        done[job.plate] = statistics
        if len(done) == sum(other.experiment == job.experiment for other in jobs):
            text = "".join(row for plate in sorted(done) for row in done[plate])
            files.write_text(out / WORKSHOP / f"{job.experiment}.csv", text)
            places[job.experiment].parent.mkdir(exist_ok=True)
            os.rename(desk / job.experiment, places[job.experiment])


def _photographs(work: list[tuple[Plate, Path]], processes: int | None) -> Iterator[tuple[Plate, list[str]]]:
    count = min(processes or os.cpu_count() or 1, len(work))
    if count <= 1:
        yield from map(_photograph, work)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, initializer=_die_with_parent) as pool:
        yield from pool.imap_unordered(_photograph, work)


def _photograph(item: tuple[Plate, Path]) -> tuple[Plate, list[str]]:
    return item[0], photograph(*item)


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _tables(out: Path, wells: pd.DataFrame) -> None:
    """Write the competition's CSV files and the truth."""
    for kind in ("train", "test"):
        part = wells[wells.dataset == kind]
        treated = part.well_type == "treatment"
        labelled = ["id_code", "experiment", "plate", "well", "sirna"]
        _csv(out / f"{kind}.csv", part[treated][labelled if kind == "train" else labelled[:-1]])
        _csv(out / f"{kind}_controls.csv", part[~treated][[*labelled, "well_type"]])
    tested = wells[(wells.dataset == "test") & (wells.well_type == "treatment")][["id_code", "sirna"]]
    _csv(out / "solution.csv", tested)
    _csv(out / "sample_submission.csv", tested.assign(sirna=0))
    names = sorted(set(wells.experiment))
    statistics = "".join((out / WORKSHOP / f"{name}.csv").read_text() for name in names)
    files.write_text(out / "pixel_stats.csv", STATISTICS + statistics)


def _csv(path: Path, table: pd.DataFrame) -> None:
    files.write_text(path, table.to_csv(index=False, lineterminator="\n"))

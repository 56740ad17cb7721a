"""The plates a run works on: a folder that is there, or one the virtual microscope fills first."""

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from cellsignal import files
from cellsignal.data import wells
from cellsignal.errors import InputError
from cellsignal.run import paths

RECEIPT = "simulate.json"  # which preset and seed made a simulated data set


def data_folder(data: str, *, run: str | Path) -> Path:
    """The absolute folder of a run's data; `data` is empty for <run>/data."""
    return paths.default_run(data) if data else paths.default_run(str(run)) / "data"


def open_tables(
    data: str,
    *,
    run: str | Path,
    preset: str = "",
    seed: int = 0,
    cell_types: Collection[str] = (),
    experiments: Collection[str] = (),
) -> wells.Tables:
    """Tables of the run's plates, simulated first when `preset` is set and they are not there yet.

    Raises InputError when the folder is missing, holds another simulation, or lacks a named cell type or experiment.
    """
    root = prepare(data, run=run, preset=preset, seed=seed)
    return wells.select(wells.read_tables(root), cell_types=cell_types, experiments=experiments)


def prepare(data: str, *, run: str | Path, preset: str = "", seed: int = 0) -> Path:
    """The folder of the run's plates, simulated first when `preset` asks for them and they are not there."""
    root = data_folder(data, run=run)
    if preset:
        with paths.locked(root.with_name(f".{root.name}.lock"), patience=3600, waiting=f"waiting for {root}"):
            _simulate_once(root, preset=preset, seed=seed, ours=not data)
    elif not root.is_dir():
        raise InputError("no such data folder", where=root, cure="set `data` to the data set, or `preset` to simulate one")
    return root


def _simulate_once(root: Path, *, preset: str, seed: int, ours: bool) -> None:
    """Simulate unless these very plates are there; replace others only inside our own run folder."""
    made = _receipt(root)
    if made == (preset, seed):
        return
    if root.exists() and not (ours and made):
        raise InputError(
            f"holds other plates than preset {preset} with seed {seed}",
            where=root,
            cure="leave `preset` empty to use them, or set `data` to a new folder",
        )
    _simulate(root, preset=preset, seed=seed)


def _receipt(root: Path) -> tuple[str, int] | None:
    """Preset and seed of a simulated data set, None for any other folder."""
    if not (root / RECEIPT).is_file():
        return None
    receipt = files.read_json(root / RECEIPT)
    return receipt.get("preset"), receipt.get("seed")


def _simulate(root: Path, *, preset: str, seed: int) -> None:
    """The plates appear all at once: made beside their place, then renamed into it."""
    from cellsignal.data import simulate  # pulls in SciPy: only who simulates pays

    making, old = (root.with_name(f"{files.TEMPORARY}{name}-{root.name}") for name in ("new", "old"))
    for leftover in (making, old):
        shutil.rmtree(leftover, ignore_errors=True)
    simulate.simulate(making, preset=preset, seed=seed)
    if root.exists():
        os.replace(root, old)
    os.replace(making, root)
    shutil.rmtree(old, ignore_errors=True)


def digest(root: Path) -> str:
    """SHA-256 over the tables of a data set and its receipt; images are pinned by these."""
    tables = sorted([*root.glob("*.csv"), *root.glob(RECEIPT)])
    listing = "\n".join(f"{path.name} {files.sha256(path)}" for path in tables)
    return hashlib.sha256(listing.encode()).hexdigest()

"""Experimental design: which siRNA lies in which well of which plate, as in the real screen."""

import numpy as np
import pandas as pd

from cellsignal.data.phenotypes import POSITIVE_CONTROLS, UNTREATED, stream

ROWS = "BCDEFGHIJKLMNO"  # of a 384-well plate; its outer rows and columns stay empty
COLUMNS = range(2, 24)
WELLS = [f"{row}{column:02d}" for row in ROWS for column in COLUMNS]
CONTROL_WELLS = [f"{row}{column:02d}" for row in "CFHJM" for column in (3, 7, 11, 15, 19, 22)]
UNTREATED_WELL = "B02"
PLATES = 4
UNSEEN = 3  # the rotation that occurs in test experiments only


def design(
    seed: int, cell_types: tuple[str, ...], *, classes: int, train: int, test: int,
    repeats: tuple[tuple[str, str], ...] = (), missing: int = 0,
) -> pd.DataFrame:
    """Lay out a whole screen: one row per well, columns as in `Tables.wells`.

    `train` and `test` count experiments per cell type; `repeats` names (experiment, source) pairs that
    share a layout up to the order of their plates; `missing` treatment wells are lost at random.
    """
    order = stream(seed, "groups").permutation(classes)
    groups = np.array_split(order, PLATES)
    rotations = {name: turn for kind in cell_types for name, turn in _rotations(kind, train=train, test=test)}
    layouts = {name: experiment_layout(seed, name, groups=groups, rotation=turn) for name, turn in rotations.items()}
    for name, source in repeats:
        layouts[name] = repeated(layouts[source], shift=(rotations[source] - rotations[name]) % PLATES)
    wells = pd.concat([_named(layout, name, train=train) for name, layout in layouts.items()])
    return _thinned(stream(seed, "missing"), wells, missing=missing)


def _rotations(cell_type: str, *, train: int, test: int) -> list[tuple[str, int]]:
    """Experiments of one cell type and how far their plate groups are rotated; the last test one is unseen."""
    turns = [k % UNSEEN for k in range(train)] + [k % UNSEEN for k in range(test - 1)] + [UNSEEN] * (test > 0)
    return [(f"{cell_type}-{k + 1:02d}", turn) for k, turn in enumerate(turns)]


def experiment_layout(seed: int, experiment: str, *, groups: list[np.ndarray], rotation: int) -> pd.DataFrame:
    """Columns plate, well, sirna: each treatment once, each positive control on every plate."""
    plates = []
    for plate in range(1, PLATES + 1):
        rng = stream(seed, "layout", experiment, plate)
        group = groups[(plate - 1 + rotation) % PLATES]
        free = [well for well in WELLS if well not in CONTROL_WELLS and well != UNTREATED_WELL]
        wells = [UNTREATED_WELL, *CONTROL_WELLS, *rng.permutation(free)[: len(group)]]
        sirnas = [UNTREATED, *rng.permutation(list(POSITIVE_CONTROLS)), *group]
        plates.append(pd.DataFrame({"plate": plate, "well": wells, "sirna": sirnas}))
    return pd.concat(plates)


def repeated(layout: pd.DataFrame, *, shift: int) -> pd.DataFrame:
    """The same wells with the plates moved on by `shift`."""
    return layout.assign(plate=(layout.plate - 1 + shift) % PLATES + 1)


def _named(layout: pd.DataFrame, experiment: str, *, train: int) -> pd.DataFrame:
    kind, number = experiment.rsplit("-", 1)
    kinds = np.select(
        [layout.sirna == UNTREATED, layout.sirna.isin(POSITIVE_CONTROLS)], ["negative_control", "positive_control"],
        "treatment",
    )
    return layout.assign(
        id_code=[f"{experiment}_{plate}_{well}" for plate, well in zip(layout.plate, layout.well, strict=True)],
        experiment=experiment,
        cell_type=kind,
        well_type=kinds,
        dataset="train" if int(number) <= train else "test",
    )


def _thinned(rng: np.random.Generator, wells: pd.DataFrame, *, missing: int) -> pd.DataFrame:
    """Sort as the competition does and lose some treatment wells."""
    keys = ["dataset", "experiment", "plate", "well"]
    wells = wells.sort_values(keys, ascending=[False, True, True, True], ignore_index=True)
    treated = np.flatnonzero(wells.well_type == "treatment")
    lost = rng.choice(treated, missing, replace=False)
    columns = ["id_code", "experiment", "cell_type", "plate", "well", "well_type", "sirna", "dataset"]
    return wells.drop(index=lost).reset_index(drop=True)[columns]

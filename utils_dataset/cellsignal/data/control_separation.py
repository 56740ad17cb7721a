"""A plate judged by its controls: how far its untreated and positive wells are apart, and whether they differ as on the other plates."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from cellsignal.data.images.reader import missing_channels, read_site
from cellsignal.data.tables.labelled_sites import task_of
from cellsignal.data.tables.wells import read_benchmark_sites, read_pixel_stats, read_tables, select
from cellsignal.errors import InputError
from cellsignal.progress_bars import progress_bar
from cellsignal.tasks import RXRX1

# The limits; utils_dataset/README.md has the plates, real and simulated, on which they rest.
MIN_EFFECT_SIZE = 0.5  # median |Cohen's d| that many laboratories ask for
MIN_WELLS = 4  # of either kind: with one untreated well, as on RxRx1's plates, chance alone gives 0.69
MIN_AGREEMENT = 0.3
VISIBLE = 0.5  # median agreement of a cell type from which on features show its controls at all
MIN_SIRNAS = 8  # controls that a plate has in common with others
COLUMNS = ["experiment", "plate", "cell_type", "untreated", "positive", "effect_size", "chance", "agreement"]


def control_separation(features: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """One row per plate, columns COLUMNS; missing where a plate has too few controls.

    `features`: index id_code, any columns, such as log channel means or an embedding; `wells`: columns of `Tables.wells`.
    `untreated`, `positive`: numbers of wells. `effect_size`: median over features of |Cohen's d| between them. `chance`: its median if
    all of them were alike. `agreement`: correlation, over controls and features, of the plate's controls with the same siRNAs on the
    other plates of the cell type; a plate's controls are centred on their mean, and features scaled alike. Different positive controls
    pull in different directions: their mean, and so the effect size, hardly moves, while the agreement does.
    """
    controls = wells[wells["well_type"].ne("treatment") & wells["sirna"].notna() & wells["id_code"].isin(features.index)]
    values = features.loc[controls["id_code"]].astype(np.float64).reset_index(drop=True)
    controls = controls.reset_index(drop=True)
    plates = [controls["experiment"], controls["plate"]]
    effects = values - values.groupby(plates).transform("mean")
    profiles = effects.groupby([controls["cell_type"], *plates, controls["sirna"]]).mean()
    profiles = (profiles / profiles.groupby(level="cell_type").transform("std").replace(0, np.nan)).dropna(axis=1, how="all").fillna(0)
    by_control = profiles.groupby(level=["cell_type", "sirna"])
    others = by_control.transform("size") - 1
    reference = (by_control.transform("sum") - profiles).div(others.where(others > 0), axis=0)
    rows = []
    for (cell_type, experiment, plate), own in profiles.groupby(level=["cell_type", "experiment", "plate"]):
        kinds = controls.loc[(controls["experiment"] == experiment) & (controls["plate"] == plate), "well_type"]
        untreated, positive = (values.loc[kinds.index[kinds == kind]].to_numpy() for kind in ("negative_control", "positive_control"))
        shared = own.index[reference.loc[own.index].notna().all(axis=1)]
        rows.append([experiment, plate, cell_type, len(untreated), len(positive), *_effect_size(untreated, positive),
                     _correlation(own.loc[shared], reference.loc[shared]) if len(shared) >= MIN_SIRNAS else np.nan])
    return pd.DataFrame(rows, columns=COLUMNS)


def _effect_size(untreated: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Median over features of |Cohen's d|, and its median for wells that are all alike; missing without wells of both kinds."""
    counts = np.array([len(untreated), len(positive)])
    if counts.min() < 1 or counts.sum() < 3:
        return np.nan, np.nan
    squares = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in (untreated, positive))
    deviation = np.sqrt(squares / (counts.sum() - 2))
    differences = np.abs(untreated.mean(axis=0) - positive.mean(axis=0))[deviation > 0] / deviation[deviation > 0]
    return (float(np.median(differences)) if len(differences) else np.nan), float(0.6745 * np.sqrt((1 / counts).sum()))


def _correlation(own: pd.DataFrame, reference: pd.DataFrame) -> float:
    first, second = own.to_numpy().ravel(), reference.to_numpy().ravel()
    return float(np.corrcoef(first, second)[0, 1]) if min(first.std(), second.std()) > 0 else np.nan


def doubtful_plates(separation: pd.DataFrame) -> pd.Series:
    """Whether each plate is below a limit: its effect size, where there are enough wells, or its agreement, where the features show the controls."""
    judged = separation[["untreated", "positive"]].min(axis=1) >= MIN_WELLS
    visible = separation.groupby("cell_type")["agreement"].transform("median") >= VISIBLE
    return judged & (separation["effect_size"] < MIN_EFFECT_SIZE) | visible & (separation["agreement"] < MIN_AGREEMENT)


def separation_lines(separation: pd.DataFrame, features: str) -> list[str]:
    """What the table says in plain lines: the doubtful plates, else that there are none, and cell types whose controls `features` do not show."""
    few, alike = [], []  # cell types of which no plate is judged
    for cell_type, plates in separation.groupby("cell_type"):
        agreement, judged = plates["agreement"], (plates[["untreated", "positive"]].min(axis=1) >= MIN_WELLS).any()
        count = f"{cell_type} (plates: {len(plates)}, experiments: {plates['experiment'].nunique()}"
        if agreement.isna().all() and not judged:
            few.append(f"{count})")
        elif not agreement.median() >= VISIBLE and not judged:
            alike.append(f"{count}, median agreement: {agreement.median():.2f})")
    lines = [f"controls by {features}: too few wells to judge the plates of {', '.join(few)}"] if few else []
    lines += [f"controls by {features}: no plate can be judged where the median agreement is below {VISIBLE}: {', '.join(alike)}"] if alike else []
    doubtful = separation[doubtful_plates(separation)]
    names = [f"{row.experiment} plate {row.plate} (effect size {row.effect_size:.2f}, agreement {row.agreement:.2f})" for row in doubtful.itertuples()]
    if names:
        lines.append(f"controls by {features} look wrong on {len(names)} of {len(separation)} plates, look at these again: {', '.join(names)}")
    elif len(few) + len(alike) < separation["cell_type"].nunique():
        lines.append(f"controls by {features}: no plate below the limits")
    return lines


def channel_means(root: Path, sites: pd.DataFrame, suffixes: Sequence[str] = RXRX1.suffixes) -> pd.DataFrame:
    """Log of the mean grey value of each channel, mean over the complete sites of a well: index id_code, one column per channel.

    From pixel_stats.csv where the data set has it, else from the images of `sites`, whose channels `suffixes` name. InputError for a damaged image.
    """
    stats = read_pixel_stats(root)
    if stats is not None:
        table = stats.pivot_table(index="id_code", columns="channel", values="mean", aggfunc="mean").dropna()
        return np.log1p(table[table.index.isin(sites["id_code"])])
    whole = sites[missing_channels(root, sites["stem"], channels=suffixes) == ""]
    with progress_bar(total=len(whole), desc="controls", unit="site") as bar, ThreadPoolExecutor() as pool:
        means = [(image.mean(axis=(1, 2)), bar.update())[0] for image in pool.map(lambda stem: read_site(root, stem, channels=suffixes), whole["stem"])]
    table = pd.DataFrame(means, index=pd.Index(whole["id_code"], name="id_code"), columns=range(1, len(suffixes) + 1))
    return np.log1p(table.groupby(level=0).mean())


def control_lines(root: Path, *, cell_types: Sequence[str] = ()) -> list[str]:
    """What the channel means of the controls say of a data set's plates; nothing where the tables or the images cannot be read."""
    try:
        task = task_of(root)
        if task.reader == "wells":
            tables = select(read_tables(root), cell_types=cell_types)
            wells, sites = tables.wells, tables.sites
        elif task.reader == "splits":
            sites = read_benchmark_sites(root).drop(columns="id_code").rename(columns={"well_id": "id_code"})
            wells = sites.drop_duplicates("id_code")
        else:
            return []
        sites = sites[sites["well_type"] != "treatment"]
        has_controls = wells["well_type"].ne("treatment").groupby([wells["experiment"], wells["plate"]]).any()
        without = [f"{experiment} plate {plate}" for experiment, plate in has_controls.index[~has_controls]]
        if not has_controls.any():
            return ["no plate has controls"]
        lines = [f"no controls on {len(without)} of {len(has_controls)} plates: {', '.join(without)}"] if without else []
        return lines + separation_lines(control_separation(channel_means(root, sites, task.suffixes), wells), "channel means")
    except InputError:  # `check_dataset` names it
        return []

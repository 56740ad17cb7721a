"""Test experiments that repeat the layout of a training experiment: their siRNAs are known except for the order of plates."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr

from cellsignal.data.tables.plate_design import duplicate_layouts
from cellsignal.decide.assign.calibration import below_best

OPEN_SHIFT_ERRORS = 4.0  # standard errors by which the best shift of plates must beat the next if the controls do not determine it
KNOWN_SHIFT_ERRORS = 2.0  # the same if the controls determine the shift, and the scores only confirm it
MIN_LOG_LIKELIHOOD = -10.0  # lower bound of a well's log-probability, so that no well decides alone


@dataclass(frozen=True)
class KnownLayout:
    """The siRNAs of an experiment by its design; none, and a note, if the scores do not confirm them.

    `confidence`: one minus the p-value of a one-sided t-test over wells that the scores fit this layout better than the best
    alternative. It is about the layout as a whole, not about single wells that may differ from the copied experiment.
    """

    sirnas: pd.Series  # by id_code
    confidence: float = 1.0
    note: str = ""


def known_layouts(wells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, KnownLayout]:
    """The layout of every scored test experiment that repeats a training experiment, by experiment.

    `wells`: columns as in `Tables.wells`, controls included, by which `duplicate_layouts` finds the pairs; `scores`: index
    id_code, columns class numbers, log-probabilities. The mean log-probability of a layout's siRNAs must exceed that of the best
    alternative (the other shifts of plates, and the layout moved by one well) by OPEN_SHIFT_ERRORS standard errors over wells if
    the controls do not determine the shift, else by KNOWN_SHIFT_ERRORS. A layout that the scores do not confirm has no siRNAs and
    a note.

    These layouts are an artefact of the competition's data, not biology: say so wherever they are used.
    """
    layouts = {}
    for pair in duplicate_layouts(wells):
        (reference, other), shift = pair["experiments"], pair["plate_shift"]
        scored = wells[(wells["experiment"] == other) & wells["id_code"].isin(scores.index) & (wells["well_type"] == "treatment")]
        if (scored["dataset"] == "test").any():
            candidates = [_layout_sirnas(wells, scored, reference=reference, shift=k) for k in range(int(wells["plate"].max()))]
            layouts[other] = _confirm_layout(candidates, shift, scores, reference=reference)
    return layouts


def _layout_sirnas(wells: pd.DataFrame, scored: pd.DataFrame, *, reference: str, shift: int) -> pd.Series:
    """The siRNA of each scored well if plate p of the reference is its plate p + shift; NaN without one."""
    plates = int(wells["plate"].max())
    source = wells[wells["experiment"] == reference].set_index(["plate", "well"])["sirna"]
    positions = pd.MultiIndex.from_arrays([(scored["plate"] - 1 - shift) % plates + 1, scored["well"]])
    return pd.Series(source.reindex(positions).astype(float).to_numpy(), index=scored["id_code"].to_numpy(), name="sirna")


def _confirm_layout(candidates: list[pd.Series], shift: int | None, scores: pd.DataFrame, *, reference: str) -> KnownLayout:
    """The candidate with `shift`, or the likeliest if it is None, if the scores fit it clearly better than the alternatives."""
    likelihoods = [_log_likelihoods(sirnas, scores) for sirnas in candidates]
    best = int(np.argmax([values.mean() for values in likelihoods])) if shift is None else shift
    moved = pd.Series(np.roll(candidates[best], 1), candidates[best].index)
    alternatives = [*likelihoods[:best], *likelihoods[best + 1 :], _log_likelihoods(moved, scores)]
    lead = likelihoods[best] - max(alternatives, key=np.mean)
    error = lead.std(ddof=1) / np.sqrt(len(lead)) if len(lead) > 1 else np.inf
    if lead.mean() > (OPEN_SHIFT_ERRORS if shift is None else KNOWN_SHIFT_ERRORS) * error:
        confidence = float(stdtr(len(lead) - 1, lead.mean() / error)) if error > 0 else 1.0
        return KnownLayout(candidates[best].dropna().astype(int), confidence)
    finding = "do not determine its shift of plates" if shift is None else "do not confirm it"
    note = f"controls repeat those of {reference}, but the scores {finding}: layout not copied"
    return KnownLayout(candidates[best].iloc[:0].astype(int), np.nan, note)


def _log_likelihoods(sirnas: pd.Series, scores: pd.DataFrame) -> np.ndarray:
    """Log-probability of each well's siRNA; that of a random guess if the layout or the scores lack it."""
    values = below_best(scores.loc[sirnas.index].to_numpy(np.float32))
    values = values - np.log(np.exp(values).sum(1, keepdims=True))
    columns = scores.columns.get_indexer(sirnas.fillna(-1).astype(int))
    picked = np.maximum(values[np.arange(len(sirnas)), columns], MIN_LOG_LIKELIHOOD)
    return np.where(columns >= 0, picked, -np.log(values.shape[1]))

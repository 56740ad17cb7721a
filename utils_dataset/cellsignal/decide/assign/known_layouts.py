"""Test experiments that repeat a training experiment's layout: their siRNAs are known but for the order of plates."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtr

from cellsignal.data.tables.plate_design import duplicate_layouts
from cellsignal.decide.assign.calibration import below_best

OPEN_SHIFT_ERRORS = 4.0  # standard errors by which the best shift of plates must beat the next where the controls leave it open
KNOWN_SHIFT_ERRORS = 2.0  # and where the controls tell the shift, which the scores need but confirm
MIN_LOG_LIKELIHOOD = -10.0  # no well may speak louder against a shift than this log-probability


@dataclass(frozen=True)
class KnownLayout:
    """The siRNAs of an experiment as its design tells them; none, and a note, where the scores do not confirm it.

    `confidence`: one minus the tail probability, by a one-sided t-test over wells, that the scores like this layout
    better than its best rival by chance alone. It says how far the scores support the layout as a whole, and
    nothing of single wells that may stand otherwise than in the experiment that it was copied from.
    """

    sirnas: pd.Series  # by id_code
    confidence: float = 1.0
    note: str = ""


def known_layouts(wells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, KnownLayout]:
    """The siRNAs of every scored test experiment whose layout a training experiment shows.

    `wells`: columns as in `Tables.wells`, controls included, by which `duplicate_layouts` finds the pairs;
    `scores`: index id_code, columns class numbers, log-probabilities. The mean log-probability of a layout's siRNAs
    must beat that of its best rival, the other shifts of the plates and the layout moved by one well: by CLEAR
    standard errors over wells where the controls leave the shift open, by CONFIRMED where they tell it. What
    the scores do not confirm has no siRNAs and a note that says so.

    Returns a layout by experiment, with sirna by id_code of the scored wells that it has. This is an artefact of the
    competition's data, not biology: say so where it is used.
    """
    found = {}
    for pair in duplicate_layouts(wells):
        (reference, other), shift = pair["experiments"], pair["plate_shift"]
        mine = wells[(wells["experiment"] == other) & wells["id_code"].isin(scores.index) & (wells["well_type"] == "treatment")]
        if (mine["dataset"] == "test").any():
            answers = [_layout_sirnas(wells, mine, reference=reference, shift=k) for k in range(int(wells["plate"].max()))]
            found[other] = _confirm_layout(answers, shift, scores, reference=reference)
    return found


def _layout_sirnas(wells: pd.DataFrame, mine: pd.DataFrame, *, reference: str, shift: int) -> pd.Series:
    """The siRNA that each of `mine` has when plate p of the reference is plate p + shift here; NaN where it has none."""
    plates = int(wells["plate"].max())
    source = wells[wells["experiment"] == reference].set_index(["plate", "well"])["sirna"]
    places = pd.MultiIndex.from_arrays([(mine["plate"] - 1 - shift) % plates + 1, mine["well"]])
    return pd.Series(source.reindex(places).astype(float).to_numpy(), index=mine["id_code"].to_numpy(), name="sirna")


def _confirm_layout(answers: list[pd.Series], shift: int | None, scores: pd.DataFrame, *, reference: str) -> KnownLayout:
    """The layout under `shift`, or the likeliest where it is None, if the scores like it clearly better than its rivals."""
    likelihoods = [_log_likelihoods(answer, scores) for answer in answers]
    best = int(np.argmax([values.mean() for values in likelihoods])) if shift is None else shift
    moved = pd.Series(np.roll(answers[best], 1), answers[best].index)
    rivals = [*likelihoods[:best], *likelihoods[best + 1 :], _log_likelihoods(moved, scores)]
    lead = likelihoods[best] - max(rivals, key=np.mean)
    error = lead.std(ddof=1) / np.sqrt(len(lead)) if len(lead) > 1 else np.inf
    if lead.mean() > (OPEN_SHIFT_ERRORS if shift is None else KNOWN_SHIFT_ERRORS) * error:
        confidence = float(stdtr(len(lead) - 1, lead.mean() / error)) if error > 0 else 1.0
        return KnownLayout(answers[best].dropna().astype(int), confidence)
    told = "do not tell its shift of plates" if shift is None else "do not confirm it"
    note = f"controls repeat those of {reference}, but the scores {told}: layout not copied"
    return KnownLayout(answers[best].iloc[:0].astype(int), np.nan, note)


def _log_likelihoods(answer: pd.Series, scores: pd.DataFrame) -> np.ndarray:
    """Log-probability that each well has its answer; that of a guess where the layout or the scores have none."""
    values = below_best(scores.loc[answer.index].to_numpy(np.float32))
    values = values - np.log(np.exp(values).sum(1, keepdims=True))
    columns = scores.columns.get_indexer(answer.fillna(-1).astype(int))
    picked = np.maximum(values[np.arange(len(answer)), columns], MIN_LOG_LIKELIHOOD)
    return np.where(columns >= 0, picked, -np.log(values.shape[1]))

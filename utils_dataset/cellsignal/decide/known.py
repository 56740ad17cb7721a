"""Test experiments that repeat a training experiment's layout: their siRNAs are known but for the order of plates."""

import numpy as np
import pandas as pd

from cellsignal.data.plates import duplicate_layouts
from cellsignal.decide.calibrate import below_best

CLEAR = 4.0  # standard errors by which the best shift of plates must beat the next
FAINTEST = -10.0  # no well may speak louder against a shift than this log-probability


def known_layouts(wells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, pd.Series]:
    """The siRNAs of every scored test experiment whose layout a training experiment shows.

    `wells`: columns as in `Tables.wells`, controls included, by which `duplicate_layouts` finds the pairs;
    `scores`: index id_code, columns class numbers, log-probabilities. Where the controls leave the shift
    of the plates open, it is the one under which the wells' scores are likeliest. A shift that beats the next by fewer
    than CLEAR standard errors over wells is no knowledge, and its experiment is left out.

    Returns sirna by id_code of the scored wells that the layout has, by experiment. This is an artefact of the
    competition's data, not biology: say so where it is used.
    """
    found = {}
    for pair in duplicate_layouts(wells):
        (reference, other), shift = pair["experiments"], pair["plate_shift"]
        mine = wells[(wells["experiment"] == other) & wells["id_code"].isin(scores.index) & (wells["well_type"] == "treatment")]
        if (mine["dataset"] == "test").any():
            shifts = range(int(wells["plate"].max())) if shift is None else [shift]
            answers = [_answers(wells, mine, reference=reference, shift=shift) for shift in shifts]
            best = _clearest(answers, scores)
            if best is not None:
                found[other] = answers[best].dropna().astype(int)
    return found


def _answers(wells: pd.DataFrame, mine: pd.DataFrame, *, reference: str, shift: int) -> pd.Series:
    """The siRNA that each of `mine` has when plate p of the reference is plate p + shift here; NaN where it has none."""
    plates = int(wells["plate"].max())
    source = wells[wells["experiment"] == reference].set_index(["plate", "well"])["sirna"]
    places = pd.MultiIndex.from_arrays([(mine["plate"] - 1 - shift) % plates + 1, mine["well"]])
    return pd.Series(source.reindex(places).astype(float).to_numpy(), index=mine["id_code"].to_numpy(), name="sirna")


def _clearest(answers: list[pd.Series], scores: pd.DataFrame) -> int | None:
    """The answer that the scores like best, or None when the next is too close."""
    if len(answers) == 1:
        return 0
    likelihoods = np.stack([_log_likelihoods(answer, scores) for answer in answers])
    if likelihoods.shape[1] < 2:
        return None
    second, best = np.argsort(likelihoods.mean(1))[-2:]
    lead = likelihoods[best] - likelihoods[second]
    return int(best) if lead.mean() > CLEAR * lead.std(ddof=1) / np.sqrt(len(lead)) else None


def _log_likelihoods(answer: pd.Series, scores: pd.DataFrame) -> np.ndarray:
    """Log-probability that each well has its answer; that of a guess where the layout or the scores have none."""
    values = below_best(scores.loc[answer.index].to_numpy(np.float32))
    values = values - np.log(np.exp(values).sum(1, keepdims=True))
    columns = scores.columns.get_indexer(answer.fillna(-1).astype(int))
    picked = np.maximum(values[np.arange(len(answer)), columns], FAINTEST)
    return np.where(columns >= 0, picked, -np.log(values.shape[1]))

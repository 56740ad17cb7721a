"""What is done with a network's scores before the decision: views, prototypes, and the other networks' opinions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from cellsignal.decide.prototypes import blended, cosines, fit_scale
from cellsignal.errors import InputError


@dataclass(frozen=True)
class Refined:
    """The scores of one network, and what each refinement made of them."""

    scores: pd.DataFrame  # the last of them
    rungs: dict[str, pd.DataFrame]  # "views" and "prototypes" where they were asked for, each on top of those before
    scale: float = 0.0  # of the cosines to the prototypes; 0 where there are none


def refined(answers: Mapping[str, pd.DataFrame], wells: pd.DataFrame, *, statistics: str, weight: float = 0.0,
            scale: float = 0.0, joint: bool = False) -> Refined:
    """Put views and prototypes on top of the scores that one network gave under `statistics`.

    `answers`: as `predict.score_experiments` returns them, with "views" and "embeddings" where these were asked for.
    `wells`: columns as in `Tables.wells`, and split: a held-out well is compared with training wells alone, a
    test well with all labelled ones. `weight`: of the prototypes, 0 to 1; `scale`: of their cosines, 0 for the one
    that suits the held-out wells best (a network that has learnt these wells wants the scale of one that has not).
    `joint`: one network for all cell types. Raises InputError for a weight or scale that is none.
    """
    if not 0 <= weight <= 1 or scale < 0:
        raise InputError(f"prototypes with weight {weight:g} and scale {scale:g}", where="prototypes",
                         cure="give a weight from 0 to 1 and a scale of 0 (fitted) or more")
    rungs = {"views": answers["views"]} if "views" in answers else {}
    scores = rungs.get("views", answers[statistics])
    if weight and len(answers["embeddings"]):
        beside = _beside(answers["embeddings"], wells, joint=joint)
        held = wells[wells["split"] == "held_out"].set_index("id_code")["sirna"].dropna()
        scale = scale or fit_scale(beside[beside.index.isin(scores.index)], held)
        scores = rungs["prototypes"] = blended(scores, beside, weight=weight, scale=scale)
    return Refined(scores, rungs, scale if "prototypes" in rungs else 0.0)


def averaged(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean log-probability over networks, made to sum to one again (1st and 10th place average so).

    `tables`: index id_code, columns class numbers. Raises InputError when they differ in wells or classes.
    """
    first, *others = tables
    for other in others:
        if set(other.index) != set(first.index) or set(other.columns) != set(first.columns):
            raise InputError(f"{first.shape[0]} wells of {first.shape[1]} classes beside {other.shape[0]} of {other.shape[1]}",
                             where="ensemble", cure="score the same wells with networks of the same classes")
    if not others or first.empty:
        return first
    aligned = [table.reindex(index=first.index, columns=first.columns).to_numpy(np.float64) for table in tables]
    mean = log_softmax(np.mean(aligned, axis=0), axis=1).astype(np.float32)
    return pd.DataFrame(mean, index=first.index, columns=first.columns)


def _beside(embeddings: pd.DataFrame, wells: pd.DataFrame, *, joint: bool) -> pd.DataFrame:
    """The cosines of held-out wells to what training wells show, and of test wells to what all labelled ones show."""
    treatment = wells[wells["well_type"] == "treatment"].set_index("id_code")
    treatment = treatment[treatment.index.isin(embeddings.index)]
    tables = []
    for split, teachers in (("held_out", ["train"]), ("test", ["train", "held_out"])):
        asked = treatment.index[treatment["split"] == split]
        known = treatment.loc[treatment["split"].isin(teachers), "sirna"].astype(int)
        if len(asked) and len(known):  # a plate's wells are labelled or test wells, all of them, so that it stays whole
            tables.append(cosines(embeddings.loc[embeddings.index.isin([*asked, *known.index])], wells, known, joint=joint))
    return pd.concat(tables).fillna(0) if tables else pd.DataFrame(index=embeddings.index[:0])

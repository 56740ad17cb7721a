"""What is done with a network's scores before the decision: views, prototypes, and the other networks' opinions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from cellsignal.decide.assign.calibration import fit_temperature
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError

# What wells look like beside those whose siRNA is known: plate-centred embeddings and the classes' prototypes.


DEFAULT_SCALE = 20.0  # of cosines, where no held-out well tells a better one
SCALE_RANGE = 30.0  # scales are sought from a twentieth of it to twenty times it


def plate_centred(embeddings: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Embeddings less their mean over the wells of each plate.

    `embeddings`: index id_code, one column per feature, float32; `wells` tells experiment and plate of each.
    """
    places = wells.set_index("id_code").loc[embeddings.index]
    plates = [places["experiment"].to_numpy(), places["plate"].to_numpy()]
    return embeddings - embeddings.groupby(plates).transform("mean")


def prototype_cosines(embeddings: pd.DataFrame, wells: pd.DataFrame, known: pd.Series, *, joint: bool = False) -> pd.DataFrame:
    """Cosine of each well to the prototype of each class, float32 [wells without a known siRNA, classes].

    `embeddings`: as for `centred`, which is done here; `known`: siRNA by id_code of labelled wells. A prototype is the
    mean of the centred embeddings of the labelled wells of its class in the same cell type. `joint`: one network
    made all embeddings; a class that a cell type lacks then has the prototype of all cell types together. Without a
    prototype the cosine is 0, which says nothing.
    """
    known = known[known.index.isin(embeddings.index)].astype(int)
    features = plate_centred(embeddings, wells)
    cell_types = wells.set_index("id_code")["cell_type"].reindex(features.index)
    everywhere = _class_means(features, known) if joint else None
    asked = features[~features.index.isin(known.index)]
    tables = [
        _cosine_table(mine, _class_means(features, known[(cell_types.reindex(known.index) == name).to_numpy()], beside=everywhere))
        for name, mine in asked.groupby(cell_types.loc[asked.index])
    ]
    table = pd.concat(tables) if tables else pd.DataFrame(index=asked.index)
    return table.reindex(asked.index).fillna(0).astype(np.float32)


def fit_scale(cosines: pd.DataFrame, truth: pd.Series) -> float:
    """The scale at which the softmax of held-out wells' cosines has the least cross-entropy; SCALE without such wells.

    `truth`: siRNA by id_code. It is a temperature's reciprocal (`calibrate.fit_temperature`).
    """
    truth = truth[truth.index.isin(cosines.index) & truth.isin(cosines.columns)]
    return SCALE_RANGE / fit_temperature(cosines * SCALE_RANGE, truth) if len(truth) else DEFAULT_SCALE


def blend_scores(scores: pd.DataFrame, cosines: pd.DataFrame, *, weight: float, scale: float) -> pd.DataFrame:
    """Log-probabilities blended with those of the prototypes: (1 - weight) of the former, `weight` of the latter.

    `scores`: index id_code, columns class numbers, log-probabilities; `cosines`: as `cosines` gives them, whose
    softmax at `scale` is the prototypes' answer. Rows sum to one again; wells without cosines, and what is impossible
    by the scores, stay as they are.
    """
    mine = scores.index.isin(cosines.index)
    told = cosines.reindex(index=scores.index[mine], columns=scores.columns).fillna(0).to_numpy(np.float32)
    own = scores.to_numpy(np.float32)[mine]
    mixed = (1 - weight) * np.where(own > -np.inf, own, 0) + weight * log_softmax(scale * told, axis=1)
    answer = scores.astype(np.float32).copy()
    answer[mine] = log_softmax(np.where(own > -np.inf, mixed, -np.inf), axis=1)
    return answer


def _class_means(features: pd.DataFrame, known: pd.Series, *, beside: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean features by class; where there is none, the one of `beside`."""
    means = features.loc[known.index].groupby(known.to_numpy()).mean()
    return means if beside is None else pd.concat([means, beside[~beside.index.isin(means.index)]]).sort_index()


def _cosine_table(features: pd.DataFrame, prototypes: pd.DataFrame) -> pd.DataFrame:
    values = _unit_vectors(features.to_numpy(np.float32)) @ _unit_vectors(prototypes.to_numpy(np.float32)).T
    return pd.DataFrame(values, index=features.index, columns=prototypes.index)


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length; a row without one stays nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)


@dataclass(frozen=True)
class RefinedScores:
    """The scores of one network, and what each refinement made of them."""

    scores: pd.DataFrame  # the last of them
    rungs: dict[str, pd.DataFrame]  # "views" and "prototypes" where they were asked for, each on top of those before
    scale: float = 0.0  # of the cosines to the prototypes; 0 where there are none


def refine_scores(answers: Mapping[str, pd.DataFrame], wells: pd.DataFrame, settings: PredictionSettings, *, joint: bool = False) -> RefinedScores:
    """Put views and prototypes on top of the scores that one network gave under `settings.statistics`.

    `answers`: as `predict.score_experiments` returns them, with "views" and "embeddings" where these were asked for.
    `wells`: columns as in `Tables.wells`, and split: a held-out well is compared with training wells alone, a
    test well with all labelled ones. `settings.prototype_scale`: of the prototypes' cosines, 0 for the one
    that suits the held-out wells best (a network that has learnt these wells wants the scale of one that has not).
    `joint`: one network for all cell types.
    """
    weight, scale = settings.prototype_weight, settings.prototype_scale
    rungs = {"views": answers["views"]} if "views" in answers else {}
    scores = rungs.get("views", answers[settings.statistics])
    if weight and len(answers["embeddings"]):
        beside = _cosines_by_split(answers["embeddings"], wells, joint=joint)
        held = wells[wells["split"] == "held_out"].set_index("id_code")["sirna"].dropna()
        scale = scale or fit_scale(beside[beside.index.isin(scores.index)], held)
        scores = rungs["prototypes"] = blend_scores(scores, beside, weight=weight, scale=scale)
    return RefinedScores(scores, rungs, scale if "prototypes" in rungs else 0.0)


def average_scores(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
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


def _cosines_by_split(embeddings: pd.DataFrame, wells: pd.DataFrame, *, joint: bool) -> pd.DataFrame:
    """The cosines of held-out wells to what training wells show, and of test wells to what all labelled ones show."""
    treatment = wells[wells["well_type"] == "treatment"].set_index("id_code")
    treatment = treatment[treatment.index.isin(embeddings.index)]
    tables = []
    for split, teachers in (("held_out", ["train"]), ("test", ["train", "held_out"])):
        asked = treatment.index[treatment["split"] == split]
        known = treatment.loc[treatment["split"].isin(teachers), "sirna"].astype(int)
        if len(asked) and len(known):  # a plate's wells are labelled or test wells, all of them, so that it stays whole
            tables.append(prototype_cosines(embeddings.loc[embeddings.index.isin([*asked, *known.index])], wells, known, joint=joint))
    return pd.concat(tables).fillna(0) if tables else pd.DataFrame(index=embeddings.index[:0])

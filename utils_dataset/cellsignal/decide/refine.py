"""Refinements of a network's scores before the assignment: views, prototypes, and ensembles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from cellsignal.decide.assign.calibration import fit_temperature
from cellsignal.decide.settings import PredictionSettings
from cellsignal.errors import InputError

# Similarity of wells to those with a known siRNA: plate-centred embeddings and the prototypes of the classes.


DEFAULT_SCALE = 20.0  # from cosines to logits, without held-out wells to fit it on
SCALE_CENTRE = 30.0  # scales are fitted between a twentieth of it and twenty times it


def plate_centred(embeddings: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Embeddings minus their mean over the wells of each plate.

    `embeddings`: index id_code, one column per feature, float32; `wells`: has experiment and plate of each well.
    """
    rows = wells.set_index("id_code").loc[embeddings.index]
    plates = [rows["experiment"].to_numpy(), rows["plate"].to_numpy()]
    return embeddings - embeddings.groupby(plates).transform("mean")


def prototype_cosines(embeddings: pd.DataFrame, wells: pd.DataFrame, labels: pd.Series, *, joint: bool = False) -> pd.DataFrame:
    """Cosine between each well and the prototype of each class, float32 [wells without a label, classes].

    `embeddings`: as in `plate_centred`, which is applied here; `labels`: siRNA by id_code of labelled wells. A prototype is the
    mean of the centred embeddings of the labelled wells of a class in the same cell type. `joint`: one network made all
    embeddings, so that a class missing in a cell type takes the prototype over all cell types. Without a prototype the cosine
    is 0.
    """
    labels = labels[labels.index.isin(embeddings.index)].astype(int)
    features = plate_centred(embeddings, wells)
    cell_types = wells.set_index("id_code")["cell_type"].reindex(features.index)
    fallback = _class_means(features, labels) if joint else None
    unlabelled = features[~features.index.isin(labels.index)]
    tables = [
        _cosine_table(group, _class_means(features, labels[(cell_types.reindex(labels.index) == name).to_numpy()], fallback=fallback))
        for name, group in unlabelled.groupby(cell_types.loc[unlabelled.index])
    ]
    table = pd.concat(tables) if tables else pd.DataFrame(index=unlabelled.index)
    return table.reindex(unlabelled.index).fillna(0).astype(np.float32)


def fit_scale(cosines: pd.DataFrame, truth: pd.Series) -> float:
    """The scale at which the softmax of held-out wells' cosines has the least cross-entropy; DEFAULT_SCALE without such wells.

    `truth`: siRNA by id_code. A scale is the reciprocal of a temperature (`calibration.fit_temperature`).
    """
    truth = truth[truth.index.isin(cosines.index) & truth.isin(cosines.columns)]
    return SCALE_CENTRE / fit_temperature(cosines * SCALE_CENTRE, truth) if len(truth) else DEFAULT_SCALE


def blend_scores(scores: pd.DataFrame, cosines: pd.DataFrame, *, weight: float, scale: float) -> pd.DataFrame:
    """The weighted mean of log-probabilities: (1 - weight) of the scores, `weight` of the softmax of `scale` times the cosines.

    `scores`: index id_code, columns class numbers, log-probabilities; `cosines`: of `prototype_cosines`. Rows are normalised
    again; wells without cosines, and impossible classes (-inf), stay as they are.
    """
    rows = scores.index.isin(cosines.index)
    similarity = cosines.reindex(index=scores.index[rows], columns=scores.columns).fillna(0).to_numpy(np.float32)
    values = scores.to_numpy(np.float32)[rows]
    mean = (1 - weight) * np.where(values > -np.inf, values, 0) + weight * log_softmax(scale * similarity, axis=1)
    blended = scores.astype(np.float32).copy()
    blended[rows] = log_softmax(np.where(values > -np.inf, mean, -np.inf), axis=1)
    return blended


def _class_means(features: pd.DataFrame, labels: pd.Series, *, fallback: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean features by class; those of `fallback` for missing classes."""
    means = features.loc[labels.index].groupby(labels.to_numpy()).mean()
    return means if fallback is None else pd.concat([means, fallback[~fallback.index.isin(means.index)]]).sort_index()


def _cosine_table(features: pd.DataFrame, prototypes: pd.DataFrame) -> pd.DataFrame:
    values = _unit_vectors(features.to_numpy(np.float32)) @ _unit_vectors(prototypes.to_numpy(np.float32)).T
    return pd.DataFrame(values, index=features.index, columns=prototypes.index)


def _unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its norm; zero rows stay zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)


@dataclass(frozen=True)
class RefinedScores:
    """The refined scores of one network, and those after each refinement."""

    scores: pd.DataFrame  # after the last refinement
    rungs: dict[str, pd.DataFrame]  # "views" and "prototypes" if computed, each on top of the previous one
    scale: float = 0.0  # from cosines to logits; 0 without prototypes


def refine_scores(network_scores: Mapping[str, pd.DataFrame], wells: pd.DataFrame, settings: PredictionSettings, *, joint: bool = False) -> RefinedScores:
    """Refine the scores of one network under `settings.statistics` by views and prototypes.

    `network_scores`: of `predict.score_experiments`, with "views" and "embeddings" if computed. `wells`: columns as in
    `Tables.wells`, and split: held-out wells are compared with training wells, test wells with all labelled ones.
    `settings.prototype_scale`: from cosines to logits, 0 to fit it on the held-out wells (a network trained on these wells needs
    the scale of one that was not). `joint`: one network for all cell types.
    """
    weight, scale = settings.prototype_weight, settings.prototype_scale
    rungs = {"views": network_scores["views"]} if "views" in network_scores else {}
    scores = rungs.get("views", network_scores[settings.statistics])
    if weight and len(network_scores["embeddings"]):
        cosines = _cosines_by_split(network_scores["embeddings"], wells, joint=joint)
        held_out = wells[wells["split"] == "held_out"].set_index("id_code")["sirna"].dropna()
        scale = scale or fit_scale(cosines[cosines.index.isin(scores.index)], held_out)
        scores = rungs["prototypes"] = blend_scores(scores, cosines, weight=weight, scale=scale)
    return RefinedScores(scores, rungs, scale if "prototypes" in rungs else 0.0)


def average_scores(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean log-probability over networks, normalised again (as in the 1st and 10th place).

    `tables`: index id_code, columns class numbers. Raises InputError if they differ in wells or classes.
    """
    first, *others = tables
    for other in others:
        if set(other.index) != set(first.index) or set(other.columns) != set(first.columns):
            raise InputError(f"{first.shape[0]} wells of {first.shape[1]} classes, but {other.shape[0]} of {other.shape[1]}",
                             where="ensemble", cure="score the same wells with networks of the same classes")
    if not others or first.empty:
        return first
    aligned = [table.reindex(index=first.index, columns=first.columns).to_numpy(np.float64) for table in tables]
    mean = log_softmax(np.mean(aligned, axis=0), axis=1).astype(np.float32)
    return pd.DataFrame(mean, index=first.index, columns=first.columns)


def _cosines_by_split(embeddings: pd.DataFrame, wells: pd.DataFrame, *, joint: bool) -> pd.DataFrame:
    """Cosines of held-out wells to the prototypes of training wells, and of test wells to those of all labelled wells."""
    treatment = wells[wells["well_type"] == "treatment"].set_index("id_code")
    treatment = treatment[treatment.index.isin(embeddings.index)]
    tables = []
    for split, labelled_splits in (("held_out", ["train"]), ("test", ["train", "held_out"])):
        unlabelled = treatment.index[treatment["split"] == split]
        labels = treatment.loc[treatment["split"].isin(labelled_splits), "sirna"].astype(int)
        if len(unlabelled) and len(labels):  # plates stay whole, because all wells of a plate have the same split
            tables.append(prototype_cosines(embeddings.loc[embeddings.index.isin([*unlabelled, *labels.index])], wells, labels, joint=joint))
    return pd.concat(tables).fillna(0) if tables else pd.DataFrame(index=embeddings.index[:0])

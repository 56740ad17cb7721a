"""What wells look like beside those whose siRNA is known: plate-centred embeddings and the classes' prototypes.

The second place of the competition centred the embeddings of each plate and compared wells with the mean of each
class in the same cell type (discussion 110457); the seventh centred them by experiment (110335). What is common to
a plate is mostly its batch effect, and a plate always carries the same siRNAs, so nothing of theirs is lost.
"""

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from cellsignal.decide.calibrate import fit_temperature

SCALE = 20.0  # of cosines, where no held-out well tells a better one
SPAN = 30.0  # scales are sought from a twentieth of it to twenty times it


def centred(embeddings: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    """Embeddings less their mean over the wells of each plate.

    `embeddings`: index id_code, one column per feature, float32; `wells` tells experiment and plate of each.
    """
    places = wells.set_index("id_code").loc[embeddings.index]
    plates = [places["experiment"].to_numpy(), places["plate"].to_numpy()]
    return embeddings - embeddings.groupby(plates).transform("mean")


def cosines(embeddings: pd.DataFrame, wells: pd.DataFrame, known: pd.Series, *, joint: bool = False) -> pd.DataFrame:
    """Cosine of each well to the prototype of each class, float32 [wells without a known siRNA, classes].

    `embeddings`: as for `centred`, which is done here; `known`: siRNA by id_code of labelled wells. A prototype is the
    mean of the centred embeddings of the labelled wells of its class in the same cell type. `joint`: one network
    made all embeddings; a class that a cell type lacks then has the prototype of all cell types together. Without a
    prototype the cosine is 0, which says nothing.
    """
    known = known[known.index.isin(embeddings.index)].astype(int)
    features = centred(embeddings, wells)
    cell_types = wells.set_index("id_code")["cell_type"].reindex(features.index)
    everywhere = _prototypes(features, known) if joint else None
    asked = features[~features.index.isin(known.index)]
    tables = [
        _cosines(mine, _prototypes(features, known[(cell_types.reindex(known.index) == name).to_numpy()], beside=everywhere))
        for name, mine in asked.groupby(cell_types.loc[asked.index])
    ]
    table = pd.concat(tables) if tables else pd.DataFrame(index=asked.index)
    return table.reindex(asked.index).fillna(0).astype(np.float32)


def fit_scale(cosines: pd.DataFrame, truth: pd.Series) -> float:
    """The scale at which the softmax of held-out wells' cosines has the least cross-entropy; SCALE without such wells.

    `truth`: siRNA by id_code. It is a temperature's reciprocal (`calibrate.fit_temperature`).
    """
    truth = truth[truth.index.isin(cosines.index) & truth.isin(cosines.columns)]
    return SPAN / fit_temperature(cosines * SPAN, truth) if len(truth) else SCALE


def blended(scores: pd.DataFrame, cosines: pd.DataFrame, *, weight: float, scale: float) -> pd.DataFrame:
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


def _prototypes(features: pd.DataFrame, known: pd.Series, *, beside: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean features by class; where there is none, the one of `beside`."""
    means = features.loc[known.index].groupby(known.to_numpy()).mean()
    return means if beside is None else pd.concat([means, beside[~beside.index.isin(means.index)]]).sort_index()


def _cosines(features: pd.DataFrame, prototypes: pd.DataFrame) -> pd.DataFrame:
    values = _units(features.to_numpy(np.float32)) @ _units(prototypes.to_numpy(np.float32)).T
    return pd.DataFrame(values, index=features.index, columns=prototypes.index)


def _units(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length; a row without one stays nothing."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)

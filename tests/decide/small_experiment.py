"""One experiment that fits on a page: 4 plates of 3 wells, 12 siRNAs in four groups."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.settings import AssignmentSettings

GROUPS = [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
ROTATIONS = {"HUVEC-90": [0, 1, 2, 3], "HUVEC-91": [1, 2, 3, 0], "HUVEC-92": [-1, 0, 1, 2]}

METHODS = get_args(AssignmentSettings.model_fields["method"].annotation)
each_method = pytest.mark.parametrize("method", METHODS)
each_one_to_one = pytest.mark.parametrize("method", METHODS[1:])


def experiment(*, seed: int = 0, signal: float = 3.0, rotation: tuple[int, ...] = (2, 3, 0, 1)):
    """Scores, wells and truth of one experiment: 4 plates of 3 wells, 12 classes."""
    rng = np.random.default_rng(seed)
    truth = [sirna for group in rotation for sirna in rng.permutation(GROUPS[group])]
    plates = np.repeat([1, 2, 3, 4], 3)
    ids = [f"HUVEC-01_{plate}_B{2 + i % 3:02d}" for i, plate in enumerate(plates)]
    logits = rng.normal(size=(12, 12))
    logits[np.arange(12), truth] += signal
    scores = pd.DataFrame(logits - np.logaddexp.reduce(logits, 1, keepdims=True), index=ids, columns=range(12))
    wells = pd.DataFrame({"id_code": ids, "experiment": "HUVEC-01", "cell_type": "HUVEC", "plate": plates})
    return scores.astype(np.float32), wells, pd.Series(truth, index=ids)

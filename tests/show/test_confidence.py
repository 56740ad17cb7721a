"""The reliability plot shows what was stated and what came true."""

import numpy as np
import pandas as pd

from cellsignal.show.ladder import reliability


def test_points_are_shares_of_right_answers_at_their_stated_probability():
    confidence = pd.Series([0.05, 0.05, 0.85, 0.85, 0.85, 1.0], index=list("abcdef"))
    right = pd.Series([False, True, True, True, False, True], index=list("abcdef"))
    curve, counts = reliability(confidence, right[::-1]).axes
    points = {tuple(np.round(np.ravel(line.get_xydata()), 4)) for line in curve.lines if line.get_marker() == "o"}
    assert points == {(0.05, 0.5), (0.85, 0.6667), (1.0, 1.0)}, "wells are matched by id_code, not by place"
    assert [bar.get_height() for bar in counts.patches] == [2, 0, 0, 0, 0, 0, 0, 0, 3, 1]

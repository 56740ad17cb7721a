"""Figures of profiles: what is drawn, and that simulated plates say so."""

import numpy as np
import pandas as pd

from cellsignal.data.simulated import showing
from cellsignal.show.profiles import draw_activity, draw_maps, draw_retrieval

ROWS = pd.DataFrame([
    {"profiles": name, "restriction": restriction, "mean_average_precision": value, "recall_at_1": value / 2, "chance_at_1": 0.01}
    for name, value in (("uncorrected", 0.2), ("corrected", 0.4), ("random weights, corrected", 0.1)) for restriction in ("none", "not the same batch")
])  # fmt: skip


def test_a_bar_is_drawn_for_each_table_and_restriction() -> None:
    figure = draw_retrieval(ROWS)
    precision, recall = figure.axes
    assert sorted(bar.get_height() for bar in precision.patches) == [0.1, 0.1, 0.2, 0.2, 0.4, 0.4] and len(recall.collections) == 3
    assert len({bar.get_facecolor() for bar in precision.patches}) == 3
    assert "cannot be measured" in draw_retrieval(ROWS.iloc[:0]).texts[0].get_text()


def test_all_titles_say_that_plates_are_simulated() -> None:
    points, distances = {"uncorrected": np.random.default_rng(0).normal(size=(30, 2))}, pd.DataFrame({"distance": [1.0, 5.0], "corrected_p_value": [0.5, 0.01]})
    with showing(True):
        figures = [draw_maps(points, ["a"] * 30, title="Wells"), draw_retrieval(ROWS), draw_activity(distances, np.ones(10), significance=0.05)]
    assert all("(simulated data)" in figure.get_suptitle() for figure in figures)
    assert figures[2].get_suptitle().startswith("50% of 2 treatments") and figures[0].png()


def test_one_component_is_a_map_on_a_line() -> None:
    [axes] = draw_maps({"one": np.arange(6.0)[:, None]}, [*"aabbcc"], title="Wells").axes
    assert np.array_equal(np.concatenate([each.get_offsets() for each in axes.collections]), [[x, 0] for x in range(6)])


def test_rare_labels_of_a_map_are_grey() -> None:
    labels = [*"aabbccddeeffgghh", *"xyz"]
    [axes] = draw_maps({"one": np.zeros((len(labels), 2))}, labels, title="Wells").axes
    assert len(axes.collections) == 9 and len(axes.collections[0].get_offsets()) == 3

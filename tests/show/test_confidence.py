"""The reliability plot shows what was stated and what came true."""

import numpy as np
import pandas as pd

from cellsignal.show.results.ladder import estimated_accuracy, rejection_curve, reliability, set_sizes


def test_points_are_shares_of_right_answers_at_their_stated_probability():
    confidence = pd.Series([0.05, 0.05, 0.85, 0.85, 0.85, 1.0], index=list("abcdef"))
    right = pd.Series([False, True, True, True, False, True], index=list("abcdef"))
    curve, counts = reliability(confidence, right[::-1]).axes
    points = {tuple(np.round(np.ravel(line.get_xydata()), 4)) for line in curve.lines if line.get_marker() == "o"}
    assert points == {(0.05, 0.5), (0.85, 0.6667), (1.0, 1.0)}, "wells are matched by id_code, not by place"
    assert [bar.get_height() for bar in counts.patches] == [2, 0, 0, 0, 0, 0, 0, 0, 3, 1]


def sets_row(split: str, experiment: str, coverage: float, size: float, covered: float | None) -> dict:
    return {"split": split, "experiment": experiment, "coverage": coverage, "mean_size": size, "covered": covered}


def test_sets_are_drawn_by_experiment_the_held_out_ones_last():
    rows = [sets_row("held_out", "HUVEC-05", 0.9, 2.0, 0.75), sets_row("test", "HUVEC-17", 0.8, 1.0, None), sets_row("test", "HUVEC-17", 0.9, 3.0, None),
            sets_row("test", "all", 0.9, 3.0, None)]
    figure = set_sizes(rows)
    sizes, covered = figure.axes
    assert [label.get_text() for label in sizes.get_yticklabels()] == ["HUVEC-17", "HUVEC-05 (held out)"]
    assert {tuple(line.get_xydata()[0]) for line in sizes.lines} == {(1.0, 0), (3.0, 0), (2.0, 1)}
    assert [tuple(line.get_xydata()[0]) for line in covered.lines if line.get_marker() == "o"] == [(0.75, 1)]
    assert sorted(line.get_xdata()[0] for line in covered.lines if line.get_linestyle() == "--") == [0.8, 0.9] and figure.png()
    legend = [(line.get_color(), line.get_markersize(), text.get_text()) for line, text in zip(figure.legends[0].get_lines(), figure.legends[0].get_texts())]
    assert legend == [(line.get_color(), line.get_markersize(), f"{share} nominal") for line, share in zip(reversed(sizes.lines[-2:]), ("80%", "90%"))]
    assert len(set_sizes(rows[1:]).axes) == 1, "nothing is known of these"
    assert "No prediction sets" in set_sizes(rows[3:]).texts[0].get_text()


def test_the_curve_of_the_surest_wells_has_what_is_stated_and_what_is_true():
    rows = [{"share": 0.5, "stated": 0.9, "accuracy": 1.0}, {"share": 1.0, "stated": 0.7, "accuracy": 0.6}]
    stated, true = rejection_curve(rows).axes[0].lines
    assert stated.get_ydata().tolist() == [0.9, 0.7] and true.get_xydata().tolist() == [[0.5, 1.0], [1.0, 0.6]]
    unknown = rejection_curve([{**row, "accuracy": None} for row in rows])
    assert unknown.axes[0].lines[1].get_xydata().size == 0 and unknown.png()
    assert "No answer can be checked" in rejection_curve([]).texts[0].get_text()


def estimate(rung: str, level: str, name: str, estimated: float | None, error: float | None, true: float | None) -> dict:
    return {"rung": rung, "level": level, "name": name, "estimated_accuracy": estimated, "standard_error": error, "accuracy": true}


def test_estimates_of_the_last_rung_stand_by_experiment_with_the_truth_where_it_is_known():
    rows = [estimate("running", "experiment", "RPE-08", 0.1, 0.02, 0.1), estimate("adapted", "all", "all", 0.6, 0.01, 0.6),
            estimate("adapted", "experiment", "RPE-08", 0.6, 0.05, 0.55), estimate("adapted", "experiment", "RPE-09", None, None, None)]
    [axes] = (figure := estimated_accuracy(rows)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["RPE-08", "RPE-09"]
    points = {line.get_marker(): tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() in ("o", "D")}
    assert points == {"o": (0.6, 0), "D": (0.55, 0)}
    [bar] = [collection.get_segments()[0] for collection in axes.collections]
    assert np.allclose(bar, [[0.5, 0], [0.7, 0]])
    assert [(text.get_text(), text.xy[1]) for text in axes.texts] == [("not measurable", 1)] and figure.png()
    assert "no groups" in estimated_accuracy([]).texts[0].get_text()

"""The figures and the page of a comparison: whole, and the same for the same runs."""

from pathlib import Path

import pandas as pd
import pytest
from finished_runs import wells, write_run

from cellsignal.decide.evaluate.compare import compare
from cellsignal.files import read_json
from cellsignal.run.record.results import read_results
from cellsignal.show.results import compare as draw
from cellsignal.show.results.compare import write_comparison


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, pd.DataFrame]:
    """Two seeds of one recipe, one of another; held-out experiments that the seed chose."""
    folder, held = tmp_path_factory.mktemp("runs"), wells(split="held_out", seed=5)
    runs = [write_run(folder / f"<b>-seed{seed}", raw=0.4, assigned=0.6, seed=seed, tables=[wells(), held[held["experiment"].str.endswith(f"0{seed + 1}")]])
            for seed in (0, 1)]
    runs.append(write_run(folder / "best", raw=0.8, assigned=0.9, tables=[wells(), held[held["experiment"].str.endswith("01")]], epochs=9))
    results, differing = read_results([str(run) for run in runs], here=folder / "x")
    return compare(results, draws=100), differing


def panels(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_raw_and_assigned_have_panels_of_their_own(found: tuple) -> None:
    comparison, _ = found
    assert panels(draw.accuracy_and_cost(comparison, split="test")) == [
        "Raw accuracy, test wells", "Assigned accuracy, test wells", "Training, minutes", "Weights, millions"]
    assert panels(draw.by_cell_type(comparison, split="test")) == ["HUVEC, raw", "RPE, raw", "HUVEC, assigned", "RPE, assigned"]
    assert panels(draw.by_experiment(comparison, split="held_out")) == ["Raw", "Assigned"]
    assert panels(draw.differences(comparison, split="test")) == ["Raw: better than <b> by", "Assigned: better than <b> by"]


def test_the_confusions_are_those_of_the_wrong_answers(found: tuple) -> None:
    [row] = [row for row in found[0]["confusions"] if (row["split"], row["kind"], row["recipe"]) == ("test", "raw", "<b>")]
    assert row["wells"] == 240 and sum(map(sum, row["matrix"])) == row["wrong"] == sum(map(sum, row["between"]))
    assert row["over_chance"] > 1.5, "half of the wrong answers are neighbours in the group"
    assert draw.confusion(row).axes[0].get_title(loc="left") == f"<b>, raw: {row['wrong']} of 240 wrong"
    assert draw.confusion({**row, "wrong": 0}).texts[0].get_text() == "<b>: nothing is confused"


def test_without_answers_a_picture_says_so(found: tuple) -> None:
    nothing = {"accuracies": [], "differences": [], "runs": []}
    for draw_figure in (draw.accuracy_and_cost, draw.by_cell_type, draw.by_experiment, draw.differences):
        assert "test wells" in draw_figure(nothing, split="test").texts[0].get_text()


def test_the_page_is_whole(found: tuple, tmp_path: Path) -> None:
    text = write_comparison(tmp_path, *found).read_text(encoding="utf-8")
    assert "<b>-" not in text and "&lt;b&gt;-seed1" in text and "http" not in text.replace("http-equiv", "")
    for words in ("3 runs of 2 recipes", "What differs", "Rung by rung: test wells", "By experiment: held-out wells", "p, Holm", "Cost",
                  "times as many as by chance"):
        assert words in text
    assert text.count('src="data:image/png') == 2 * 4 + 4  # four figures a split, four confusions
    told = read_json(tmp_path / "compare.json")
    assert set(told) == set(found[0]) and "matrix" not in told["confusions"][0] and len(told["pairs"]) == 8

"""The figures of a sweep: every variant and every parameter has its place, raw and assigned never share one."""

from pathlib import Path

import matplotlib
import pytest
from finished_runs import wells, write_run
from matplotlib.text import Text

from cellsignal.decide.evaluate.compare import compare
from cellsignal.run.sweep import results as sweep_results
from cellsignal.run.record.results import read_results
from cellsignal.show.results import compare as draw
from cellsignal.show.results.multilabel import class_frequencies
from cellsignal.show.curves import curves
from cellsignal.show.results.ladder import experiment_dots, ladder
from cellsignal.show.style import STYLE
from cellsignal.show.results.sweeps import draw_search, draw_variants
from cellsignal.tasks import TASKS

ACCURACIES = {"held_out_raw": 0.6, "held_out_assigned": 0.7, "test_raw": 0.5, "test_assigned": 0.65}


def record(variant: str, seed: int = 0, *, better: float = 0.0, status: str = "done", **changes: object) -> dict:
    measured = {name: value + better + 0.01 * seed for name, value in ACCURACIES.items()}
    ended = {**measured, "seconds": 60.0, "weights": 250_000, "code": "a"} if status == "done" else {}
    return {"variant": variant, "seed": seed, "status": status, "changes": changes, **ended}


def test_a_row_for_each_variant_even_one_that_failed() -> None:
    records = [record(name, seed, better=0.1 * place, status="failed" if name == "broken" else "done")
               for seed in (0, 1, 2) for place, name in enumerate(("base", "broken", "better"))]
    trials = sweep_results.trials_table(records)
    figure = draw_variants(trials, sweep_results.variants_table(trials, order=["base", "broken", "better"]))
    raw, assigned, cost = figure.axes
    assert [label.get_text() for label in raw.get_yticklabels()] == ["base", "broken", "better"]
    assert raw.get_title(loc="left").startswith("Raw") and assigned.get_title(loc="left").startswith("Assigned")
    means = [line for line in assigned.lines if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    assert sorted(round(line.get_xdata()[0], 6) for line in means) == [0.66, 0.86]
    assert [text.get_text() for text in raw.texts] == ["no trial has finished"]
    assert [text.get_text() for text in cost.texts] == ["0.25 M weights"] * 2
    assert figure.png()


def test_a_metric_of_one_kind_has_one_panel() -> None:
    kinds = sweep_results.RUNG_KINDS["split_accuracy"]
    trials = sweep_results.trials_table([record("base"), record("better", better=0.1)], kinds=kinds)
    raw, cost = draw_variants(trials, sweep_results.variants_table(trials, order=["base", "better"]), metric="accuracy of sites").axes
    assert raw.get_xlabel() == "accuracy of sites" and len(cost.texts) == 2


def test_nothing_but_failures_is_said() -> None:
    trials = sweep_results.trials_table([record("base", status="failed")])
    figure = draw_variants(trials, sweep_results.variants_table(trials, order=["base"]))
    assert [text.get_text() for text in figure.texts] == ["no trial has finished"]


def test_a_search_has_a_panel_for_each_parameter() -> None:
    rates = [0.0001, 0.001, 0.01, 0.1]
    records = [record(f"trial-{number:03d}", better=0.1 * (rate == 0.01), learning_rate=rate, optimizer="adam" if number % 2 else "sgd", sizes=[32, 64],
                      status="pruned" if rate == 0.1 else "done") for number, rate in enumerate(rates)]
    keys = ["learning_rate", "optimizer", "sizes", "dropout"]
    figure = draw_search(sweep_results.trials_table(records, keys=keys[:3]).assign(dropout=0.5), keys=keys, measure="assigned")
    story, rate, optimizer, sizes, dropout, *unused = figure.axes
    assert [axes.get_xlabel() for axes in (story, rate, optimizer, sizes, dropout)] == ["trial", *keys]
    assert (rate.get_xscale(), dropout.get_xscale()) == ("log", "linear") and not any(axes.get_visible() for axes in unused)
    [line] = [line for line in story.lines if line.get_label() == "best so far"]
    assert line.get_ydata().tolist() == pytest.approx([0.7, 0.7, 0.8])
    [crosses] = [line for line in story.lines if line.get_marker() == "x"]
    assert crosses.get_xdata().tolist() == [3] and crosses.get_ydata()[0] < 0.7
    assert figure.png()


def test_the_best_value_of_a_parameter_is_that_of_the_best_mean_over_seeds() -> None:
    records = [record(f"trial-{number:03d}", seed, better=better, dropout=0.1 * number, optimizer=name)
               for number, name, seed, better in ((0, "adam", 0, -0.2), (0, "adam", 1, 0.3), (1, "sgd", 0, 0.2), (1, "sgd", 1, 0.2))]
    figure = draw_search(sweep_results.trials_table(records, keys=["dropout", "optimizer"]), keys=["dropout", "optimizer"], measure="raw")
    for axes, value in zip(figure.axes[1:], (0.1, "sgd")):
        assert axes.lines[-1].get_xdata(orig=True).tolist() == [value, value] and axes.lines[-1].get_ydata().tolist() == pytest.approx([0.8, 0.81])


FORMULA = "a_{b$ x^{ $c"  # Matplotlib would take it for one, and stumble


def test_names_are_no_formulas() -> None:
    trials = sweep_results.trials_table([record(FORMULA), record("base", better=0.1)])
    figure = draw_variants(trials, sweep_results.variants_table(trials, order=[FORMULA, "base"]))
    assert figure.png() and [label.get_text() for label in figure.axes[0].get_yticklabels()] == [FORMULA, "base"]
    records = [record(f"trial-{number:03d}", backbone=name) for number, name in enumerate((FORMULA, "b"))]
    figure = draw_search(sweep_results.trials_table(records, keys=["backbone"]), keys=["backbone"], measure="raw")
    assert figure.png() and [label.get_text() for label in figure.axes[1].get_xticklabels()] == [FORMULA, "b"]


@pytest.mark.filterwarnings("error")
def test_a_long_name_is_shortened_in_its_middle() -> None:
    names = ["W" * 300 + " a", "W" * 300 + " b"]
    trials = sweep_results.trials_table([record(name) for name in names])
    figure = draw_variants(trials, sweep_results.variants_table(trials, order=names))
    assert figure.png() and [label.get_text() for label in figure.axes[0].get_yticklabels()] == [f"{'W' * 16}…{'W' * 13} {end}" for end in "ab"]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.filterwarnings("error")
def test_every_picture_takes_such_a_name(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, raw=0.4 + 0.2 * place, assigned=0.7, tables=[wells(design={"$_{a$ b": 1, "RPE": 1})], epochs=place)
            for place, name in enumerate((FORMULA, "_hidden"))]
    results, _ = read_results([str(run) for run in runs], here=tmp_path / "x")
    comparison = compare(results, draws=20)
    drawings = (draw.accuracy_and_cost, draw.by_cell_type, draw.by_experiment, draw.differences)
    figures = [drawing(comparison, split="test") for drawing in drawings] + [draw.confusion(row) for row in comparison["confusions"]]
    rung = {"rung": FORMULA, "kind": "raw", "split": "test", "accuracy": 0.5, "by_cell_type": {"$_{a$ b": 0.5}, "by_experiment": {"$_{a$ b-21": 0.5}}
    epochs = [{"phase": FORMULA, "epoch": 1, "loss": 1.0, "accuracy": 0.5, "learning_rate": 10.0**-place} for place in (2, 4)]
    figures += [ladder([rung]), experiment_dots([rung]), curves(epochs, title=FORMULA), class_frequencies([(0,), (1, 2)] * 50, TASKS["protein-atlas"])]
    for figure in figures:
        assert figure.png()
        with matplotlib.rc_context(STYLE):
            texts = [text.get_text() for text in figure.findobj(Text)]
        assert not [text for text in texts if "mathdefault" in text]
    with matplotlib.rc_context(STYLE):
        rates = {label.get_text().replace("\N{MINUS SIGN}", "-") for axes in figures[-2].axes for label in axes.get_yticklabels()}
        assert {"1e-04", "1e-03", "1e-02"} <= rates

"""The pictures of a sweep: every variant and every parameter has its place, raw and assigned never share one."""

import pytest

from cellsignal.run import sweep_results
from cellsignal.show.sweeps import draw_search, draw_variants

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
    assert [text.get_text() for text in raw.texts] == ["no trial has come to its end"]
    assert [text.get_text() for text in cost.texts] == ["0.25 M weights"] * 2
    assert figure.png()


def test_nothing_but_failures_is_said() -> None:
    trials = sweep_results.trials_table([record("base", status="failed")])
    figure = draw_variants(trials, sweep_results.variants_table(trials, order=["base"]))
    assert [text.get_text() for text in figure.texts] == ["no trial has come to its end"]


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

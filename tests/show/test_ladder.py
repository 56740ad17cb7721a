"""The ladder: raw and assigned accuracies never meet."""

import numpy as np

from cellsignal.show.ladder import confusion, experiment_dots, group_confidence, ladder, of_split


def rungs_of(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_raw_and_assigned_have_an_axis_each(rungs, held_out):
    raw, assigned = ladder(held_out + rungs, floor=0.2).axes
    assert (rungs_of(raw), rungs_of(assigned)) == (["running", "adapted"], ["exact"])
    assert raw.get_title(loc="left").startswith("Raw")
    assert "linear model 0.200" in [text.get_text() for text in raw.texts]
    assert "linear model 0.200" not in [text.get_text() for text in assigned.texts]


def test_test_wells_come_before_held_out_ones(rungs, held_out):
    assert of_split(held_out + rungs) == rungs
    assert of_split(held_out + rungs, "held_out") == held_out == of_split(held_out)


def test_one_kind_alone_and_no_rung_at_all(rungs):
    assert len(ladder(rungs[:1]).axes) == 1
    assert ladder([]).png() and experiment_dots([]).png()


def test_experiments_have_an_axis_for_each_kind(rungs):
    raw, assigned = experiment_dots(rungs).axes
    assert raw.get_title(loc="left") == "Raw: running, adapted"
    assert len(raw.lines) == 2 and len(assigned.lines) == 1


def test_group_confidence_and_confusion():
    fit = np.array([[0.0, -5.0], [-7.0, -1.0]])
    figure = group_confidence(fit, plates=["U2OS-04 plate 1", "U2OS-04 plate 2"], chosen=[0, 1])
    assert figure.axes[0].images[0].get_array().max() == 0
    shares = confusion(np.array([[3, 1], [0, 0]]), names=["1", "2"]).axes[0].images[0].get_array()
    assert shares.tolist() == [[0.75, 0.25], [0.0, 0.0]]

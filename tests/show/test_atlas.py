"""Figures of sites with several labels, from almost nothing."""

import numpy as np
import pytest

from cellsignal.show.results import multilabel
from cellsignal.show.eda import plots
from cellsignal.show.report import rungs_figure
from cellsignal.tasks import PROTEIN_ATLAS

LABELS = [(0,), (0, 25), (25,), (0, 21), (27,)]


def test_sites_are_shown_in_their_own_colours() -> None:
    image = np.zeros((4, 8, 8), np.uint8)
    image[1, 2:4] = 200  # the protein is green
    rgb = plots.composite(image, task=PROTEIN_ATLAS)
    assert rgb[3, 3, 1] > 0.5 and rgb[3, 3, [0, 2]].max() == 0
    assert len(plots.show_wells([image], ["0"], task=PROTEIN_ATLAS).axes) == 5


def test_examples_show_the_frequent_classes_as_alone_as_they_can_be() -> None:
    assert multilabel.examples(LABELS, PROTEIN_ATLAS, count=2) == [0, 2]
    assert multilabel.examples([], PROTEIN_ATLAS) == []


@pytest.mark.parametrize("labels", [LABELS, [(3,)]])
def test_any_labels_can_be_drawn(labels: list[tuple[int, ...]]) -> None:
    assert multilabel.class_frequencies(labels, PROTEIN_ATLAS).axes and multilabel.label_cooccurrence(labels, PROTEIN_ATLAS).axes


def test_rungs_of_any_metric_become_a_picture() -> None:
    row = {"rung": "thresholds 0.5", "kind": "network", "split": "test", "macro_f1": 0.3, "method": "half", "by_class": [0.5] * 28}
    floor = {"rung": "all labels", "kind": "floor", "split": "test", "macro_f1": 0.1}
    texts = [text.get_text() for text in rungs_figure({"metric": "macro_f1", "rungs": [floor, row]}).axes[0].texts]
    assert texts == ["0.100", "0.300"]
    assert len(multilabel.class_scores([floor, row], [3] * 28, PROTEIN_ATLAS).axes[0].lines) == 1
    split = {"split": "test", "rung": "running", "accuracy": 0.25, "worst_cell_type": 0.25, "by_experiment": {"HUVEC-01": 0.25}, "by_cell_type": {"HUVEC": 0.25}}
    assert [text.get_text() for text in rungs_figure({"metric": "split_accuracy", "splits": [split]}).axes[0].texts] == ["0.250"]
    for metrics in ({}, {"metric": "macro_f1", "rungs": []}, {"metric": "split_accuracy", "splits": []}):
        assert rungs_figure(metrics).texts[0].get_text() == "No rung yet."

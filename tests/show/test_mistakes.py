"""Wells taken for another siRNA: counted, exemplified, and shown beside what they were taken for."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.data import simulated
from cellsignal.data.images.reader import write_channel, channel_path
from cellsignal.show.eda.composites import composite
from cellsignal.show.mistakes import confused_pairs, image_pairs, wrong_wells

TRUTH = pd.Series({"t1": 1, "t2": 1, "t3": 1, "t4": 2, "t5": 3, "t6": pd.NA, "t7": 2}, dtype="Int64")
PREDICTED = pd.Series({"t1": 2, "t2": 2, "t3": 1, "t4": 3, "t5": 3, "t6": 1, "t7": 9})
WELLS = pd.DataFrame({
    "id_code": [*TRUTH.index, "a1", "a2", "a3", "b2"], "cell_type": ["RPE"] * 10 + ["HUVEC"],
    "split": ["held_out"] * 7 + ["train"] * 4, "sirna": pd.array([*TRUTH, 1, 2, 3, 2], "Int64"),
})  # fmt: skip


def test_pairs_are_counted_by_truth_and_prediction_the_most_frequent_first():
    table = confused_pairs(PREDICTED, TRUTH)
    assert table.to_dict("list") == {"sirna": [1, 2, 2], "predicted": [2, 3, 9], "wells": [2, 1, 1], "share": pytest.approx([2 / 3, 0.5, 0.5])}
    assert len(confused_pairs(PREDICTED, TRUTH, count=1)) == 1
    assert confused_pairs(TRUTH.dropna(), TRUTH).empty


def test_examples_are_training_wells_of_the_same_cell_type():
    table = wrong_wells(PREDICTED, TRUTH, WELLS).set_index("id_code")
    assert table["example"].to_dict() == {"t1": "a2", "t2": "a2", "t4": "a3"}, "and no well of siRNA 9, which training lacks"
    assert table.loc["t1", ["sirna", "predicted"]].tolist() == [1, 2]
    sure = wrong_wells(PREDICTED, TRUTH, WELLS, confidence=pd.Series({"t1": 0.2, "t2": 0.4, "t4": 0.9}), count=2)
    assert sure["id_code"].tolist() == ["t4", "t2"]
    one_each = wrong_wells(PREDICTED, TRUTH, WELLS, pairs=confused_pairs(PREDICTED, TRUTH))
    assert one_each[["sirna", "predicted"]].to_numpy().tolist() == [[1, 2], [2, 3]]
    assert wrong_wells(TRUTH.dropna(), TRUTH, WELLS).empty


def test_pairs_are_drawn_side_by_side(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 255, (11, 6, 8, 8), dtype=np.uint8)
    sites = WELLS.assign(site=1, stem=[f"train/{name}_s1" for name in WELLS["id_code"]])
    for stem, image in zip(sites["stem"], images):
        for channel, pixels in enumerate(image, 1):
            path = channel_path(tmp_path, stem, channel)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_channel(path, pixels)
    examples = wrong_wells(PREDICTED, TRUTH, WELLS)
    with simulated.showing(True):
        figure = image_pairs(examples, tmp_path, sites, columns=2)
    assert len(figure.axes) == 6 and figure.png() and figure.get_suptitle().endswith("(simulated data)")
    order = sites["id_code"].tolist()
    for (left, right), row in zip(zip(figure.axes[::2], figure.axes[1::2]), examples.itertuples()):
        assert left.get_title(loc="left") == f"{row.id_code}\nsiRNA {row.sirna}"
        assert right.get_title(loc="left") == f"{row.example}\nsiRNA {row.predicted}"
        for axes, name in ((left, row.id_code), (right, row.example)):
            np.testing.assert_allclose(axes.images[0].get_array(), composite(images[order.index(name)]))
    assert "No well" in image_pairs(examples[:0], tmp_path, sites).texts[0].get_text()

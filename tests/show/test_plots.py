"""Every figure is drawn from tiny inputs and says what it should."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cellsignal.show.eda import plots

EXPERIMENTS = ["HUVEC-01", "HUVEC-02", "RPE-01"]
KINDS = {1: "treatment", 1108: "positive_control", 1138: "negative_control"}


@pytest.fixture
def wells() -> pd.DataFrame:
    """Three experiments of four plates of three wells; HUVEC-02 is for the test."""
    rows = [
        {"experiment": experiment, "plate": plate, "well": well, "sirna": sirna}
        for experiment in EXPERIMENTS
        for plate in (1, 2, 3, 4)
        for well, sirna in zip(("B02", "B03", "O23"), KINDS)
    ]
    frame = pd.DataFrame(rows).astype({"sirna": "Int64"})
    frame["well_type"] = frame["sirna"].map(KINDS)
    frame["cell_type"] = frame["experiment"].str.split("-").str[0]
    frame["dataset"] = np.where(frame["experiment"] == "HUVEC-02", "test", "train")
    frame["id_code"] = [f"{r.experiment}_{r.plate}_{r.well}" for r in frame.itertuples()]
    return frame.loc[frame["id_code"] != "RPE-01_4_B02"].reset_index(drop=True)


@pytest.fixture
def stats(wells) -> pd.DataFrame:
    """One row per well, site and channel; the brightness belongs to the experiment."""
    rows = wells.merge(pd.DataFrame({"site": [1, 2]}), "cross")
    rows = rows.merge(pd.DataFrame({"channel": range(1, 7)}), "cross")
    noise = np.random.default_rng(0).normal(0, 0.1, len(rows))
    level = 10.0 * (1 + rows["experiment"].map(EXPERIMENTS.index))
    return rows.assign(mean=level * np.exp(noise), std=level * np.exp(-noise))


def texts(figure: Figure) -> list[str]:
    """All words in a figure."""
    return [found.get_text() for found in figure.findobj(lambda part: hasattr(part, "get_text"))]


def drawn(figure: Figure) -> Figure:
    """The figure, once it has become a PNG."""
    assert isinstance(figure, Figure) and figure.png().startswith(b"\x89PNG")
    return figure


def random_images(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (n, 6, 8, 8), dtype=np.uint8))


def test_composite_of_one_channel_has_that_channels_colour():
    expected = {0: [0, 0, 1], 1: [0, 1, 0], 2: [1, 0, 0], 3: [0, 1, 1], 4: [1, 0, 1], 5: [1, 1, 0]}
    for channel, colour in expected.items():
        image = np.zeros((6, 8, 8), np.uint8)
        image[channel, :4] = 200
        rgb = plots.composite(image)
        assert rgb.shape == (8, 8, 3)
        assert not rgb[4:].any() and ((rgb[0, 0] > 0) == np.array(colour, bool)).all()


def test_composite_of_an_even_image_is_black():
    assert not plots.composite(np.full((6, 4, 4), 7, np.uint8)).any()


@pytest.mark.parametrize("shared", [False, True])
def test_wells_show_a_composite_and_six_named_channels(shared):
    figure = drawn(plots.show_wells(random_images(2), ["HUVEC", "RPE"], shared=shared))
    titles = [axes.get_title(loc="left") for axes in figure.axes[:7]]
    assert titles[:3] == ["composite", "nuclei", "endoplasmic reticulum"] and titles[6] == "Golgi"
    assert [figure.axes[row].get_ylabel() for row in (0, 7)] == ["HUVEC", "RPE"]


def test_the_same_data_give_the_same_bytes(tmp_path):
    first, second = (plots.show_wells(random_images(1), ["RPE"]) for _ in range(2))
    assert plots.save(first, tmp_path / "eda/wells.png") is first
    assert (tmp_path / "eda/wells.png").read_bytes() == second.png()
    assert [path.name for path in (tmp_path / "eda").iterdir()] == ["wells.png"]


def test_composites_of_a_row_stand_side_by_side():
    figure = drawn(plots.show_composites(random_images(3), ["a", "b", "c"], rows=["x", "x", "y"]))
    assert len(figure.axes) == 4


def test_heatmap_puts_each_well_in_its_place(wells):
    one = wells[wells["experiment"] == "RPE-01"]
    figure = drawn(plots.plate_heatmap(one.assign(mean=range(len(one))), "mean", title="RPE-01"))
    cells = figure.axes[0].images[0].get_array()
    assert cells.shape == (14, 22) and (cells[0, 0], cells[0, 1], cells[13, 21]) == (0, 1, 2)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == list("BCDEFGHIJKLMNO")


def test_maps_show_the_outer_wells_where_there_are_any(wells):
    one = wells[wells["experiment"] == "RPE-01"].replace({"well": {"B02": "A01", "O23": "P24"}})
    for figure in (plots.plate_heatmap(one.assign(mean=range(len(one))), "mean"), plots.plate_layout(one)):
        cells = drawn(figure).axes[0].images[0].get_array()
        assert cells.shape == (16, 24) and (cells[0, 0], cells[1, 2], cells[15, 23]) == (0, 1, 2)
        assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == list("ABCDEFGHIJKLMNOP")


def test_layout_tells_a_missing_well_from_the_rest(wells):
    figure = drawn(plots.plate_layout(wells[wells["experiment"] == "RPE-01"]))
    first, last = (figure.axes[plate].images[0].get_array() for plate in (0, 3))
    assert (first[0, 0], first[0, 1], first[13, 21], first[5, 5]) == (0, 1, 2, 3)
    assert last[0, 0] == 3
    assert "no well" in texts(figure)


def test_rotation_map_hatches_what_is_unknown_and_marks_duplicates(wells):
    known = {"HUVEC-01": [0, 1, 2, 3], "RPE-01": [1, 2, 3, -1]}
    twins = [{"experiments": ["RPE-01", "HUVEC-02"], "plate_shift": None}]
    figure = drawn(plots.group_rotation_map(wells, rotations=known, duplicates=twins))
    hatched = [box for axes in figure.axes for box in axes.patches if box.get_hatch()]
    assert len(hatched) == 5  # four plates of HUVEC-02, one of RPE-01
    assert {"HUVEC-02 *", "RPE-01 *", "HUVEC-01"} <= set(texts(figure))


def test_rotations_may_know_fewer_plates_than_there_are(wells):
    figure = drawn(plots.group_rotation_map(wells, rotations={"HUVEC-01": [0, 1], "RPE-01": [1, 0]}))
    assert len([box for axes in figure.axes for box in axes.patches if box.get_hatch()]) == 4 + 2 + 2


def test_each_of_many_layouts_has_a_symbol_of_its_own(wells):
    names = [f"HUVEC-{number:02}" for number in range(16)]
    many = pd.concat([wells[wells["experiment"] == "HUVEC-01"].assign(experiment=name) for name in names])
    twins = [{"experiments": pair, "plate_shift": 1} for pair in zip(names[::2], names[1::2])]
    labels = [text.get_text().split() for text in plots.group_rotation_map(many, rotations=None, duplicates=twins).axes[0].get_yticklabels()]
    signs = dict(labels)
    assert len(set(signs.values())) == 8 and all(signs[first] == signs[second] for first, second in zip(names[::2], names[1::2]))


def test_counts(wells):
    assert "0" in texts(drawn(plots.plate_counts(wells)))
    assert "usual (2)" in texts(drawn(plots.plate_counts(wells, well_type="control")))
    assert "HUVEC-02" in texts(drawn(plots.experiment_counts(wells)))
    assert "1 treatment siRNAs" in texts(drawn(plots.class_counts(wells)))


def test_batch_effect_is_seen_and_counted(wells, stats):
    assert "mitochondria" in texts(drawn(plots.channel_means(stats)))
    nuclei, values = plots.channel_means(stats).axes[0], stats[(stats["channel"] == 1) & (stats["experiment"] == "HUVEC-01")]
    expected = values.groupby("id_code")["mean"].mean().quantile([0.05, 0.95])  # of wells, which differ less than their sites
    np.testing.assert_allclose(nuclei.lines[0].get_xdata(), expected)
    features = np.log1p(stats.pivot_table(index="id_code", columns="channel", values=["mean", "std"]))
    assert "HUVEC: by experiment" in texts(drawn(plots.batch_effect(features, wells)))
    shares = plots.variance_shares(features, wells)
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
    assert shares.loc["HUVEC", "experiment"] > 0.8


def test_figures_of_nothing_say_so(wells, stats):
    assert texts(drawn(plots.show_wells([], []))) == ["No images to show."]
    drawn(plots.show_composites([], [], rows=[]))
    drawn(plots.channel_means(stats[:0]))
    drawn(plots.plate_heatmap(stats[:0], "mean"))
    features = stats[:0].pivot_table(index="id_code", columns="channel", values=["mean", "std"])
    drawn(plots.batch_effect(features, wells))
    assert plots.variance_shares(features, wells).empty


def test_fifty_experiments_are_still_legible():
    names = [f"HUVEC-{n:02d}" for n in range(1, 52)]
    rows = [{"id_code": f"{name}_1_B02", "experiment": name, "channel": c, "mean": 5.0} for name in names for c in range(1, 7)]
    figure = plots.channel_means(pd.DataFrame(rows))
    figure.png()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in zip(boxes, boxes[1:]))

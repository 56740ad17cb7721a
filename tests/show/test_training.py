"""What a training notebook shows: tables that add up, images on one scale, accuracies with their intervals."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from cellsignal.data import simulated
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.show.eda.composites import composite, limits
from cellsignal.show.training import accuracy_by_experiment, image_grid, network_summary, site_captions, training_table

IMAGES = list(np.random.default_rng(0).integers(0, 255, (5, 6, 8, 8), dtype=np.uint8))


def wells_of(**splits: str) -> pd.DataFrame:
    """Two plates of three wells in each experiment, whose split is given."""
    rows = [(f"{name.replace('_', '-')}_{plate}_B0{sirna}", name.replace("_", "-"), name.split("_")[0], plate, f"B0{sirna}", sirna, split)
            for name, split in splits.items() for plate in (1, 2) for sirna in (1, 2, 3)]
    wells = pd.DataFrame(rows, columns=["id_code", "experiment", "cell_type", "plate", "well", "sirna", "split"])
    return wells.astype({"sirna": "Int64"})


def test_the_training_table_counts_by_cell_type_and_split_and_altogether():
    wells = wells_of(RPE_01="train", RPE_02="train", RPE_03="held_out", HUVEC_01="train", HUVEC_02="test")
    sites = wells.merge(pd.DataFrame({"site": [1, 2]}), "cross")
    sites["sirna"] = sites["sirna"].where(sites["split"] != "test")
    table = training_table(sites)
    assert table.loc[("RPE", "train")].to_dict() == {"experiments": 2, "plates": 4, "wells": 12, "sites": 24, "siRNAs": 3}
    assert table.loc[("HUVEC", "test")].to_dict() == {"experiments": 1, "plates": 2, "wells": 6, "sites": 12, "siRNAs": 0}
    assert table.loc[("all", "train"), "sites"] == 36
    assert list(training_table(sites[sites["cell_type"] == "RPE"]).index) == [("RPE", "held_out"), ("RPE", "train")]


def test_images_stand_in_rows_on_one_scale_each_under_its_caption():
    figure = image_grid(IMAGES, list("abcde"), columns=3, title="One batch")
    assert figure.get_suptitle() == "One batch" and figure.png()
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == list("abcde")
    assert len({axes.get_position().y0.round(3) for axes in shown[:3]}) == 1 and shown[3].get_position().y0 < shown[0].get_position().y0
    np.testing.assert_allclose(shown[1].images[0].get_array(), composite(IMAGES[1], ends=limits(np.stack(IMAGES))))


def test_images_of_several_sizes_and_none():
    figure = image_grid([IMAGES[0], IMAGES[1][:, :4, :6]])
    assert [axes.images[0].get_array().shape for axes in figure.axes] == [(8, 8, 3), (4, 6, 3)] and figure.png()
    assert "No images" in image_grid([]).texts[0].get_text()
    with simulated.showing(True):
        assert image_grid(IMAGES).get_suptitle() == "Simulated data"


def test_captions_tell_well_and_sirna_where_it_is_known():
    sites = pd.DataFrame({"well": ["B02", "B03"], "site": [1, 2], "sirna": pd.array([7, None], "Int64")})
    assert site_captions(sites) == ["B02, site 1\nsiRNA 7", "B03, site 2"]


@pytest.mark.parametrize("backbone", ["densenet-small", "resnet-small", "vgg-small", "plain-cnn"])
def test_the_summary_counts_every_parameter_once_and_leaves_the_network_alone(backbone):
    model = Classifier(NetworkSettings(backbone=backbone), channels=6, classes=9, seed=0).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = network_summary(model, size=64)
    assert table.loc["all", "parameters"] == sum(weights.numel() for weights in model.parameters())
    assert table.loc["all", "parameters"] == table["parameters"].iloc[:-1].sum()
    assert table.loc["image", "output"] == "6 x 64 x 64" and table.loc["head", "output"] == "9"
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_accuracy_by_experiment_has_a_dot_in_its_interval():
    wells = wells_of(RPE_03="held_out", HUVEC_02="held_out")
    truth = wells.set_index("id_code")["sirna"]
    predicted = truth.astype(int).copy()
    predicted.iloc[:3] = 99  # half of RPE-03
    figure = accuracy_by_experiment(predicted, truth, wells, classes=4)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["HUVEC-02", "RPE-03"]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    bars = [tuple(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 5]
    assert dots == [1.0, 0.5] and bars[1] == pytest.approx(tuple(binomtest(3, 6).proportion_ci(method="wilson")))
    assert "0.500 of 6 wells" in [text.get_text() for text in axes.texts] and figure.png()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chance: 1 in 4"]
    assert "No well" in accuracy_by_experiment(predicted[:0], truth, wells).texts[0].get_text()

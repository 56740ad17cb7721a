"""What a training notebook shows: tables that add up, images on one scale, accuracies with their intervals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from building import make_network
from matplotlib.figure import Figure
from scipy.stats import binomtest

from cellsignal.data import simulated
from cellsignal.learn.batches.augment import CropFlipRotate, build_augmentation
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.show.eda.composites import composite, limits
from cellsignal.show.training import (
    accuracy_by_experiment, augmentation_grid, batch_grid, control_grid, history_table, image_grid, network_summary, site_captions, training_table,
)  # fmt: skip

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
    np.testing.assert_allclose(shown[1].images[0].get_array(), composite(IMAGES[1], grey_range=limits(np.stack(IMAGES))))


def test_images_of_several_sizes_and_none():
    figure = image_grid([IMAGES[0], IMAGES[1][:, :4, :6]])
    assert [axes.images[0].get_array().shape for axes in figure.axes] == [(8, 8, 3), (4, 6, 3)] and figure.png()
    assert "No images" in image_grid([]).texts[0].get_text()
    with simulated.showing(True):
        assert image_grid(IMAGES).get_suptitle() == "Simulated data"


def test_captions_tell_well_and_sirna_where_it_is_known():
    sites = pd.DataFrame({"well": ["B02", "B03"], "site": [1, 2], "sirna": pd.array([7, None], "Int64")})
    assert site_captions(sites) == ["B02, site 1\nsiRNA 7", "B03, site 2"]


def data_of(sites: pd.DataFrame, augment: CropFlipRotate | None = None) -> SiteImages:
    """Sites whose images are in memory, each of its own grey."""
    data = SiteImages(Path("nowhere"), sites.assign(site=1, stem=sites["id_code"]), class_numbers=sorted(sites["sirna"].unique()), augment=augment)
    data.cached = [np.full((6, 8, 8), row, np.uint8) + np.arange(8, dtype=np.uint8) for row in range(len(sites))]
    return data


def captions(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.images]


def test_a_batch_names_its_plate_once_or_for_each_site():
    data = data_of(wells_of(RPE_01="train"))
    figure = batch_grid(data, np.array([1, 0]))
    assert figure.get_suptitle() == "RPE-01, plate 1" and captions(figure) == ["B02, site 1\nsiRNA 2", "B01, site 1\nsiRNA 1"]
    figure = batch_grid(data, np.array([0, 3]))
    assert figure.get_suptitle() == "2 plates" and captions(figure) == ["RPE-01_1_B01, site 1\nsiRNA 1", "RPE-01_2_B01, site 1\nsiRNA 1"]


def test_controls_stand_in_columns_on_plates_of_several_experiments_that_have_them_all():
    wells = wells_of(RPE_01="train", RPE_02="train", RPE_03="train", RPE_04="train")
    figure = control_grid(data_of(wells.drop(index=1)), controls=2)  # RPE-01 lacks siRNA 2 on its plate 1
    assert captions(figure) == [f"RPE-0{number}_1_B0{sirna}, site 1\nsiRNA {sirna}" for number in (2, 3, 4) for sirna in (2, 3)]
    assert len({axes.get_position().x0.round(3) for axes in figure.axes}) == 2, "a plate per row, a siRNA per column"
    figure = control_grid(data_of(wells), plates=2)  # of the eight that are asked for there are three
    assert captions(figure) == [f"RPE-0{number}_1_B0{sirna}, site 1\nsiRNA {sirna}" for number in (1, 2) for sirna in (1, 2, 3)]
    assert len({axes.get_position().x0.round(3) for axes in figure.axes}) == 3


def test_augmentations_are_those_of_the_first_epochs():
    change = build_augmentation(AugmentationSettings(), seed=0)
    data = data_of(wells_of(RPE_01="train"), augment=change)
    figure = augmentation_grid(data, row=4, epochs=3)
    assert captions(figure) == ["as stored", "epoch 1", "epoch 2", "epoch 3"] and figure.get_suptitle() == "B02, site 1, siRNA 2"
    images = [data.image(4), *(change(data.image(4), epoch=epoch, site=4) for epoch in range(3))]
    ends = limits(np.stack(images))
    for axes, image in zip(figure.axes, images, strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), composite(image, grey_range=ends))
    assert captions(augmentation_grid(data_of(wells_of(RPE_01="train")))) == ["as stored, and in every epoch"]


def test_the_history_in_one_row_a_phase():
    row = {"loss": 0.5, "accuracy": 0.25, "held_out_accuracy": None, "seconds": 30.0}
    history = [{**row, "phase": "whole", "epoch": 1, "held_out_accuracy": 0.75}, {**row, "phase": "whole", "epoch": 2, "held_out_accuracy": 0.5, "accuracy": 0.5},
               {**row, "phase": "final", "epoch": 1}]
    table = history_table(history)
    assert table.loc["whole"].tolist() == [2, 0.5, 0.5, 0.75, 1, 1.0] and list(table.index) == ["whole", "final"]
    assert table.loc["final", ["held_out", "best_epoch"]].isna().all() and table.loc["final", "minutes"] == 0.5
    tied = [{**row, "phase": "whole", "epoch": epoch, "held_out_accuracy": value} for epoch, value in enumerate((0.5, 0.75, 0.75, 0.25), 1)]
    assert history_table(tied).loc["whole", "best_epoch"] == 3, "whose weights are selected"
    assert history_table([]).empty


@pytest.mark.parametrize("backbone", ["densenet-small", "resnet-small", "vgg-small", "plain-cnn"])
def test_the_summary_counts_every_parameter_once_and_leaves_the_network_alone(backbone):
    model = make_network(backbone, channels=6, classes=9).train()
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

"""Moments of plates, from the data set's statistics or from its images: the same."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from building import make_network, make_phase, train_phase
from cellsignal.data.images.reader import read_sites
from cellsignal.errors import InputError
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.networks.standardise import channel_stats
from cellsignal.learn.networks.covariates import SideInputs

Patches = tuple[Path, pd.DataFrame]


def measured(root: Path, sites: pd.DataFrame, by: list[str]) -> torch.Tensor:
    """Over all pixels of a place at once."""
    images = read_sites(root, sites).astype(float)
    rows = sites.reset_index(drop=True).groupby(by).indices.values()
    found = np.empty((len(sites), 6, 2))
    for mine in rows:
        found[mine] = np.stack([images[mine].mean((0, 2, 3)), images[mine].std((0, 2, 3))], axis=1)
    return torch.from_numpy(found.astype(np.float32))


@pytest.fixture
def stated(patches: Patches, tmp_path: Path) -> Path:
    """The patches' statistics without their images."""
    root, sites = patches
    images = read_sites(root, sites)
    rows = [{"id_code": site.id_code, "experiment": site.experiment, "plate": site.plate, "well": site.well, "site": 1,
             "channel": channel + 1, "mean": image[channel].mean(), "std": image[channel].std()}
            for site, image in zip(sites.itertuples(), images) for channel in range(6)]
    pd.DataFrame(rows).to_csv(tmp_path / "pixel_stats.csv", index=False)
    return tmp_path


@pytest.mark.parametrize("by", ["plate", "experiment"])
def test_statistics_and_images_give_the_moments_of_all_pixels(patches: Patches, stated: Path, by: str) -> None:
    root, sites = patches
    keys = ["experiment", "plate"] if by == "plate" else ["experiment"]
    for place in (stated, root):
        found = channel_stats(place, sites, by, 6)
        assert found.shape == (32, 6, 2) and found.dtype == torch.float32
        torch.testing.assert_close(found, measured(root, sites, keys), rtol=1e-4, atol=1e-3)


def test_all_sites_of_a_plate_count_whichever_are_asked_for(patches: Patches, stated: Path) -> None:
    root, sites = patches
    for place in (stated, root):
        torch.testing.assert_close(channel_stats(place, sites.iloc[[3, 20]], "plate", 6), channel_stats(place, sites, "plate", 6)[[3, 20]])


def test_plates_that_the_file_does_not_know_are_measured(patches: Patches, stated: Path) -> None:
    root, sites = patches
    table = pd.read_csv(stated / "pixel_stats.csv")
    table = table[(table["experiment"] == "HUVEC-01") & ~((table["plate"] == 2) & (table["channel"] == 6))]
    table.assign(mean=0.0, std=1.0).to_csv(stated / "pixel_stats.csv", index=False)
    shutil.copytree(root / "train", stated / "train")
    found, expected = channel_stats(stated, sites, "plate", 6), measured(root, sites, ["experiment", "plate"])
    torch.testing.assert_close(found[:8], torch.tensor([0.0, 1.0]).expand(8, 6, 2))
    torch.testing.assert_close(found[8:], expected[8:], rtol=1e-4, atol=1e-3)


def test_a_site_without_all_its_channels_is_not_measured(patches: Patches, tmp_path: Path) -> None:
    root, sites = patches
    shutil.copytree(root / "train", tmp_path / "train")
    (tmp_path / f"{sites['stem'].iloc[0]}_w4.png").unlink()
    found, expected = channel_stats(tmp_path, sites.iloc[1:8], "plate", 6), measured(root, sites.iloc[1:8], ["plate"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_statistics_that_lack_a_column_are_refused(patches: Patches, stated: Path) -> None:
    pd.read_csv(stated / "pixel_stats.csv").drop(columns="std").to_csv(stated / "pixel_stats.csv", index=False)
    with pytest.raises(InputError, match="pixel_stats.csv:1: no column std"):
        channel_stats(stated, patches[1], "plate", 6)
    with pytest.raises(InputError, match="standardise: these sites lie on no plates; use standardise: image"):
        channel_stats(stated, patches[1].drop(columns="plate"), "plate", 6)


def test_a_network_is_told_what_it_was_built_for(patches: Patches, stated: Path) -> None:
    sites, rows = patches[1], torch.tensor([9, 30])
    plain = make_network("plain-cnn", channels=6, classes=4)
    assert SideInputs(plain, stated, sites)[rows] == {}
    rich = make_network("plain-cnn", channels=6, classes=4, levels={"plate": ["1", "2"]}, standardise="experiment")
    told = SideInputs(rich, stated, sites)[rows.numpy()]
    assert told["covariates"].tolist() == [[0, 1], [0, 1]]
    torch.testing.assert_close(told["channel_statistics"], channel_stats(stated, sites, "experiment", 6)[rows])
    images = torch.from_numpy(read_sites(patches[0], sites.iloc[rows]))
    assert rich(images, **told).shape == (2, 4)


def test_other_statistics_are_another_training(patches: Patches, stated: Path, tmp_path: Path) -> None:
    root, sites = patches
    data = SiteImages(root, sites, class_numbers=[0, 10, 20, 30], cache=True)
    data.root = stated
    def train() -> str:
        model = make_network("plain-cnn", channels=6, classes=4, standardise="experiment")
        train_phase(model, data, phase=make_phase("still", 1, 16, 1e-3), weights=tmp_path / "model.safetensors", device="cpu")
        return model.origin
    first = train()
    assert train() == first
    table = pd.read_csv(stated / "pixel_stats.csv")
    table.assign(mean=table["mean"] + 30).to_csv(stated / "pixel_stats.csv", index=False)
    assert train() != first


def test_standardised_plates_look_alike(patches: Patches, stated: Path) -> None:
    root, sites = patches
    model = make_network("plain-cnn", channels=6, classes=4, standardise="plate")
    seen = model.prepare(torch.from_numpy(read_sites(root, sites)), SideInputs(model, stated, sites)[np.arange(32)]["channel_statistics"])
    for rows in np.split(np.arange(32), 4):
        torch.testing.assert_close(seen[rows].mean((0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-4)
        torch.testing.assert_close(seen[rows].std((0, 2, 3), correction=0), torch.ones(6), rtol=1e-3, atol=0)

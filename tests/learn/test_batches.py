"""Batches keep to their scope, lose no site, and depend on nothing but seed, epoch and site."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellsignal.learn.settings import AugmentationSettings
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import SiteImages, images_fingerprint, sites_fingerprint, epoch_batches, concat_images, read_batches, make_train_held_out, virtual_batches

CLASSES = [0, 10, 20, 30]


@pytest.mark.parametrize("scope", ["plate", "experiment", "mixed"])
@pytest.mark.parametrize("batch_size", [2, 3, 7, 100])
def test_every_site_once_and_no_batch_over_its_scope(patches: tuple, scope: str, batch_size: int) -> None:
    _, sites = patches
    batches = epoch_batches(sites, batch_size=batch_size, scope=scope, seed=0, epoch=1)
    assert sorted(np.concatenate(batches)) == list(range(len(sites)))
    assert all(2 <= len(rows) <= batch_size for rows in batches)
    keys = {"plate": ["experiment", "plate"], "experiment": ["experiment"], "mixed": []}[scope]
    if keys:
        assert all(len(sites.iloc[rows].drop_duplicates(keys)) == 1 for rows in batches)


def test_no_batch_is_one_site_alone(patches: tuple) -> None:
    _, sites = patches
    odd = sites[(sites["plate"] == 1) & (sites["experiment"] == "HUVEC-01")].iloc[:7]
    assert sorted(len(rows) for rows in epoch_batches(odd, batch_size=2, scope="plate", seed=0, epoch=0)) == [2, 2, 3]
    with pytest.raises(InputError, match="HUVEC-01, plate 1: one site alone"):
        epoch_batches(odd.iloc[:1], batch_size=2, scope="plate", seed=0, epoch=0)


def test_order_is_a_function_of_seed_and_epoch(patches: tuple) -> None:
    _, sites = patches
    def order(**at) -> list: return [rows.tolist() for rows in epoch_batches(sites, batch_size=5, scope="plate", **at)]
    assert order(seed=1, epoch=4) == order(seed=1, epoch=4)
    assert order(seed=1, epoch=4) != order(seed=1, epoch=5)
    assert order(seed=1, epoch=4) != order(seed=2, epoch=4)


def test_pictures_do_not_depend_on_cache_workers_or_neighbours(patches: tuple) -> None:
    root, sites = patches
    def pictures(rows, *, cache: bool, workers: int):
        data = SiteImages(root, sites, class_numbers=CLASSES, cache=cache, augment=build_augmentation(AugmentationSettings(), seed=3))
        served = read_batches(data, rows, epoch=2, workers=workers)
        return {int(i): image.numpy().copy() for images, at in served for i, image in zip(at, images)}
    whole = pictures([np.arange(16), np.arange(16, 32)], cache=True, workers=0)
    parts = pictures([np.arange(i, i + 4) for i in (28, 12, 0)], cache=False, workers=2)
    assert parts and all(np.array_equal(parts[i], whole[i]) for i in parts)


def test_d4_gives_all_eight_symmetries_of_the_square_and_no_more() -> None:
    image = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
    seen = {build_augmentation(AugmentationSettings(), seed=0)(image, epoch=e, site=7).tobytes() for e in range(200)}
    quarter = [np.rot90(image, k, axes=(1, 2)) for k in range(4)]
    assert seen == {np.ascontiguousarray(p).tobytes() for q in quarter for p in (q, q[:, :, ::-1])}


def test_labels_are_positions_among_the_class_numbers(patches: tuple) -> None:
    root, sites = patches
    data = SiteImages(root, sites, class_numbers=CLASSES)
    assert data.labels[:5].tolist() == [0, 1, 2, 3, 0] and data.metric == "accuracy"
    assert torch.equal(data.targets(torch.tensor([1, 4])), torch.eye(4)[[1, 0]])


def test_sides_share_their_classes_and_only_training_is_augmented(patches: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    root, sites = patches
    sites = sites.assign(split=np.where(sites["experiment"] == "HUVEC-01", "train", "held_out")).iloc[:-1]
    augment = build_augmentation(AugmentationSettings(), seed=0)
    train, held_out = make_train_held_out(root, sites, augment=augment)
    assert (len(train), len(held_out)) == (16, 15) and train.class_numbers == held_out.class_numbers == CLASSES
    assert train.augment is augment and held_out.augment is None and train.cached is not None
    monkeypatch.setattr("cellsignal.learn.batches.dataset.MAX_CACHE_BYTES", 1000)
    assert make_train_held_out(root, sites)[0].cached is None, "too large for memory: read when asked for"


def test_sites_of_several_labels_have_as_many_ones(patches: tuple) -> None:
    root, sites = patches
    several = sites.drop(columns=["sirna", "plate", "experiment"]).iloc[:4].assign(labels=[(3, 0), (), (2,), (0, 1, 7)])
    data = SiteImages(root, several, class_numbers=range(4), channels=["_w2.png", "_w1.png"])
    assert data.targets(np.arange(4)).tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]
    assert data.metric == "macro_f1" and data.targets(np.array([2])).dtype == torch.float32
    assert np.array_equal(data.image(1), SiteImages(root, sites, class_numbers=CLASSES).image(1)[[1, 0]])
    train, held_out = make_train_held_out(root, several.assign(split=["train", "held_out"] * 2))
    assert (len(train), len(held_out), train.class_numbers) == (2, 2, [0, 1, 2, 3, 7])


@pytest.mark.parametrize(("sizes", "virtual", "expected"), [
    ([8, 8, 8, 8, 8], 16, [2, 2, 1]),  # the last incomplete one is used
    ([7, 8, 7, 8, 7], 24, [3, 2]),  # as many as fit
    ([8, 8, 8], 0, [1, 1, 1]),
    ([3, 3, 2], 2, [1, 1, 1]),  # where no batch fits, each is a group
    ([4, 4], 128, [2]),
    ([], 16, []),
])
def test_virtual_batches_hold_what_fits_and_lose_nothing(sizes: list[int], virtual: int, expected: list[int]) -> None:
    batches = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]) if sizes else []
    groups = virtual_batches(batches, virtual)
    assert [len(group) for group in groups] == expected
    assert [row for group in groups for rows in group for row in rows] == list(range(sum(sizes)))


@pytest.mark.parametrize("cache", [True, False])
def test_joined_sets_hold_both_and_share_their_pictures(patches: tuple, cache: bool) -> None:
    root, sites = patches
    first, second = (SiteImages(root, part, class_numbers=CLASSES, cache=cache, augment=build_augmentation(AugmentationSettings(), seed=0))
                     for part in (sites.iloc[:20], sites.iloc[20:]))
    both = concat_images(first, second)
    assert both.stems == first.stems + second.stems and both.labels.tolist() == [*first.labels, *second.labels]
    assert both.augment is first.augment
    assert all(np.array_equal(both.image(row), second.image(row - 20)) for row in range(20, 32))
    if cache:
        assert both.cached[25] is second.cached[5]


def test_the_digest_changes_with_a_label(patches: tuple) -> None:
    _, sites = patches
    other = sites.assign(sirna=pd.array([0] * len(sites), dtype="Int64"))
    assert sites_fingerprint(sites) == sites_fingerprint(sites.copy()) != sites_fingerprint(other)


def test_the_digest_of_images_changes_with_any_of_them(patches: tuple, tmp_path: Path) -> None:
    root, sites = patches
    copied = shutil.copytree(root, tmp_path / "copied")
    def digest(folder: Path) -> str:
        return images_fingerprint(SiteImages(folder, sites, class_numbers=CLASSES))
    assert digest(copied) == digest(root)
    last = max(copied.rglob("*.png"))
    last.write_bytes(max(copied.rglob("*_w1.png")).read_bytes() + b" ")
    assert digest(copied) != digest(root)


def test_the_digest_of_images_changes_with_their_channels(patches: tuple) -> None:
    root, sites = patches
    digests = [images_fingerprint(SiteImages(root, sites, class_numbers=CLASSES, channels=channels)) for channels in
               (["_w1.png", "_w2.png"], ["_w2.png", "_w1.png"], ["_w3.png", "_w4.png"])]
    assert len(set(digests)) == 3

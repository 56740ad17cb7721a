"""Folds in which every class has its share, and the same image never on both sides."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.microscope.protein_atlas import draw_labels
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.packing.pack import pack, plan_pack
from cellsignal.data.tables.labelled_sites import fold_shares, same_images, split_of, stratified_folds
from cellsignal.data.tables.labelled_sites import multi_hot
from cellsignal.errors import InputError
from cellsignal.tasks import PROTEIN_ATLAS

SUFFIXES = PROTEIN_ATLAS.suffixes


def error(labels: list[tuple[int, ...]], folds: np.ndarray) -> float:
    """Mean relative error of a class's share in a fold, of the 14 rarest classes."""
    counts = fold_shares(labels, folds, classes=28).to_numpy()
    rare = counts.sum(axis=1).argsort()[:14]
    expected = counts.sum(axis=1, keepdims=True) / counts.shape[1]
    return float((abs(counts - expected) / expected)[rare].mean())


def test_every_class_has_its_share_where_random_folds_lose_the_rare_ones() -> None:
    labels = draw_labels(np.random.default_rng(0), 2000, rarest_sites=8)
    folds = stratified_folds(labels, folds=4, classes=28, seed=0)
    random = np.random.default_rng(0).permutation(np.arange(2000) % 4)
    assert error(labels, folds) < 0.5 * error(labels, random)
    assert fold_shares(labels, folds, classes=28).to_numpy().min() >= 1
    assert np.bincount(folds).min() > 450
    assert (folds == stratified_folds(labels, folds=4, classes=28, seed=0)).all()
    assert (folds != stratified_folds(labels, folds=4, classes=28, seed=1)).any()
    assert set(split_of(folds, 2)[folds == 2]) == {"held_out"}


def test_the_real_table_keeps_its_rarest_class_in_every_fold(shared: Path) -> None:
    labels = [labels for labels in read_site_tables(shared / "hpa", PROTEIN_ATLAS).sites["labels"] if labels]
    folds = stratified_folds(labels, folds=5, classes=28)
    assert sorted(fold_shares(labels, folds, classes=28).loc[27]) == [2, 2, 2, 2, 3]
    assert error(labels, folds) < 0.05


def test_pictures_that_are_the_same_stay_together(tmp_path: Path) -> None:
    images = {"a": b"1", "b": b"2", "c": b"1", "d": b"33", "e": b"2"}
    for name, content in images.items():
        for suffix in SUFFIXES:
            (tmp_path / f"{name}{suffix}").write_bytes(content)
    groups = same_images(tmp_path, list(images), suffixes=SUFFIXES)
    assert groups.tolist() == [0, 1, 0, 2, 1]
    labels = [(0,), (1,), (0,), (2,), (1,)] * 40
    many = np.concatenate([groups + 3 * k for k in range(40)])
    folds = stratified_folds(labels, folds=3, classes=3, groups=many)
    assert all(len(set(folds[many == group])) == 1 for group in range(120))
    assert multi_hot(labels, 3)[folds == 0].sum(axis=0).min() > 5
    with pytest.raises(InputError, match="no such file"):
        same_images(tmp_path, ["f"], suffixes=SUFFIXES)


def test_pictures_that_are_the_same_are_found_in_a_store_too(tmp_path: Path) -> None:
    simulate(tmp_path / "drawn", preset="atlas-tiny", seed=0)
    stems = read_site_tables(tmp_path / "drawn", PROTEIN_ATLAS).sites["stem"].tolist()
    pack(plan_pack(tmp_path / "drawn", codec="raw"), tmp_path / "store", progress=False)
    groups = [same_images(root, stems, suffixes=PROTEIN_ATLAS.suffixes) for root in (tmp_path / "drawn", tmp_path / "store")]
    assert len(set(groups[0])) < len(stems) and groups[0].tolist() == groups[1].tolist()


def test_without_the_library_the_error_says_what_to_attach(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("iterstrat"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="attach a data set or notebook output that holds its wheel"):
        stratified_folds([(0,), (1,)], folds=2, classes=2)


def test_too_many_folds_are_refused() -> None:
    with pytest.raises(InputError, match="3 folds of 2 different labelled sites"):
        stratified_folds([(0,), (1,)], folds=3, classes=2)

"""Splits, measure and files of predictions are those of the package `wilds`, where it is installed (`pip install wilds --no-deps` is enough)."""

import ast
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from wilds_plates import write_metadata

from cellsignal.data.tables.wells import EVALUATED_SPLITS, TRAIN_SPLIT, read_benchmark_sites
from cellsignal.decide.evaluate.split_accuracy import evaluate_splits, write_predictions

theirs = pytest.importorskip("wilds.datasets.rxrx1_dataset")
EXPERIMENTS = {"HUVEC-01": "train", "RPE-01": "train", "U2OS-01": "val", "HEPG2-01": "val", "HUVEC-02": "test", "U2OS-02": "test"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables as the benchmark unpacks them: every class in every experiment, in an order of its own."""
    folder = tmp_path_factory.mktemp("data")
    sirna = np.arange(1139)
    wells = pd.DataFrame({"sirna_id": sirna, "plate": sirna % 4 + 1, "well": [f"{'ABCDEFGHIJKLMNOP'[n // 24]}{n % 24 + 1:02}" for n in sirna // 4]})
    sites = pd.concat([
        wells.assign(experiment=experiment, cell_type=experiment.split("-")[0], dataset=dataset, site=site)
        for experiment, dataset in EXPERIMENTS.items() for site in (1, 2)])
    names = sites["experiment"] + "_" + sites["plate"].astype(str) + "_" + sites["well"]
    kinds = np.select([sites["sirna_id"] == 1138, sites["sirna_id"] > 1107], ["negative_control", "positive_control"], "treatment")
    write_metadata(folder / "rxrx1_v1.0", sites.assign(well_id=names, site_id=names + "_" + sites["site"].astype(str), well_type=kinds, sirna="s"))
    (folder / "rxrx1_v1.0/RELEASE_v1.0.txt").touch()
    return folder


@pytest.fixture
def benchmark(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their data set; it writes into arrays of a table, which recent versions of pandas do not allow."""
    values = pd.Series.values
    with monkeypatch.context() as patched:
        patched.setattr(pd.Series, "values", property(lambda column: np.array(values.fget(column))))
        return theirs.RxRx1Dataset(root_dir=str(root))


def test_splits_files_and_classes_are_theirs(benchmark: Any, root: Path) -> None:
    sites, numbers = read_benchmark_sites(root / "rxrx1_v1.0"), benchmark.split_dict
    assert set(numbers) == {TRAIN_SPLIT, *EVALUATED_SPLITS}
    assert (benchmark.split_array == sites["split"].map(numbers)).all()
    assert [str(path) for path in benchmark._input_array] == (sites["stem"] + ".png").tolist()
    assert (benchmark.y_array.numpy() == sites["sirna"]).all()


@pytest.fixture
def group_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package takes of torch_scatter, a compiled library, where that is not installed: means over groups."""
    def scatter(src: torch.Tensor, index: torch.Tensor, dim_size: int, reduce: str) -> torch.Tensor:
        assert reduce == "mean"
        return torch.zeros(dim_size).scatter_reduce(0, index, src, "mean", include_self=False)

    if find_spec("torch_scatter") is None:
        monkeypatch.setitem(sys.modules, "torch_scatter", SimpleNamespace(scatter=scatter))


@pytest.mark.usefixtures("group_means")
def test_the_measure_is_theirs_and_they_read_our_predictions(benchmark: Any, root: Path, tmp_path: Path) -> None:
    sites = read_benchmark_sites(root / "rxrx1_v1.0")
    rng, asked = np.random.default_rng(0), sites[sites["split"] != TRAIN_SPLIT]
    right = rng.random(len(asked)) < asked["cell_type"].map({"HUVEC": 0.6, "U2OS": 0.2}).fillna(0.4)
    values = rng.normal(size=(len(asked), 1139)).astype(np.float32)
    values[np.arange(len(asked)), asked["sirna"]] += np.where(right, 9, 0).astype(np.float32)
    scores = pd.DataFrame(values, index=pd.Index(asked["id_code"], name="id_code"))
    write_predictions(tmp_path, scores.idxmax(axis=1), sites=sites, seed=1)
    for row in evaluate_splits(scores, sites, rung="running"):
        subset = benchmark.get_subset(row["split"])
        lines = (tmp_path / f"rxrx1_split:{row['split']}_seed:1_epoch:best_pred.csv").read_text().splitlines()
        predicted = torch.tensor([ast.literal_eval(line) for line in lines])  # as their evaluate.py reads them
        measured, _ = benchmark.eval(predicted, subset.y_array, subset.metadata_array)
        assert measured["acc_avg"] == pytest.approx(row["accuracy"], abs=1e-6) and measured["acc_wg"] == pytest.approx(row["worst_cell_type"], abs=1e-6)
        assert len(lines) == row["sites"]

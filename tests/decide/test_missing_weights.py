"""Cell types without weights are left out and named, or refused where they were asked for by name."""

from pathlib import Path

import pandas as pd
import pytest

from cellsignal.decide.submission import confidence_path, remove_submission, write_submission
from cellsignal.decide.predict.weights import weights_path, trained_cell_types
from cellsignal.errors import InputError

ALL = ["HUVEC", "RPE", "U2OS"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    for name in ("U2OS/model", "U2OS/final", "RPE/model"):
        path = tmp_path / f"weights/{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "weights"


def test_those_with_all_their_networks_are_found_and_the_others_named(weights: Path) -> None:
    assert trained_cell_types(weights, ["U2OS"], networks=["model", "final"], explicit=True) == (["U2OS"], "")
    found, left_out = trained_cell_types(weights, ALL, networks=["model", "final"])
    assert found == ["U2OS"]
    assert left_out == "left out without weights: HUVEC lacks model.safetensors, final.safetensors; RPE lacks final.safetensors"
    assert trained_cell_types(weights, ALL, networks=["model"])[0] == ["RPE", "U2OS"]


@pytest.mark.parametrize("asked, networks, named", [(["HUVEC"], ["model"], False), (["U2OS", "RPE"], ["model", "final"], True), (ALL, ["plain"], False)])
def test_nothing_to_predict_with_is_refused_in_one_line(weights: Path, asked: list[str], networks: list[str], named: bool) -> None:
    with pytest.raises(InputError, match="no weights to predict with: .* lacks .*; run 3-train-cell-type for it") as caught:
        trained_cell_types(weights, asked, networks=networks, explicit=named)
    assert "\n" not in str(caught.value)


def test_a_submission_is_withdrawn_with_its_confidences(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    write_submission(path, pd.Series({"a": 1}), pd.Series({"a": 0.5}), sample=["a"])
    assert confidence_path(path).is_file()
    for _ in range(2):
        remove_submission(path)
        assert list(tmp_path.iterdir()) == []


def test_a_joint_network_serves_every_cell_type_without_one_of_its_own(weights: Path) -> None:
    joint = weights / "all/model.safetensors"
    assert weights_path(weights, "HUVEC", "model") == weights / "HUVEC/model.safetensors"
    joint.parent.mkdir()
    joint.touch()
    assert [weights_path(weights, name, "model").parent.name for name in ALL] == ["all", "RPE", "U2OS"]
    assert trained_cell_types(weights, ALL, networks=["model"]) == (ALL, "")
    assert trained_cell_types(weights, ["U2OS", "HUVEC"], networks=["model", "final"])[0] == ["U2OS"]


def test_a_run_that_was_trained_both_ways_is_told_which_weights_count(weights: Path) -> None:
    (weights / "all").mkdir()
    (weights / "all/model.safetensors").touch()
    for joint, folders in ((True, ["all", "all", "all"]), (False, ALL)):
        assert [weights_path(weights, name, "model", joint=joint).parent.name for name in ALL] == folders
    assert trained_cell_types(weights, ALL, networks=["model"], joint=True) == (ALL, "")
    assert trained_cell_types(weights, ALL, networks=["model"], joint=False)[0] == ["RPE", "U2OS"]
    with pytest.raises(InputError, match="HUVEC lacks final"):
        trained_cell_types(weights, ALL, networks=["model", "final"], joint=True)

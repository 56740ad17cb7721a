"""Weights belong to the code that trained them: other code trains again, and what is taken up all the same is said."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import albumentations
import pytest
from trainings import CLASSES, Epochs, cut_short, small

from building import make_network, make_phase, train_phase
from cellsignal import code_identity
from cellsignal.files import read_json, sha256
from cellsignal.learn.training import fit
from cellsignal.learn.batches.augment import Augment
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.training.losses import LOSSES
from cellsignal.receipts import Receipt

AGAIN = "model.safetensors: trained by other code ({}), so it is trained again (`cellsignal run --from weights` keeps the existing weights)\n"


def trained(patches: tuple, weights: Path, transforms: Callable | None = None, **options: object) -> str:
    """SHA-256 of the weights that two epochs leave."""
    root, sites = patches
    augment = Augment(transforms, seed=0) if transforms else None
    data = SiteImages(root, sites.iloc[:16], class_numbers=CLASSES, cache=True, augment=augment)
    train_phase(make_network("plain-cnn", channels=6, classes=4), data, phase=make_phase("train", 2, 8, options.pop("learning_rate", 3e-3)), weights=weights, device="cpu", **options)
    return sha256(weights)


def flipped(share: float) -> Callable:
    return lambda height, width: [albumentations.HorizontalFlip(p=share)]


class Inverted(albumentations.ImageOnlyTransform):
    """A transform of a user's own."""

    def apply(self, img, **params):
        return 255 - img


def own(height: int, width: int) -> list:
    return [Inverted(p=1.0)]


def test_another_pipeline_trains_again_and_the_same_one_does_not(patches: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = tmp_path / "model.safetensors"
    first = trained(patches, weights, flipped(0.5))
    capsys.readouterr()  # the first pipeline of a process names its library
    assert trained(patches, weights, flipped(0.5)) == first and capsys.readouterr().out == ""
    assert trained(patches, weights, lambda height, width: [albumentations.HorizontalFlip(p=0.5)]) == first, "what it does is the same"
    assert capsys.readouterr().out == ""
    assert trained(patches, weights, flipped(1.0)) != first and capsys.readouterr().out == AGAIN.format("given")
    assert trained(patches, weights) != first and capsys.readouterr().out == AGAIN.format("given")


def test_the_code_of_a_transform_of_ones_own_counts(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    weights = tmp_path / "model.safetensors"
    first = trained(patches, weights, own)
    assert trained(patches, weights, own) == first and capsys.readouterr().out == ""
    monkeypatch.setattr(Inverted, "apply", lambda self, img, **params: 127 - img // 2)
    assert trained(patches, weights, own) != first and capsys.readouterr().out == AGAIN.format("given")


def test_another_loss_trains_again(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    weights = tmp_path / "model.safetensors"
    first, bce = trained(patches, weights), LOSSES["bce"]
    monkeypatch.setitem(LOSSES, "bce", lambda logits, targets: bce(logits, targets) + logits.square().mean())
    second = trained(patches, weights)
    assert second != first and capsys.readouterr().out == AGAIN.format("given")
    assert trained(patches, weights) == second and capsys.readouterr().out == ""


def test_another_cell_trains_again_and_another_comment_does_not(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    weights, said = tmp_path / "model.safetensors", []
    for cell in ("share = 0.5", "share = 0.5  # of the pictures", "share = 1.0"):
        notebook = code_identity.Notebook()
        notebook.cells = [cell]
        monkeypatch.setattr(code_identity, "notebook", notebook)
        trained(patches, weights)
        said.append(capsys.readouterr().out)
    assert said == ["", "", AGAIN.format("notebook")]


def of_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "PACKAGE_CODE", {**fit.PACKAGE_CODE, "learn": "of tomorrow"})


def test_finished_weights_of_other_code_are_taken_up_from_an_attached_run_alone(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    there, weights, seen = tmp_path / "attached", tmp_path / "here/model.safetensors", []
    first = trained(patches, there / "model.safetensors")
    shutil.copytree(there, weights.parent)  # as a session does when it begins
    before = weights.stat().st_mtime_ns
    of_tomorrow(monkeypatch)
    assert trained(patches, weights, resume_folders=[there], on_epoch=lambda history: seen.append(len(history))) == first
    assert capsys.readouterr().out == (
        f"model.safetensors: taken up from {there}, although other code (learn) trained it; without that folder it is trained again\n")
    assert seen == [2] and weights.stat().st_mtime_ns == before
    assert read_json(weights.with_suffix(".json"))["identity"]["code"]["learn"] != "of tomorrow", "on record stays who trained them"
    trained(patches, weights)
    assert capsys.readouterr().out == AGAIN.format("learn") and weights.stat().st_mtime_ns != before


def test_half_trained_weights_of_other_code(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("here", "attached"):
        cut_short(patches, tmp_path / name / "model.safetensors", options={"budget": Epochs(3)})
    code = read_json(tmp_path / "here/model.checkpoint.json")["identity"]["code"]
    of_tomorrow(monkeypatch)
    seen = []
    told = {"on_epoch": lambda history: seen.append(len(history))}
    small(patches, tmp_path / "here/model.safetensors", options=told)
    assert seen == [1, 2, 3, 4]
    assert capsys.readouterr().out == "model.safetensors: its checkpoint was written by other code (learn); the training starts again\n"
    seen.clear()
    small(patches, tmp_path / "new/model.safetensors", options={"resume_folders": [tmp_path / "attached"], **told})
    assert seen == [4]
    assert capsys.readouterr().out == f"model.safetensors: resumes after epoch 3 of {tmp_path / 'attached'}, which other code trained (learn)\n"
    assert read_json(tmp_path / "new/model.json")["details"]["earlier_code"] == [code] and read_json(tmp_path / "here/model.json")["details"]["earlier_code"] == []


def test_a_checkpoint_of_this_code_wins_over_one_of_other_code_that_came_further(
    patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(patches, tmp_path / "further/model.safetensors", options={"budget": Epochs(3)})
    of_tomorrow(monkeypatch)
    cut_short(patches, tmp_path / "ours/model.safetensors", options={"budget": Epochs(1)})
    for first in ("further", "ours"):
        second = {"further": "ours", "ours": "further"}[first]
        folders = [tmp_path / first, tmp_path / second]
        cut_short(patches, tmp_path / f"{first}-first/model.safetensors", options={"resume_folders": folders, "budget": Epochs(0)})
        assert read_json(tmp_path / f"{first}-first/model.checkpoint.json")["details"]["epoch"] == 1


def test_weights_from_before_code_counted_are_trained_again(patches: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = tmp_path / "model.safetensors"
    trained(patches, weights)
    written = Receipt.read(weights.with_suffix(".json"))
    replace(written, identity={name: value for name, value in written.identity.items() if name != "code"}).write()
    trained(patches, weights)
    assert capsys.readouterr().out == AGAIN.format("cellsignal, data, given, learn, notebook")


def test_other_settings_are_no_other_code(patches: tuple, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = tmp_path / "model.safetensors"
    trained(patches, weights)
    trained(patches, weights, learning_rate=1e-3)
    assert capsys.readouterr().out == ""

"""What is attached: found by its marks, in every layout, without listing what is huge."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cellsignal.data import simulated
from cellsignal.data.microscope import simulate
from cellsignal.errors import InputError
from cellsignal.run import inputs, mounts, environment
from cellsignal.run.inputs import find_pretrained
from cellsignal.tasks import PROTEIN_ATLAS, RXRX1

Attach = Callable[..., Path]


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Attach:
    """attach(mount, *files) mounts an input with these empty files, on Kaggle."""
    monkeypatch.setattr(environment, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")

    def make(mount: str, *names: str) -> Path:
        folder = tmp_path / "kaggle/input" / mount
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    return make


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many entries of each folder were looked at."""
    counts: dict[str, int] = {}
    scandir = os.scandir

    class Counting:
        def __init__(self, place: Path) -> None:
            self.place, self.entries = str(place), scandir(place)

        def __enter__(self) -> Iterator[os.DirEntry]:
            for entry in self.entries:
                counts[self.place] = counts.get(self.place, 0) + 1
                yield entry

        def __exit__(self, *error: object) -> None:
            self.entries.close()

    monkeypatch.setattr(mounts.os, "scandir", Counting)
    return counts


@pytest.mark.parametrize(
    "mount, inside",
    [
        ("recursion-cellular-image-classification", ""),
        ("competitions/Recursion-Cellular-Image-Classification", ""),
        ("datasets/Alice/My-Plates", ""),
        ("my-plates", "plates/"),
        ("datasets/alice/my-plates", "upload/plates/"),
        ("notebooks/alice/draw-plates", "plates/"),
    ],
)
def test_plates_are_found_wherever_they_are_mounted(attach: Attach, tmp_path: Path, mount: str, inside: str) -> None:
    attach("datasets/alice/cellsignal-utils", "cellsignal/__init__.py")
    folder = attach(mount, f"{inside}train_controls.csv", f"{inside}train/U2OS-01/Plate1/B02_s1_w1.png")
    assert mounts.data_set() == folder / inside
    for preset in ("", "tiny"):  # which draws nothing where plates are attached
        assert inputs.resolve("", run=tmp_path / "run", preset=preset) == (folder / inside, "")


def test_a_public_release_is_found_but_a_metadata_table_beside_the_competition_is_nobodys(attach: Attach) -> None:
    release = attach("datasets/alice/rxrx1", "metadata.csv")
    assert mounts.data_set() == release
    competition = attach("competitions/recursion", "train_controls.csv")
    assert mounts.data_set() == competition


@pytest.mark.parametrize("competition", ["recursion-cellular-image-classification", "competitions/Recursion-Cellular-Image-Classification"])
@pytest.mark.parametrize("own", ["datasets/alice/plates/", "my-plates/", "notebooks/alice/draw-plates/data/"])
def test_plates_of_ones_own_win_over_the_competition(attach: Attach, competition: str, own: str) -> None:
    """Which tracked kernels mount in any case."""
    there = attach(competition, "train_controls.csv")
    attach("datasets/alice/notes", "metadata.csv")
    assert mounts.data_set() == there
    mine = attach(own, "train_controls.csv")
    assert mounts.data_set() == mine
    (mine / "train_controls.csv").unlink()
    (mine / "metadata.csv").write_text("site_id,well_id,cell_type,dataset,experiment\n")  # the public release
    assert mounts.data_set() == mine


def test_two_data_sets_are_named_and_none_is_guessed(attach: Attach) -> None:
    one, two = attach("datasets/alice/one", "train_controls.csv"), attach("two", "train_controls.csv")
    with pytest.raises(InputError, match="2 data sets are attached.*name one of them as `data`") as caught:
        mounts.data_set()
    assert str(one) in str(caught.value) and str(two) in str(caught.value)


def test_what_is_mounted_and_what_to_attach_is_said(attach: Attach, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no plates to be found; nothing is attached; attach the competition recursion-cell"):
        inputs.resolve("", run=tmp_path / "run")
    attach("datasets/alice/cellsignal-utils", "cellsignal/__init__.py")
    attach("titanic", "train.csv")
    with pytest.raises(InputError, match="attached are datasets/alice/cellsignal-utils, titanic; attach the competition"):
        inputs.resolve("", run=tmp_path / "run")


def test_simulated_plates_need_nothing_attached(attach: Attach, tmp_path: Path) -> None:
    assert inputs.resolve("", run="runs/tiny", preset="tiny") == (tmp_path / "kaggle/temp/runs/tiny/data", "tiny")


def test_attached_plates_win_over_a_preset_and_one_line_says_so(
    attach: Attach, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tracked kernels have the competition attached and the preset of the demo."""
    monkeypatch.setattr(inputs, "_printed", set())
    monkeypatch.setattr(simulate, "simulate", lambda *asked, **options: pytest.fail("plates were drawn"))
    there = attach("competitions/recursion-cellular-image-classification", "train_controls.csv")
    for _ in range(2):
        assert inputs.prepare("", run="runs/demo", preset="demo") == there
    assert capsys.readouterr().out == f"preset 'demo' is ignored: plates that are attached take precedence, {there}\n"
    assert not simulated.shown()
    mine = attach("notebooks/alice/draw-plates", "data/train_controls.csv", "data/simulate.json") / "data"
    assert inputs.prepare("", run="runs/demo", preset="demo") == mine and simulated.shown()
    attach("datasets/alice/plates", "train_controls.csv")
    with pytest.raises(InputError, match="2 data sets are attached.*name one of them as `data`"):
        inputs.prepare("", run="runs/demo", preset="demo")


def test_anybody_s_table_does_not_win_over_a_preset(attach: Attach, tmp_path: Path) -> None:
    attach("titanic", "train.csv", "metadata.csv")
    for preset, task in (("tiny", RXRX1), ("atlas-tiny", PROTEIN_ATLAS)):
        assert inputs.resolve("", run="runs/x", preset=preset, task=task) == (tmp_path / "kaggle/temp/runs/x/data", preset)


def test_a_huge_folder_is_never_listed(attach: Attach, looked_at: dict[str, int]) -> None:
    attach("pictures", *(f"{number}.png" for number in range(1000)))
    attach("datasets/alice/more-pictures", *(f"images/{number}.png" for number in range(1000)))
    plates = attach("competitions/recursion", "train_controls.csv", *(f"train/{number}/x.png" for number in range(300)))
    assert mounts.data_set() == plates and mounts.runs() == []
    assert max(looked_at.values()) <= 3 * mounts.MAX_ENTRIES  # looked at three times, each time a little
    assert str(plates / "train") not in looked_at


@pytest.mark.parametrize("mount", ["cellsignal-tiny-2-pretrain", "notebooks/Alice/Cellsignal-Tiny-2-Pretrain", "datasets/alice/runs"])
@pytest.mark.parametrize("inside", ["", "tiny/", "runs/tiny/"])
def test_runs_are_found_by_their_mark(attach: Attach, mount: str, inside: str) -> None:
    folder = attach(mount, f"{inside}run.json", "__results__.html")
    attach("other", "runs/tiny/weights/U2OS/model.json")
    assert mounts.runs() == [folder / inside]


@pytest.mark.parametrize("mount", ["weights", "datasets/alice/imagenet", "models/timm/densenet121/pytorch/default/1", "notebooks/alice/made/two/deep"])
def test_pretrained_weights_are_found_wherever_they_are_attached(attach: Attach, mount: str) -> None:
    attach("weights-of-others", "resnet34.safetensors")
    folder = attach(mount, "densenet121.safetensors", "timm-resnet18.safetensors")
    for name, file in (("densenet121", "densenet121.safetensors"), ("timm:resnet18", "timm-resnet18.safetensors")):
        assert find_pretrained("imagenet", name) == folder / file


def test_pretrained_weights_that_lie_here_or_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vgg-small.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert find_pretrained("imagenet", "vgg-small") == find_pretrained("vgg-small.safetensors", "") == tmp_path / "vgg-small.safetensors"
    with pytest.raises(InputError, match="absent.safetensors: no such weights"):
        find_pretrained("absent.safetensors", "vgg-small")
    with pytest.raises(InputError, match="there are no ImageNet weights of the plain-cnn"):
        find_pretrained("imagenet", "plain-cnn")

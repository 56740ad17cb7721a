"""Recipes: what a good file becomes."""

from pathlib import Path

import pytest
import yaml

from cellsignal.errors import InputError
from cellsignal.run import recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("papermill_params/*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole(path: Path) -> None:
    loaded = recipe.load(path)
    written = yaml.safe_load(path.read_text())
    assert {key: getattr(loaded, key) for key in written} == written
    assert loaded.run == written.get("run", f"runs/{path.stem}")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("# nothing\n")
    assert recipe.load(tmp_path / "plain.yaml") == recipe.Recipe(run="runs/plain")


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("seed: 1\nrun: here\n")
    loaded = recipe.load(path, ["seed=2", "wells.cell_types=[RPE, U2OS]", "assignment.plate_groups=false", "training.learning_rate=1.0e-4", "run="])
    assert (loaded.seed, loaded.groups, loaded.learning_rate) == (2, False, 1e-4)
    assert loaded.cell_types == ["RPE", "U2OS"]
    assert loaded.run == "runs/one"


def test_every_parameter_is_described() -> None:
    assert all(field.description for field in recipe.Recipe.model_fields.values())


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "2e5", "1e+2"])
def test_the_cure_for_a_number_without_a_dot_is_the_same_number(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"learning_rate: {text}\n")
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    cure = str(caught.value).rsplit("write ", 1)[1]
    path.write_text(f"learning_rate: {cure}\n")
    assert recipe.load(path).learning_rate == float(text)


def test_backbones_are_those_that_can_be_built() -> None:
    from cellsignal.learn.networks.backbones import BACKBONES

    assert tuple(BACKBONES) == recipe.BACKBONES

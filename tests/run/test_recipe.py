"""Recipes: what a good file becomes."""

from pathlib import Path

import pytest
import yaml

from cellsignal import code_identity
from cellsignal.settings import flatten, keys
from cellsignal.learn.settings import TrainingSettings
from cellsignal.errors import InputError
from cellsignal.run import recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("papermill_params/*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole(path: Path) -> None:
    loaded = recipe.load(path)
    written = yaml.safe_load(path.read_text())
    assert {key: value for key, value in flatten(loaded.model_dump()).items() if key in flatten(written)} == flatten(written)
    assert loaded.run == written.get("run", f"runs/{path.stem}")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text("# nothing\n")
    assert recipe.load(tmp_path / "plain.yaml") == recipe.Recipe(run="runs/plain")


def test_overrides_win_and_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("seed: 1\nrun: here\n")
    loaded = recipe.load(path, ["seed=2", "wells.cell_types=[RPE, U2OS]", "assignment.plate_groups=false", "training.learning_rate=1.0e-4", "run="])
    assert (loaded.seed, loaded.assignment.plate_groups, loaded.training.learning_rate) == (2, False, 1e-4)
    assert loaded.wells.cell_types == ["RPE", "U2OS"]
    assert loaded.run == "runs/one"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "2e5", "1e+2"])
def test_the_cure_for_a_number_without_a_dot_is_the_same_number(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(f"training: {{learning_rate: {text}}}\n")
    with pytest.raises(InputError) as caught:
        recipe.load(path)
    cure = str(caught.value).rsplit("write ", 1)[1]
    path.write_text(f"training: {{learning_rate: {cure}}}\n")
    assert recipe.load(path).training.learning_rate == float(text)


def test_overrides_change_what_they_name_of_a_group_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("training:\n  epochs: 3\n  batch_size: 8\n")
    loaded = recipe.load(path, ["training={epochs: 4, loss: focal}", "network={}"])
    assert (loaded.training.epochs, loaded.training.batch_size, loaded.training.loss) == (4, 8, "focal")
    assert loaded.location("training.batch_size") == f"{path}:3" and loaded.location("training.loss") == "-p training={epochs: 4, loss: focal}"


def test_a_notebook_is_given_what_is_not_the_default() -> None:
    given = recipe.without_defaults(recipe.load(ROOT / "papermill_params/demo.yaml").model_dump())
    assert given["training"] == {"pretrain_epochs": 12, "epochs": 22, "learning_rate": 2e-3, "schedule": "cosine"}
    assert given["network"] == {"backbone": "densenet-small"} and given["assignment"] == {} and given["preset"] == "demo"


@pytest.mark.parametrize(("code", "read"), [
    ("recipe.training.epochs + seed", {"training.epochs", "seed"}), ("fit(recipe.augmentation.pretraining)", {f"augmentation.{name}" for name in (
        "symmetries", "crop", "resized_crop", "channel_scale", "channel_shift")}), ("recipe = session.recipe", set()),
    ("f(session.recipe.wells.split)", {"wells.split"}), ("training['epochs']", {f"training.{name}" for name in TrainingSettings.model_fields}),
    ("recipe.training.model_dump()", {f"training.{name}" for name in TrainingSettings.model_fields}), ("run_chain(recipe)", set(keys(recipe.Recipe))),
    ("session.time_budget", {"machine.time_budget_minutes"}), ("found['recipe'].cost; draw.by_recipe(recipe=1)", set()),
])
def test_what_a_cell_reads_is_told_by_its_code(code: str, read: set[str]) -> None:
    assert recipe.keys_read_by_cells(["%matplotlib inline", code]) == read


MODULE = """
class Training:
    def __init__(self, session, wells):
        self.session = session
    def build_network(self):
        recipe = self.session.recipe
        return _built(recipe.network.backbone, seed=seed_of(recipe.seed), wells=wells, budget=session.time_budget)
    def unused(self):
        return self.session.recipe.assignment

def _built(backbone, **how):
    return backbone

def unused(session):
    return session.recipe.prediction
"""


@pytest.mark.parametrize(("old", "new", "more"), [
    ("", "", set()), ("wells=wells", "wells=session.recipe.wells.split", {"wells.split"}), ("    recipe = self.session", "    chosen = self.session", set(keys(recipe.Recipe))),
    ("wells=wells", "wells=recipe", set(keys(recipe.Recipe))), ("return backbone", "return session.recipe.data", {"data"}),
    ("        self.session = session", "        self.task = session.recipe.task", {"task"}), ("(self, session, wells)", "(self, session=session.recipe.run)", {"run"}), ("wells=wells", "**self.session.recipe.wells.held_out", {"wells.split", "wells.validation_experiments"}),
])
@pytest.mark.parametrize("imports", ["from cellsignal.run import more\nmore.Training", "from cellsignal.run.more import Training", "import cellsignal.run.more as m; m.Training()"])
def test_what_functions_of_the_room_run_read_is_read_by_the_notebook_that_names_them(
        imports: str, old: str, new: str, more: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cellsignal/run").mkdir(parents=True)
    (tmp_path / "cellsignal/run/more.py").write_text(MODULE.replace(old, new))
    monkeypatch.setattr(code_identity, "PACKAGE", tmp_path / "cellsignal")
    assert recipe.keys_read_by_cells([imports, "x = recipe.data", "%time", "x.build_network"]) == {
        "network.backbone", "seed", "machine.time_budget_minutes", "data"} | more
    assert recipe.keys_read_by_cells(["from cellsignal.run.others import network", "from cellsignal.data import more; more.Training().build_network()"]) == set()


def test_the_page_of_settings_is_that_of_the_models() -> None:
    page = (ROOT / "papermill_params/SETTINGS.md").read_text()
    assert page.endswith(recipe.settings_table()), "write the table again: python -c 'from cellsignal.run.recipe import settings_table; print(settings_table(), end=str())'"

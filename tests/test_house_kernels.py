"""The house rules of notebooks and of what Kaggle reads, counted."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from papermill import inspect_notebook
from pydantic import Field
from sizes import functions, length

from cellsignal.code_identity import assigned_names, imported_names, read_names
from cellsignal.kaggle import account, colab
from cellsignal.kaggle.client import FIRST_RUN, PLACEHOLDER, slugify
from cellsignal.errors import InputError
from cellsignal.learn.settings import TrainingSettings
from cellsignal.run import parameters
from cellsignal.run import recipe as recipes
from cellsignal.run.chain import notebooks, plans
from cellsignal.run.parameters import NotebookParameters
from cellsignal.run.recipe import Recipe
from cellsignal.settings import flatten, group_of, keys
from cellsignal.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("kernels/*/*.ipynb"))
METADATA = sorted([ROOT / "kernel-metadata.json", *ROOT.glob("kernels/*/kernel-metadata.json")])
UTILS = ROOT / "utils_dataset/dataset-metadata.json"
KEYS = {
    "id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu", "enable_internet",
    "dataset_sources", "competition_sources", "kernel_sources", "model_sources", "keywords", "machine_shape",
    "docker_image_pinning_type",
}  # fmt: skip
SETUP = '''import sys
from importlib.util import find_spec
from pathlib import Path

places = [Path.cwd(), *Path.cwd().parents, *Path("/kaggle/input").glob("*"), *Path("/kaggle/input").glob("*s/*/*")]  # old layout and new
sys.path += [str(root) for place in places for root in (place / "utils_dataset", place) if (root / "cellsignal/__init__.py").is_file()]
assert getattr(find_spec("cellsignal"), "origin", None), f"no cellsignal in {', '.join(map(str, places))}; on Kaggle attach the data set cellsignal-utils, on Colab open a notebook by its badge"
import cellsignal

session = cellsignal.start(globals(), "STEP")'''
OWN = {  # values of notebooks outside the chain that are not the demo's
    "compare": {"preset": ""},
    "profiles": {"preset": ""},
    "rehearse": {},
    "benchmark": {"preset": "", "network.backbone": "densenet121", "training.batch_size": 8},
}

RECIPE_OF_TASK = {"rxrx1-wilds": "wilds-adapted"}  # where it has another name than the task's notebook

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_metadata = pytest.mark.parametrize("path", METADATA, ids=lambda path: path.parent.name)


# The notebooks


@cache
def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in notebook(path)["cells"] if cell["cell_type"] == kind]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code(path: Path) -> list[dict[str, Any]]:
    """The code cells but for the one that `cellsignal colab init` writes."""
    return [cell for cell in cells(path, "code") if not colab.is_cell(cell)]


def parameters_cell(path: Path) -> dict[str, Any]:
    [cell] = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    return cell


def literals(path: Path) -> dict[str, Any]:
    """Names and values of the parameters cell, which may hold nothing but annotated literals."""
    code = text(parameters_cell(path))
    assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(code).body)
    return {name: ast.literal_eval(value) for name, value in assigned_names(code).items()}


@each_notebook
def test_notebook_is_a_source_not_a_result(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    metadata = notebook(path)["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert set(metadata) <= {"kernelspec", "language_info"}


@each_notebook
def test_notebook_narrates(path: Path) -> None:
    kinds = [cell["cell_type"] for cell in notebook(path)["cells"]]
    assert kinds[0] == "markdown" and text(notebook(path)["cells"][0]).startswith("# ")
    follow = [before == "markdown" for before, kind in zip(kinds, kinds[1:]) if kind == "code"]
    assert sum(follow) >= 0.75 * (len(follow) - 1)  # the imports follow the bootstrap


@each_notebook
def test_prose_precedes_every_cell_that_runs_something(path: Path) -> None:
    kinds = [cell["cell_type"] for cell in notebook(path)["cells"] if not colab.is_cell(cell)]
    assert "codecode" not in "".join(kinds)


@each_notebook
def test_a_cell_imports_at_most_eight_lines_and_asks_nothing_of_stored_results(path: Path) -> None:
    for cell in code(path):
        tree = ast.parse(text(cell))
        assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body) <= 8
        tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)]
        assert not {"start_from", "score_only"} & {node.id for test in tests for node in ast.walk(test) if isinstance(node, ast.Name)}


@each_notebook
def test_notebook_cells_are_short_and_define_next_to_nothing(path: Path) -> None:
    for cell in cells(path, "code"):
        lines = [line for line in text(cell).splitlines() if line.strip() and not line.startswith(("import ", "from "))]
        # Only one cell can be tagged `parameters`, and a literal with its comment wants a line of its own.
        assert len(lines) <= 25 or "parameters" in cell["metadata"].get("tags", []), text(cell)
        tree = ast.parse(re.sub(r"^[%!].*$", "", text(cell), flags=re.MULTILINE))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        assert all(length(function) <= 10 for function in functions(tree))


@each_notebook
def test_every_notebook_starts_the_same_way(path: Path) -> None:
    [begins] = [text(cell) for cell in code(path) if "cellsignal.start(" in text(cell)]
    assert begins == SETUP.replace("STEP", path.stem) and code(path)[1] == next(cell for cell in code(path) if text(cell) == begins)


def test_the_set_up_is_eight_lines() -> None:
    assert len([line for line in SETUP.splitlines() if line]) <= 8


@each_notebook
def test_every_notebook_ends_with_its_receipt(path: Path) -> None:
    assert [text(cell).count("session.finish()") for cell in code(path)] == [0] * (len(code(path)) - 1) + [1]


@each_notebook
def test_no_cell_guards_against_spent_time(path: Path) -> None:
    read = set().union(*(set(read_names(text(cell))) for cell in code(path) if cell is not parameters_cell(path)))
    assert not read & {"budget", "spent", "complete", "time_budget_minutes"}


@each_notebook
def test_no_cell_overwrites_a_parameter(path: Path) -> None:
    """The receipt tells the parameters as they are in the end."""
    names = set(literals(path))
    for cell in cells(path, "code"):
        if cell is not parameters_cell(path):
            stored = {node.id for node in ast.walk(ast.parse(text(cell))) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            assert not (stored | imported_names(text(cell))) & names


def resolved(path: Path, injected: dict[str, Any] = {}) -> dict[str, Any]:
    """By dotted key what the notebook reads of a recipe, as its set-up resolves it."""
    networks = {"cell_type": "all"} if "cell_type" in literals(path) else {}  # no recipe names it
    recipe, read = parameters.check({**literals(path), **networks, **injected}).recipe, notebooks.parameters_read(path)
    return {key: value for key, value in flatten(recipe.model_dump()).items() if key in read}


@each_notebook
def test_parameters_are_the_plain_keys_the_groups_and_at_most_three_of_its_own(path: Path) -> None:
    given = literals(path)
    assert len(text(parameters_cell(path)).splitlines()) <= 15
    own = [name for name in given if name not in Recipe.model_fields]
    assert sorted({*given} - {*own}) == sorted(Recipe.model_fields) and len(own) <= 3 and set(own) <= set(NotebookParameters.model_fields)


@each_notebook
def test_parameters_are_those_of_the_demo(path: Path) -> None:
    name = RECIPE_OF_TASK.get(path.stem, path.stem) if path.stem in TASKS else "demo"  # a task's own notebook has a recipe of its own
    demo = flatten(recipes.load(ROOT / f"papermill_params/{name}.yaml").model_dump()) | {"run": f"runs/{path.stem if path.stem in OWN else name}"} | OWN.get(path.stem, {})
    found = resolved(path)
    assert found == {key: demo[key] for key in found}


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("papermill_params/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_that_papermill_injects_is_the_recipe(recipe: Path) -> None:
    """`papermill -f` leaves the notebooks' literals, which are the demo's, where a file names no other value."""
    whole = recipes.load(recipe)
    injected = {"run": whole.run, **yaml.safe_load(recipe.read_text())}  # the file's name names the run
    for path in {step.notebook for step in plans.plan(whole, ["U2OS"], kernels=ROOT / "kernels") if step.notebook}:
        found = resolved(path, injected)
        assert found == {key: value for key, value in flatten(whole.model_dump()).items() if key in found}


@each_notebook
def test_papermill_tells_type_comment_and_choices_of_every_parameter(path: Path) -> None:
    told = inspect_notebook(path)
    assert {name: told[name]["inferred_type_name"] for name in told} == {name: kind_of(name) for name in literals(path)}
    for name, parameter in told.items():
        assert ast.literal_eval(parameter["default"]) == literals(path)[name]
        shown = re.search(r"[^\[]+(?: \[([\w|-]+)\])?$", parameter["help"])
        assert shown and (shown[1] or "").split("|") == (list(choices_of(name, path.stem)) or [""]), name


def kind_of(name: str) -> str:
    """The type of a parameter as the notebooks spell it."""
    kind = NotebookParameters.model_fields[name].annotation
    if group_of(NotebookParameters, name):
        return "dict"
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0]).__name__
    return str(kind) if get_origin(kind) else kind.__name__


def choices_of(name: str, stem: str) -> tuple[str, ...]:
    """What a parameter may be, as text; () for what cannot be listed."""
    of_tasks = [TASKS[stem]] if stem in TASKS else list(TASKS.values()) if stem in ("0-chain", *OWN) else [TASKS["rxrx1"]]
    listed = {
        "preset": tuple(preset for task in of_tasks for preset in task.presets),
        **({"task": (stem,)} if stem in TASKS else {}),
    }  # fmt: skip
    kind = NotebookParameters.model_fields[name].annotation
    literal = get_args(kind) if get_origin(kind) is Literal else ()
    return listed.get(name, tuple(str(choice) for choice in literal if choice != ""))


@each_notebook
def test_a_cell_reads_every_parameter_that_only_notebooks_have(path: Path) -> None:
    own = set(literals(path)) - set(Recipe.model_fields)
    assert own <= notebooks.parameters_read(path)


@each_notebook
def test_a_cell_reads_every_key_that_the_parameters_cell_shows(path: Path) -> None:
    shown = {key for key in flatten(literals(path)) if "." in key and key.partition(".")[0] in Recipe.model_fields}
    assert path.stem == "0-chain" or shown <= notebooks.parameters_read(path)  # the chain hands all of them on


def test_a_notebook_or_the_chain_reads_every_key_of_the_recipe() -> None:
    assert set(keys(Recipe)) == read_somewhere()


def test_a_session_is_called_so_wherever_its_recipe_is_read() -> None:
    """`keys_read_by_cells` finds what a module reads of a recipe by this name."""
    arguments = [node for path in (ROOT / "utils_dataset/cellsignal/run").glob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)]
    assert {each.arg for each in arguments if each.annotation and "Session" in ast.unparse(each.annotation)} <= {"session"}


def read_somewhere() -> set[str]:
    """The keys that the notebooks of a plan read, and those that the chain does."""
    planned = {step.notebook for task in TASKS for step in plans.plan(Recipe(task=task), ["U2OS"], kernels=ROOT / "kernels") if step.notebook}
    read = set().union(*map(notebooks.parameters_read, planned)) & set(keys(Recipe))
    code = (ROOT / "utils_dataset/cellsignal/run/chain/chain.py").read_text().replace("recipe.model_dump", "").replace("recipe.location", "")
    chain = recipes._keys_in_trees([ast.parse(code)], in_notebook=True)
    assert plans.READ_BY_CHAIN <= chain | {"seed"}
    return read | plans.READ_BY_CHAIN


def test_a_key_that_nothing_reads_is_found_and_refused(tmp_path: Path) -> None:
    """The test above would fail, and a run that sets it ends in one line."""

    class MoreTraining(TrainingSettings):
        unread: int = Field(0, description="what no notebook knows")

    class More(Recipe):
        training: MoreTraining = Field(default_factory=MoreTraining, description="how they are trained")

    assert set(keys(More)) - read_somewhere() == {"training.unread"}
    path = tmp_path / "more.yaml"
    path.write_text("seed: 1\ntraining:\n  unread: 3\n")
    values, locations = recipes.read(path)
    with pytest.raises(InputError) as refused:
        plans.check(recipes.check(values, locations=locations, model=More), kernels=ROOT / "kernels")
    assert str(refused.value) == f"{path}:3: training.unread is 3, and no step of the task rxrx1 reads it; leave it out"


# What Kaggle reads


def described(path: Path) -> dict[str, Any]:
    """A metadata file as it is once somebody has written a name into it, or another than the one that is there."""
    return json.loads(account.with_name(path.read_text(), "alice"))


@each_metadata
def test_kernel_metadata_is_explicit(path: Path) -> None:
    metadata = described(path)
    assert set(metadata) == KEYS
    owner, slug = metadata["id"].split("/")
    assert owner == "alice" and slugify(metadata["title"]) == slug and 5 <= len(slug) <= 50
    assert (path.parent / metadata["code_file"]).is_file()
    assert metadata["enable_gpu"] == bool(metadata["machine_shape"])
    assert metadata["is_private"] is True and metadata["enable_internet"] is False
    assert "alice/cellsignal-utils" in metadata["dataset_sources"]


def test_metadata_names_nobody_or_one_user() -> None:
    """A fresh clone has a placeholder, after `cellsignal kaggle init` one name: never a placeholder half replaced."""
    texts = [path.read_text() for path in (*METADATA, UTILS)]
    owners = set(re.findall(r'"([\w-]+)/cellsignal', " ".join(texts)))
    assert len(owners) == 1 and {FIRST_RUN in text for text in texts} == {owners == {PLACEHOLDER}}


def test_every_kernel_folder_has_its_notebook_and_metadata() -> None:
    for folder in filter(Path.is_dir, (ROOT / "kernels").iterdir()):
        assert {f"{folder.name}.ipynb", "kernel-metadata.json"} <= {path.name for path in folder.iterdir()}


def test_dataset_metadata() -> None:
    metadata = described(UTILS)
    assert metadata["id"] == "alice/cellsignal-utils" and metadata["resources"] == []
    assert 6 <= len(metadata["title"]) <= 50 and 20 <= len(metadata["subtitle"]) <= 80
    assert metadata["licenses"] == [{"name": "MIT"}]


def test_the_plain_upload_carries_the_notebooks_of_the_chain() -> None:
    assert (ROOT / "utils_dataset/kernels").resolve() == ROOT / "kernels"

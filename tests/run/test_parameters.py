"""A notebook's parameters as papermill sets them: what the recipe refuses, the notebook's set-up refuses, in the same words."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from papermill.cli import _resolve_type
from papermill.translators import PythonTranslator

from cellsignal.data.tables.splits import of_cell_type
from cellsignal.errors import InputError
from cellsignal.run import parameters, environment, recipe
from cellsignal.run.chain import notebooks
from cellsignal.run.record import session

KERNELS = environment.kernels_folder()
NOTEBOOKS = sorted(path.stem for path in KERNELS.glob("*/*.ipynb"))
TRAIN, PREDICT = "3-train-cell-type", "4-predict-assign"
ON_COMMAND_LINE = {  # notebook, name and value after -p, or the YAML after -y, what the set-up says
    "text for a truth": (PREDICT, "-y", "assignment: {known_layouts: 'false'}", "assignment.known_layouts is 'false': input should be a valid boolean; write "
                         "known_layouts: true or known_layouts: false"),
    "text for another truth": ("2-pretrain-controls", "-y", "machine: {compile: 'no'}", "machine.compile is 'no': input should be a valid boolean; write "
                               "compile: true or compile: false"),
    "below its least": (TRAIN, "-y", "augmentation: {mixup_alpha: -1}", "augmentation.mixup_alpha is -1: input should be greater than or equal to 0; write for "
                        "example mixup_alpha: 0.0"),
    "word for a number": ("1-eda", "seed", "abc", "seed is 'abc': input should be a valid integer; write a number without quotes"),
    "batches of nothing": (TRAIN, "-y", "training: {batch_size: 0}", "training.batch_size is 0: input should be greater than or equal to 2; write for example "
                           "batch_size: 16"),
    "half an epoch": (TRAIN, "-y", "training: {epochs: 1.5}", "training.epochs is 1.5: input should be a valid integer; write for example epochs: 375"),
    "no value": ("0-chain", "-y", "assignment: {plate_groups: }", "assignment.plate_groups is None: input should be a valid boolean; give it a value, or leave "
                 "the line out for True"),
    "a value for a group": (TRAIN, "training", "3", "training is 3: it is a group of keys; write its keys below it, indented, such as training: "
                            "{batch_size: 16}"),
    "text for a group": (TRAIN, "training", "epochs: 3", "training is 'epochs: 3': it is a group of keys; write its keys below it, indented, such as "
                         "training: {batch_size: 16} (papermill: -y 'training: {batch_size: 16}')"),
    "text for a list": ("compare", "runs", "runs/demo", "runs is 'runs/demo': input should be a valid list; write a list of different names, such as "
                        "runs: [runs/demo, runs/second] (papermill: -y 'runs: [runs/demo, runs/second]')"),
    "text for numbers": ("protein-atlas", "-y", "augmentation: {progressive_sizes: 64}", "augmentation.progressive_sizes is 64: input should be a valid list; "
                         "write a list of rising numbers, such as progressive_sizes: [15, 25]"),
    "a cell type that is not drawn": (TRAIN, "cell_type", "HUVAC", "no cell_type 'HUVAC' in the preset demo; choose from HEPG2, HUVEC, RPE, U2OS"),
    "a name that is none": (TRAIN, "network_name", "7", "network_name is 7: input should be a valid string; write it in quotes: network_name: \"7\""),
    "an odd number of sites": ("benchmark", "-y", "measurement: {sites: 3}", "measurement.sites is 3: input should be a multiple of 2; write for example sites: 64"),
    "no such stage": (PREDICT, "start_from", "score", "start_from is 'score': input should be '', 'weights' or 'scores'; write for example start_from: ''"),
    "a misspelt group": (TRAIN, "trainign", "0.2", "unknown parameter 'trainign'; did you mean 'training'?"),
    "a misspelt name": (TRAIN, "-y", "augmentation: {mixpu_alpha: 0.2}", "unknown key 'augmentation.mixpu_alpha'; did you mean 'augmentation.mixup_alpha'?"),
    "a name of version 0.1": (TRAIN, "mixup", "0.2", "unknown parameter 'mixup'; it is called 'augmentation.mixup_alpha' now"),
    "a key without its group": (TRAIN, "momentum", "0.2", "unknown parameter 'momentum'; did you mean 'training.momentum'?"),
    "a name of another notebook": ("1-eda", "measurement", "x", "unknown parameter 'measurement'; known keys: task, data, preset, run, seed, and those of the groups wells, "
                                   "network, training, augmentation, prediction, assignment, machine"),
    "the task of another notebook": (TRAIN, "task", "protein-atlas", "task is 'protein-atlas', and 3-train-cell-type is a notebook of the task rxrx1; "
                                     "leave the task out, or run the notebooks of protein-atlas"),
    "the task of wells": ("rxrx1-wilds", "task", "rxrx1", "task is 'rxrx1', and rxrx1-wilds is a notebook of the task rxrx1-wilds; leave the task out, or "
                          "run the notebooks of rxrx1"),
    "a name of nothing": (TRAIN, "network_name", "", "network_name is '': it names a file: use letters, digits and any of _.+-, a letter or digit first; write "
                          "for example network_name: model"),
    "a truth for one of several numbers": (PREDICT, "-y", "prediction: {tta_views: true}", "prediction.tta_views is True: input should be 1, 2, 4 or 8; write "
                                           "for example tta_views: 1"),
    "one of several numbers with a point": (PREDICT, "-y", "prediction: {tta_views: 4.0}", "prediction.tta_views is 4.0: input should be 1, 2, 4 or 8; write "
                                            "for example tta_views: 1"),
    "that rules fit together": (TRAIN, "-y", "training: {virtual_batch: 8}", "training.virtual_batch is 8: use at least the batch size, 16, or 0 for "
                                "no virtual batch; write for example virtual_batch: 0"),
}  # fmt: skip


def variables(notebook: str, injected: dict[str, Any] = {}) -> dict[str, Any]:
    """A notebook's variables at its set-up, after papermill has injected some."""
    first = notebooks.source(notebooks.code_cells(KERNELS / notebook / f"{notebook}.ipynb")[0])
    cells = ["", first, *[PythonTranslator.codify(injected)] * bool(injected), "import cellsignal"]
    namespace: dict[str, Any] = {"In": cells}
    for cell in cells:
        exec(cell, namespace)
    return namespace


def refusal(notebook: str, injected: dict[str, Any]) -> str:
    """What the set-up says of the injected parameters, in which it makes no folder."""
    with pytest.raises(InputError) as refused:
        session.start(variables(notebook, injected), notebook)
    return str(refused.value).removeprefix("parameters: ")


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("notebook, name, value, said", ON_COMMAND_LINE.values(), ids=ON_COMMAND_LINE)
def test_what_the_command_line_sets_wrongly(notebook: str, name: str, value: str, said: str, tmp_path: Path) -> None:
    assert refusal(notebook, yaml.safe_load(value) if name == "-y" else {name: _resolve_type(value)}) == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_notebook_accepts_its_own_parameters_and_any_recipe(notebook: str) -> None:
    default = variables(notebook)
    parameters.check(default)
    network = {"cell_type": "all"} if "cell_type" in default else {}  # no recipe names it
    for path in environment.repository().glob("papermill_params/*.yaml"):
        parameters.check(variables(notebook, {**yaml.safe_load(path.read_text()), **network}))
    parameters.check(variables(notebook, {"PAPERMILL_INPUT_PATH": "in.ipynb"}))  # as its --inject-paths does
    assert refusal(notebook, {"epoch": 3}) == "unknown parameter 'epoch'; did you mean 'training.epochs'?"


@pytest.mark.parametrize("text", ["training: {learning_rate: 1e-3}", "assignment: {plate_groups: 'false'}", "training: {epochs: 1.5}", "seed: abc",
                                  "wells: {cell_types: U2OS}", "training: {loss: zebra}", "training: {epoch: 3}", "training: U2OS"])
def test_a_file_is_refused_as_the_command_refuses_it(text: str, tmp_path: Path) -> None:
    """YAML reads 1e-3 as text, in a recipe and in a file for papermill alike."""
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        recipe.load(path)
    said, _, hint = refusal(TRAIN, yaml.safe_load(text)).partition(" (papermill: ")
    assert f"{path}:1: {said}" == str(refused.value)
    assert bool(hint) == (text == "training: U2OS")  # papermill's -p passes words as text


def test_variables_that_are_no_parameters_of_a_notebook_are_its_own_business() -> None:
    namespace = variables("compare")
    namespace["split"] = "test"  # a cell below sets it, and the set-up runs once more
    namespace["In"] += ["split = 'test'", "%matplotlib inline\nthis is no Python"]
    parameters.check(namespace)
    forked = variables("1-eda", {"own": 3})
    forked["In"][1] += "\nown: int = 1"
    parameters.check(forked)


def test_a_cell_type_that_the_tables_do_not_have() -> None:
    pandas = pytest.importorskip("pandas")
    sites = pandas.DataFrame({"cell_type": ["RPE", "U2OS"]})
    for wanted, also in (("HUVAC", []), ("all", ["RPE", "HUVAC"])):
        with pytest.raises(InputError, match="^no cell_type 'HUVAC'; choose from RPE, U2OS, or all for one network of all$"):
            of_cell_type(sites, wanted, cell_types=also)
    assert of_cell_type(sites, "all", cell_types=["RPE"])["cell_type"].tolist() == ["RPE"]


def test_papermill_itself_ends_with_the_line(tmp_path: Path) -> None:
    """A misspelt key in a file, which IPython's `In` tells the set-up."""
    (tmp_path / "params.yaml").write_text("run: here\ntrainign: {epochs: 2}\n")
    command = [sys.executable, "-m", "papermill", KERNELS / f"{TRAIN}/{TRAIN}.ipynb", "out.ipynb", "-k", "python3", "-f", "params.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr.strip().splitlines()[-1] == "InputError: parameters: unknown parameter 'trainign'; did you mean 'training'?"
    assert not (tmp_path / "here").exists()

"""Toy notebooks and toy tables: the chain without its learning, in seconds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest

from cellsignal import files
from cellsignal.code_identity import assigned_names
from cellsignal.run.chain import notebooks
from cellsignal.run.recipe import Recipe
from cellsignal.settings import group_of

BOOTSTRAP = """import cellsignal
from cellsignal import files
session = cellsignal.start(globals(), {step!r})
folder = session.folder
recipe = session.recipe"""
WEIGHTS = """for suffix in ("safetensors", "json"):
    files.write_text(folder / f"weights/{{cell_type}}/{name}.{{suffix}}", f"{{recipe.seed}} {{recipe.training.{epochs}}}")"""
TOYS = {  # name: its own parameters, what of the recipe it reads, and its work
    "1-eda": ("", "recipe.wells.cell_types, recipe.wells.experiments", "print('plates')"),
    "2-pretrain-controls": ('cell_type = ""', "recipe.training.pretrain_epochs", WEIGHTS.format(name="pretrain", epochs="pretrain_epochs")),
    "3-train-cell-type": (
        'cell_type = ""\nnetwork_name = "model"', "recipe.machine.num_workers, recipe.training.virtual_batch, recipe.training.epochs",
        WEIGHTS.format(name="{network_name}", epochs="epochs"),
    ),
    "4-predict-assign": (
        'start_from = ""', "recipe.assignment.method, recipe.training.ablate_virtual_batch",
        """if start_from != "scores":
    learnt = sorted((folder / "weights").glob("*/model.safetensors"))
    files.write_text(folder / "scores/model/toy.parquet", "".join(path.read_text() for path in learnt))
files.write_json(folder / "metrics.json", {"ladder": []})
files.write_text(folder / "submission.confidence.csv", "id_code,sirna,confidence\\n")
files.write_text(folder / "submission.sets.parquet", "sets")
files.write_text(folder / "submission.csv", f"id_code,sirna\\n{recipe.assignment.method},0\\n")""",
    ),
}


@pytest.fixture
def write_toy() -> Callable[..., Path]:
    """write_toy(folder, name, body=..., own=..., reads=...) writes a notebook as the chain expects it, and gives its path."""

    def write(folder: Path, name: str, *, body: str | None = None, own: str | None = None, reads: str = "") -> Path:
        mine, known, usual = TOYS[name]
        plain = [f"{key} = {value!r}" for key, value in Recipe().model_dump().items() if not isinstance(value, dict)]
        groups = [f"{key} = {{}}" for key in Recipe.model_fields if group_of(Recipe, key)]
        parameters = "\n".join([*plain, *groups, mine if own is None else own])
        reading = f"print({', '.join(['recipe.seed', *assigned_names(mine if own is None else own), reads or known])})"  # as real ones read all that they name
        cells = [nbformat.v4.new_code_cell(text) for text in (parameters, BOOTSTRAP.format(step=name), reading, body or usual, "session.finish()")]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = folder / name / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write


@pytest.fixture
def kernels(tmp_path: Path, write_toy: Callable[..., Path]) -> Path:
    """A folder with a toy of every notebook."""
    for name in TOYS:
        write_toy(tmp_path / "kernels", name)
    return tmp_path / "kernels"


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in the chain's own process, in milliseconds."""

    def execute(notebook: Path, *, target: Path, parameters: dict[str, Any], **_: Any) -> None:
        variables: dict[str, Any] = {}
        try:
            for cell in notebooks.code_cells(notebook):
                exec(notebooks.source(cell), variables)
                variables.update(parameters if "parameters" in cell["metadata"].get("tags", []) else {})
        except (ArithmeticError, LookupError) as error:
            files.write_text(target, "failed")
            raise notebooks.StepFailed(f"{type(error).__name__}: {error}") from None
        files.write_text(target, "{}")

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "write_page", lambda notebook: files.write_text(notebook.with_suffix(".html"), "page"))


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """Tables of one cell type, without images."""
    folder = tmp_path / "plates"
    folder.mkdir()
    names = ["U2OS-01", "U2OS-02", "U2OS-03"]
    rows = [(name, 1, f"B{column:02d}", column - 2) for name in names for column in (2, 3, 4)]
    wells = pd.DataFrame(rows, columns=["experiment", "plate", "well", "sirna"])
    wells.insert(0, "id_code", [f"{name}_{plate}_{well}" for name, plate, well, _ in rows])
    control = wells["well"] == "B02"
    trained = wells["experiment"] != "U2OS-03"
    control_columns = {"sirna": 1138, "well_type": "negative_control"}
    wells[trained & ~control].to_csv(folder / "train.csv", index=False)
    wells[~trained & ~control].drop(columns="sirna").to_csv(folder / "test.csv", index=False)
    wells[trained & control].assign(**control_columns).to_csv(folder / "train_controls.csv", index=False)
    wells[~trained & control].assign(**control_columns).to_csv(folder / "test_controls.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Toys leave nothing that the real report could draw."""
    from cellsignal.show import report

    monkeypatch.setattr(report, "write_report", lambda run, data: (run / "report.html").write_text("toys"))
    yield

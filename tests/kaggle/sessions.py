"""Sessions that leave what a notebook would, without its work: run folder, outputs, receipt."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_kaggle import FakeKaggle, Outcome, Pushed

from cellsignal import files
from cellsignal.code_identity import assigned_names
from cellsignal.run import parameters
from cellsignal.run.record import step_receipts

PRETRAIN, TRAIN, PREDICT, EDA = "2-pretrain-controls@RPE", "3-train-cell-type@RPE", "4-predict-assign", "1-eda"
LOG = 'Traceback (most recent call last):\n\x1b[0;31mInputError\x1b[0m: no experiment HUVEC-99; choose others\nOther words\n'
MADE = {
    "1-eda": ("eda/wells.png",),
    "2-pretrain-controls": ("weights/{cell_type}/pretrain.safetensors", "weights/{cell_type}/pretrain.json"),
    "3-train-cell-type": ("weights/{cell_type}/{network_name}.safetensors", "weights/{cell_type}/{network_name}.json"),
    "4-predict-assign": ("submission.csv", "submission.confidence.csv", "submission.sets.parquet", "metrics.json"),
    "0-chain": ("submission.csv", "metrics.json", "report.html"),
    "protein-atlas": ("weights/fold-0/model.safetensors", "submission.csv", "metrics.json"),
}


def given(pushed: Pushed) -> dict[str, Any]:
    """The parameters with which a pushed notebook runs: its own, then those that were baked in."""
    values: dict[str, Any] = {}
    for cell in pushed.notebook["cells"]:
        if {"parameters", "injected-parameters"} & set(cell["metadata"].get("tags", [])):
            values |= {name: ast.literal_eval(value) for name, value in assigned_names("".join(cell["source"])).items()}
    return values


def step_of(pushed: Pushed) -> str:
    """The notebook's name, by the words of its slug."""
    return next(step for step in MADE if f"-{step}" in pushed.slug)


def work(pushed: Pushed, kaggle: FakeKaggle, *, complete: bool = True, progress: str = "", **other: Any) -> Outcome:
    """A session that ends well; `other` are parameters that it ran with instead of those it was given."""
    root = kaggle.folder / "sessions" / pushed.slug / str(pushed.version)
    checked = parameters.check({"network_name": "model", **given(pushed), **other})
    values = {**checked.recipe.model_dump(), **checked.notebook_only}
    step = step_of(pushed)
    if step in ("1-eda", "4-predict-assign", "0-chain", "protein-atlas"):
        del values["network_name"]
    run = root / values["run"]
    attached_files = _take_up(pushed, run)
    for name in MADE[step] if complete else ():
        path = run / name.format(**values)
        text = {".json": json.dumps({"ladder": []}), ".csv": "id_code,sirna\nHUVEC-02_1_B02,3\nHUVEC-02_1_B03,4\n"}
        files.write_text(path, text.get(path.suffix, f"{pushed.slug} {name}"))
    files.write_json(run / "run.json", {"run": values["run"]})
    (root / "__results__.html").write_text("a page of Kaggle's own")
    step_receipts.write(run, step, values, complete=complete, progress=progress, seconds=1.5, attached_files=attached_files)
    return Outcome(folder=root)


def _take_up(pushed: Pushed, run: Path) -> dict[str, str]:
    """Copy what the mounted run folders' receipts list."""
    taken: dict[str, str] = {}
    for mount in filter(None, pushed.mounts["notebooks"].values()):
        source = mount / run.relative_to(run.parents[1])
        for each in step_receipts.read_all(source):
            places = [*each.outputs, f"receipts/{each.identity['step']}.json"]
            for name in places:
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / name, run / name)
                taken[name] = files.sha256(run / name)
    return taken


def failing(status: str = "ERROR", *, said: str = LOG) -> Outcome:
    """A session that ends badly, with the log of a notebook whose input was at fault."""
    log = json.dumps([{"stream_name": "stderr", "time": 1.0, "data": line} for line in said.splitlines(keepends=True)])
    return Outcome(status, log=log, failure="Notebook Threw Exception" if status == "ERROR" else "")


def in_turn(kaggle: FakeKaggle, *turns: Callable[[Pushed], Outcome]) -> Callable[[Pushed], Outcome]:
    """A runner whose first sessions go as `turns` say, and all others well."""
    left = list(turns)
    return lambda pushed: left.pop(0)(pushed) if left else work(pushed, kaggle)


def out_of_time(server: FakeKaggle, progress: str) -> Callable[[Pushed], Outcome]:
    """Sessions that end unfinished, so far on."""
    return lambda pushed: work(pushed, server, complete=False, progress=progress)


def expected(pushed: Pushed) -> list[str]:
    """The steps whose earlier session a notebook asks for."""
    cells = ["".join(cell["source"]) for cell in pushed.notebook["cells"] if "expects-earlier" in cell["metadata"].get("tags", [])]
    return [cell.split("expect_earlier('")[1].split("'")[0] for cell in cells]


def pushes(server: FakeKaggle) -> list[str]:
    """The slugs of all pushes that Kaggle took, in order, without what all have in common."""
    return [body["slug"].removeprefix("alice/cellsignal-tiny-") for body in server.sent("SaveKernel")]

"""The benchmark of this machine, as a command and for its notebook: measures in a temporary folder, and writes benchmark.json."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from cellsignal import files, settings
from cellsignal.bench.report import report
from cellsignal.bench.suite import Benchmark
from cellsignal.data import simulated
from cellsignal.run import environment, mounts
from cellsignal.run import recipe as recipes

COST_PARAMETERS = (
    "training.pretrain_epochs", "training.head_epochs", "training.epochs", "training.final_epochs", "training.ablate_virtual_batch",
    "training.pseudo_label_epochs", "training.pseudo_label_share", "training.pseudo_label_increment", "wells.classes", "network.ensemble",
    "augmentation.progressive_sizes", "prediction.statistics", "prediction.num_batch_sizes", "prediction.tta_views",
)  # fmt: skip
BRODT_PARAMETERS = {  # of papermill_params/brodt.yaml, which an installed package does not have; a test compares the two
    "training.pretrain_epochs": 100, "training.head_epochs": 5, "training.epochs": 375, "training.final_epochs": 25,
    "prediction.statistics": "adapted", "prediction.num_batch_sizes": 97,
}  # fmt: skip


def run_benchmark(out: Path, *, recipe: Path | None = None, **options: Any) -> str:
    """Measure this machine and write the result to `out`; returns its ratios as text. `options`: those of `Benchmark`."""
    parameters, name = cost_parameters(recipe)
    disk = None if files.is_stream(out) else out.absolute().parent  # the disk that is measured is the one that will be used
    if disk:
        disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cellsignal-benchmark-", dir=disk) as folder:
        bench = Benchmark(Path(folder), **options)
        bench.everything()
        content = report(bench, platform=environment.platform(), recipe=parameters, recipe_name=name)
    files.write_json(out, content)
    return format_ratios(content)


def begin(run: Path, *, data: str = "", **options: Any) -> Benchmark:
    """For the notebook: a benchmark in a temporary folder of the run, which `finish` removes.

    `data`: a folder; empty means the attached data set, or else simulated sites.
    """
    attached = mounts.data_sets()[:1]
    root = environment.data_folder(data) if data else attached[0] if attached else None
    shutil.rmtree(_work_folder(run), ignore_errors=True)
    simulated.show(root is None or simulated.is_simulated(root))
    return Benchmark(_work_folder(run), data=root, **options)


def finish(run: Path, bench: Benchmark) -> dict[str, Any]:
    """Compute the cost of Brodt's recipe, write benchmark.json, and return its content."""
    content = report(bench, platform=environment.platform(), recipe=BRODT_PARAMETERS, recipe_name="brodt")
    files.write_json(run / "benchmark.json", content)
    shutil.rmtree(_work_folder(run), ignore_errors=True)
    return content


def _work_folder(run: Path) -> Path:
    return environment.scratch_folder(run) / "benchmark"


def cost_parameters(recipe: Path | None) -> tuple[dict[str, Any], str]:
    """The parameters of a recipe that determine its cost, and its name; Brodt's recipe by default. Raises InputError."""
    if recipe is None:
        return BRODT_PARAMETERS, "brodt"
    values = settings.flatten(recipes.load(recipe).model_dump())
    return {name: values[name] for name in COST_PARAMETERS}, recipe.stem


def format_ratios(content: dict[str, Any]) -> str:
    """The ratios of a benchmark, one per line, with the promised ones."""
    promises = [f" (at least {row['promised']:.3g})" if row["promised"] else "" for row in content["ratios"]]
    lines = [f"{row['stage']:10} {row['ratio']:8,.1f} times {row['peer']}" for row in content["ratios"]]
    return "\n".join(map("".join, zip(lines, promises, strict=True)))

"""The benchmark as a command: measures in a folder that it removes again, and writes one file."""

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

COSTS = (
    "training.pretrain_epochs", "training.head_epochs", "training.epochs", "training.final_epochs", "training.ablate_virtual_batch",
    "training.pseudo_label_epochs", "training.pseudo_label_share", "training.pseudo_label_step", "wells.classes", "network.ensemble",
    "augmentation.progressive_sizes", "prediction.statistics", "prediction.num_batch_sizes", "prediction.tta_views",
)  # fmt: skip
BRODT = {  # of papermill_params/brodt.yaml, which is not everywhere where this package is; a test keeps the two equal
    "training.pretrain_epochs": 100, "training.head_epochs": 5, "training.epochs": 375, "training.final_epochs": 25,
    "prediction.statistics": "adapted", "prediction.num_batch_sizes": 97,
}  # fmt: skip


def run_benchmark(out: Path, *, recipe: Path | None = None, **options: Any) -> str:
    """Measure this machine and write benchmark.json to `out`; the ratios in words. `options`: those of `Benchmark`."""
    chosen, name = costs_of(recipe)
    disk = None if files.is_stream(out) else out.absolute().parent  # the one that is asked about is the one that will be used
    if disk:
        disk.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cellsignal-benchmark-", dir=disk) as folder:
        bench = Benchmark(Path(folder), **options)
        bench.everything()
        found = report(bench, place=environment.platform(), recipe=chosen, recipe_name=name)
    files.write_json(out, found)
    return in_words(found)


def begin(run: Path, *, data: str = "", **options: Any) -> Benchmark:
    """For the notebook: a bench in a scratch folder of the run, which `finish` removes.

    `data`: a folder; empty means the data set that is attached, and where there is none drawn sites.
    """
    attached = mounts.data_sets()[:1]
    root = environment.data_folder(data) if data else attached[0] if attached else None
    shutil.rmtree(_scratch(run), ignore_errors=True)
    simulated.show(root is None or simulated.is_simulated(root))
    return Benchmark(_scratch(run), data=root, **options)


def finish(run: Path, bench: Benchmark) -> dict[str, Any]:
    """Work out Brodt's cost, write benchmark.json, and give its content."""
    found = report(bench, place=environment.platform(), recipe=BRODT, recipe_name="brodt")
    files.write_json(run / "benchmark.json", found)
    shutil.rmtree(_scratch(run), ignore_errors=True)
    return found


def _scratch(run: Path) -> Path:
    return environment.scratch_folder(run) / "benchmark"


def costs_of(recipe: Path | None) -> tuple[dict[str, Any], str]:
    """The parameters of a recipe that cost time, and its name; Brodt's without one. Raises InputError."""
    if recipe is None:
        return BRODT, "brodt"
    values = settings.flatten(recipes.load(recipe).model_dump())
    return {name: values[name] for name in COSTS}, recipe.stem


def in_words(found: dict[str, Any]) -> str:
    """The ratios of a benchmark, one a line, with what was promised."""
    promises = [f" (at least {row['promised']:.3g})" if row["promised"] else "" for row in found["ratios"]]
    lines = [f"{row['stage']:10} {row['ratio']:8,.1f} times {row['peer']}" for row in found["ratios"]]
    return "\n".join(map("".join, zip(lines, promises, strict=True)))

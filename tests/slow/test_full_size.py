"""Every full-size recipe, whole and at its own size: backbone, image size, batch and statistics, one epoch a phase, to the submission.

On a handful of drawn wells, in bfloat16. ImageNet weights are those of an untrained network, in files of the right names and shapes.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import save_file

from cellsignal.bench.sample import take_sample
from cellsignal.data.images.reader import channel_path
from cellsignal.data.settings import WellSettings
from cellsignal.data.tables import labelled_sites, wells
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings
from cellsignal.run import recipe as recipes
from cellsignal.run.recipe import Recipe
from cellsignal.settings import flatten, update
from cellsignal.tasks import RXRX1, TASKS
from wilds_plates import write_wilds

RECIPES = Path(__file__).parents[2] / "papermill_params"
MEMORY = 8e9  # bytes that one recipe may take; batches that need more are checkpointed

pytestmark = pytest.mark.slow


def full_size() -> dict[str, Recipe]:
    """The recipes for plates that no preset draws, and the Protein Atlas with the settings for a GPU that its file names."""
    loaded = {path.stem: recipes.load(path) for path in sorted(RECIPES.glob("*.yaml")) if not path.stem.endswith("-small")}
    return {name: _on_a_gpu(name, recipe) for name, recipe in loaded.items() if not recipe.preset or recipe.task == "protein-atlas"}


def _on_a_gpu(name: str, recipe: Recipe) -> Recipe:
    """The recipe with the settings of its last lines, where these are other ones for 512 px."""
    comment = (RECIPES / f"{name}.yaml").read_text().partition("# For 512 px and a GPU")[2]
    groups = re.findall(r"(\w+): (\{.*?\})", comment.replace("\n#", ""))
    return recipes.check(update(recipe.model_dump(), flatten({group: yaml.safe_load(values) for group, values in groups})))


def one_epoch_a_phase(recipe: Recipe) -> dict[str, object]:
    """What a short run changes: the number of epochs, one for each size of images, and of passes of the rung `batch`."""
    training, sizes = recipe.training, max(1, len(recipe.augmentation.progressive_sizes))
    epochs = {"pretrain_epochs": 1, "head_epochs": 1, "epochs": sizes, "final_epochs": 1, "pseudo_label_epochs": 1}
    changes = {f"training.{name}": min(count, getattr(training, name)) for name, count in epochs.items()}
    changes |= {"training.warmup_epochs": min(training.warmup_epochs, sizes), "training.decay_epochs": []}
    return {**changes, "prediction.num_batch_sizes": 1, "machine.precision": "bf16", "machine.device": "cpu", "machine.parallel_notebooks": 1,
            "machine.gradient_checkpointing": recipe.network.backbone != "plain-cnn", "machine.html_pages": False}


# The plates: so few wells that a batch is full, and no more; all show the same few drawn ones.


def draw(recipe: Recipe, folder: Path) -> Path:
    """A data set for a recipe, in the format of its task."""
    if recipe.task == "protein-atlas":
        tables = _atlas_tables(folder / "tables", sites=recipe.training.batch_size * recipe.wells.folds // (recipe.wells.folds - 1))
        stems = labelled_sites.read_site_tables(tables, TASKS[recipe.task]).sites["stem"]
        return _as_drawn(tables, folder, stems, 512, TASKS[recipe.task].suffixes, different=len(stems))  # the same image would never be held out
    tables = _tables(folder / "tables", _experiments(recipe), tests=("HUVEC-03",))
    size = 256 if recipe.task == "rxrx1-wilds" else 128 if "128" in recipe.data else 512
    _as_drawn(tables, folder, wells.read_tables(tables).sites["stem"], size, RXRX1.suffixes)
    if recipe.task == "rxrx1-wilds":
        return write_wilds(tables, folder / "data")
    (tables / "solution.csv").unlink()  # the rung `batch` is computed where answers are known
    return tables


def _experiments(recipe: Recipe) -> dict[str, tuple[int, int]]:
    """By experiment the number of treatments and of controls, one well each and two sites: one plate fills a batch, or all do if they are mixed."""
    treatments, controls, few = recipe.training.batch_size // 2, 4, {"HUVEC-02": (2, 1), "HUVEC-03": (2, 1)}
    if recipe.task == "rxrx1-wilds":  # one site of each well is trained on, and controls are classes like others
        return {"HUVEC-01": (2 * treatments, 1), "RPE-02": (2, 1), "HUVEC-03": (2, 1)}
    learnt_controls = controls * (recipe.wells.classes == "all")
    if recipe.training.batch_scope == "mixed":
        learnt_controls += 3 * (recipe.wells.classes == "all")  # of the other experiments
        treatments -= 2 + (recipe.wells.split == "random")  # those of RPE-01, and of HUVEC-02 but for one that is held out
    if recipe.network.one_network:  # of two cell types; else one, which is enough, has its own
        few["RPE-01"] = (2, 1)
    return {"HUVEC-01": (treatments - learnt_controls, controls), **few}


def _as_drawn(root: Path, folder: Path, stems: Iterable[str], size: int, suffixes: tuple[str, ...], *, different: int = 4) -> Path:
    """Give every site the images of one of so many drawn sites."""
    drawn = take_sample(folder / "drawn", data=None, count=different, image_size=size)
    for number, stem in enumerate(stems):
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        for channel, suffix in enumerate(suffixes, 1):
            os.link(channel_path(drawn.root, drawn.stems[number % different], channel), f"{root / stem}{suffix}")
    return root


def _tables(folder: Path, experiments: dict[str, tuple[int, int]], *, tests: Iterable[str]) -> Path:
    """The competition's tables, by experiment so many treatments and controls on one plate."""
    folder.mkdir(parents=True)
    rows = []
    for experiment, (treatments, controls) in experiments.items():
        for number, sirna in enumerate([*range(treatments), *[1138, *range(1108, 1138)][:controls]]):
            kind = "treatment" if sirna < 1108 else "negative_control" if sirna == 1138 else "positive_control"
            well = f"{'BCDEFGHIJKLMNO'[number // 22]}{2 + number % 22:02}"
            rows.append({"id_code": f"{experiment}_1_{well}", "experiment": experiment, "plate": 1, "well": well, "sirna": sirna, "well_type": kind})
    table, columns = pd.DataFrame(rows), ["id_code", "experiment", "plate", "well", "sirna"]
    for dataset, part in table.groupby(table["experiment"].isin(list(tests)).map({True: "test", False: "train"})):
        treated = part["well_type"] == "treatment"
        part.loc[treated, columns[:4] if dataset == "test" else columns].to_csv(folder / f"{dataset}.csv", index=False)
        part.loc[~treated, [*columns, "well_type"]].to_csv(folder / f"{dataset}_controls.csv", index=False)
        if dataset == "test":
            part.loc[treated, ["id_code"]].assign(sirna=0).to_csv(folder / "sample_submission.csv", index=False)
            part.loc[treated, ["id_code", "sirna"]].to_csv(folder / "solution.csv", index=False)
    return folder


def _atlas_tables(folder: Path, *, sites: int) -> Path:
    """The Protein Atlas' tables with so many labelled sites, of all classes, and four to answer."""
    folder.mkdir(parents=True)
    ids = [f"{number:08x}-0000-0000-0000-000000000000" for number in range(sites + 4)]
    labels = [f"{number % 28} {(number + 9) % 28}" for number in range(sites)]
    pd.DataFrame({"Id": ids[:sites], "Target": labels}).to_csv(folder / "train.csv", index=False)
    pd.DataFrame({"Id": ids[sites:], "Predicted": "0"}).to_csv(folder / "sample_submission.csv", index=False)
    return folder


def stand_in_weights(recipe: Recipe, folder: Path) -> None:
    """ImageNet's weights in the folder where a run looks for them: an untrained network's, of three channels."""
    for backbone in {recipe.network.backbone, *recipe.network.ensemble} if recipe.network.pretrained else ():
        body = Classifier(NetworkSettings(backbone=backbone), channels=3, classes=2).body
        save_file({name: tensor.contiguous() for name, tensor in body.state_dict().items()}, folder / f"{backbone}.safetensors")


@pytest.mark.parametrize("name", full_size())
def test_a_recipe_runs_at_its_own_size(name: str, tmp_path: Path) -> None:
    recipe = full_size()[name]
    data = draw(recipe, tmp_path)
    stand_in_weights(recipe, tmp_path)
    values = update(recipe.model_dump(), {**one_epoch_a_phase(recipe), "data": str(data), "preset": "", "run": str(tmp_path / "run"),
                                         **({"wells": WellSettings().model_dump()} if recipe.wells.experiments else {})})
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-m", "cellsignal.cli.main", "run", f"{name}.yaml", "--out", "run"], cwd=tmp_path,
                             env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, printed[-3000:]
    memory, seconds = 1024 * used.ru_maxrss, used.ru_utime + used.ru_stime
    print(f"\n| `{name}` | {seconds:.0f} | {time.monotonic() - began:.0f} | {memory / 1e9:.1f} GB |")
    submission = pd.read_csv(tmp_path / "run/submission.csv")
    if (sample := data / "sample_submission.csv").is_file():
        assert sorted(submission.iloc[:, 0]) == sorted(pd.read_csv(sample).iloc[:, 0])
    assert len(submission) and submission.iloc[:, 1].notna().all() and TASKS[recipe.task]
    assert memory < MEMORY

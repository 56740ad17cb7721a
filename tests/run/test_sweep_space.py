"""Files of things to try: what they may say, and what is answered to everything else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cellsignal.run.sweep import search_space
from cellsignal.run.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
FAULTS = {
    "- 1": "space.yaml: not a list of `key: value` lines; begin with one of: variants, grid, search",
    "": "space.yaml: not a list of",
    "variants: {a: {}}\ngrid: {training.epochs: [1]}": "space.yaml: holds variants and grid; keep exactly one",
    "measure: raw": "space.yaml: holds neither variants, grid nor search;",
    "variant: {a: {}}": "space.yaml:1: unknown key 'variant'; known keys: variants, grid, search, measure",
    "measure: best\nvariants: {a: {}}": "space.yaml:1: measure is 'best'; write raw or assigned",
    "variants:": "space.yaml:1: nothing to try;",
    "variants: [a, b]": "space.yaml:1: nothing to try;",
    "variants:\n  a: fast": "space.yaml:2: a is 'fast'; write a: {training.epochs: 10}, or a: {}",
    "variants:\n  a: {}\n  a: {}": "space.yaml:3: 'variants.a' stands there twice; keep this or",
    "variants:\n  a/b: {}\n  a b: {}": "space.yaml:3: 'a b' and 'a/b' make the same folder; rename one",
    'variants:\n  a: {}\n  "b\\tc\\e[31m": {}': r"space.yaml:3: the name 'b\tc\x1b[31m' has characters that cannot be shown; rename it",
    "variants:\n  a: {}\n  b:\n    epoch: 3": "space.yaml:4: unknown key 'epoch'; did you mean 'training.epochs'?",
    "variants:\n  a: {training.epochs: many}": "space.yaml:2: training.epochs is 'many'",
    "variants:\n  a: {preset: tiny}": "space.yaml:2: preset is the same for all trials; set it in the recipe",
    "variants:\n  a: {seed: 3}": "space.yaml:2: seed is the same for all trials; set it in the recipe, or use --seeds",
    "variants:\n  a: {recipe: nowhere.yaml}": "space.yaml:2: no recipe nowhere.yaml; put it into",
    "grid: {training.epochs: 3}": "space.yaml:1: training.epochs is 3; write a list of values, such as training.epochs: [1, 2]",
    "grid: {training.epochs: [3, many]}": "space.yaml:1: training.epochs is 'many'",
    "grid: {" + ", ".join(f"{key}: [0.5]" for key in ("dropout", "label_smoothing", "channel_scale", "channel_shift", "prototypes")) + "}": "is longer than 80",
    "search: {epoch: {low: 1, high: 2}}": "space.yaml:1: unknown key 'epoch'",
    "search: {training.epochs: {low: 1.5, high: 3}}": "space.yaml:1: training.epochs is 1.5",
    "variants:\n  a: {}\n  b: {wells.folds: 3}": "space.yaml:3: wells.folds is 3, and no step of the task rxrx1 reads it; leave it out",
    "grid: {prediction.combine: [mean, max]}": "space.yaml:1: prediction.combine is 'max', and no step of the task rxrx1 reads it",
    "search: {wells.folds: {low: 2, high: 9}}": "space.yaml:1: wells.folds is 2, and no step of the task rxrx1 reads it",
    "search: {training.epochs: [1, 2]}": "space.yaml:1: training.epochs is [1, 2]; write {low:",
    "search: {training.learning_rate: {low: 1e-4, high: 1}}": "space.yaml:1: low of training.learning_rate is '1e-4'; write a number, with a dot",
    "search: {training.learning_rate: {low: 0, high: 1.0, log: true}}": "low is below high; a range with log: true is above 0",
    "search: {training.epochs: {low: 5, high: 5}}": "low is below high",
    "search: {training.epochs: {low: 2, high: 8, step: 0.5}}": "write whole numbers for low, high and step",
    "search: {training.optimizer: {choices: [adam, sdg]}}": "space.yaml:1: training.optimizer is 'sdg'",
    "search: {task: {choices: [rxrx1]}}": "task is the same for all trials",
    "search: {seed: {low: 1, high: 5}}": "space.yaml:1: seed is the same for all trials; leave it out of the search",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_faults_are_one_line_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("preset: tiny\n")
    (tmp_path / "space.yaml").write_text(text)
    assert FAULTS[text] in refused("sweep", "base.yaml", "space.yaml", "--out", "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "fault"),
    [(("--seeds", "0,one"), "--seeds: '0,one' is no list of seeds"), (("--seeds", "1,1"), "--seeds: a seed is listed twice"),
     (("--trials", "3"), "space.yaml: --trials is for a search"), (("--jobs", "0"), "--jobs"), (("--out", " "), "--out is empty"),
     (("-p", "epoch=3"), "-p epoch=3: unknown key 'epoch'")],
)  # fmt: skip
def test_faults_of_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str], options: tuple[str, ...], fault: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("preset: tiny\n")
    (tmp_path / "space.yaml").write_text("variants: {a: {}}")
    assert fault in refused("sweep", "base.yaml", "space.yaml", *options)


def test_a_variant_with_its_own_recipe_takes_that_files_values(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("training: {epochs: 5, batch_size: 8}\n")
    (tmp_path / "other.yaml").write_text("training: {batch_size: 32}\n")
    (tmp_path / "space.yaml").write_text("variants:\n  own: {recipe: other.yaml, training: {epochs: 3}}\n  1: {}\n")
    space = search_space.read(tmp_path / "space.yaml", params=tmp_path / "base.yaml")
    own, base = (search_space.values(variant, seed=7, overrides=["machine.num_workers=1", "training.epochs=4"]) for variant in space.variants)
    assert (own["training"]["batch_size"], own["training"]["epochs"], own["machine"]["num_workers"], own["seed"]) == (32, 3, 1, 7)
    assert (base["training"]["batch_size"], base["training"]["epochs"]) == (8, 4)


def test_ranges_are_whole_numbers_where_the_recipe_wants_such(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"search": {
        "training.epochs": {"low": 4, "high": 12, "step": 4}, "network.dropout": {"low": 0, "high": 0.9}, "augmentation.progressive_sizes": {"choices": [[], [32, 64]]}}}, sort_keys=False))
    space = search_space.read(tmp_path / "space.yaml", params=tmp_path / "base.yaml")
    epochs, dropout, sizes = search_space.ranges(space, base=Recipe().model_dump())
    optuna = pytest.importorskip("optuna")
    trials = [optuna.trial.FixedTrial({"training.epochs": 8, "network.dropout": 0.25, "augmentation.progressive_sizes": "[32, 64]"})]
    assert [(epochs.suggest(trial), dropout.suggest(trial), sizes.suggest(trial)) for trial in trials] == [(8, 0.25, [32, 64])]
    assert (epochs.step, type(dropout.low)) == (4, float)


@pytest.mark.parametrize("path", sorted((ROOT / "papermill_params/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_that_comes_with_the_recipes_is_sound(path: Path) -> None:
    """Its first lines say the command."""
    command = next(line for line in path.read_text().splitlines() if "cellsignal sweep" in line).lstrip("# ").split()
    space = search_space.read(path, params=ROOT / command[2])
    assert ROOT / command[3] == path
    if space.kind == "search":
        assert search_space.ranges(space, base=Recipe().model_dump())
    for variant in space.variants:
        assert search_space.values(variant, seed=0, lines=space.lines())["preset"]

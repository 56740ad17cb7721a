"""Made-up run folders: answers of a known quality on plates of a known design, without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file

from cellsignal.decide.evaluate.answers import write_known_answers
from cellsignal.decide.evaluate.ladder import accuracy
from cellsignal.files import write_json
from cellsignal.receipts import Receipt
from cellsignal.run.chain import steps
from cellsignal.run.recipe import Recipe
from cellsignal.settings import keys, nest

DESIGN = {"HUVEC": 3, "RPE": 2}  # test experiments


def wells(*, siRNAs: int = 24, design: Mapping[str, int] = DESIGN, split: str = "test", seed: int = 0) -> pd.DataFrame:
    """One row a well of every siRNA in every experiment, four plates, siRNA i in plate group i % 4."""
    rng = np.random.default_rng(seed)
    rows = []
    for cell_type, count in design.items():
        for number in range(1, count + 1):
            name = f"{cell_type}-{number + 20 * (split == 'test'):02d}"
            for place, sirna in enumerate(rng.permutation(siRNAs)):
                rows.append((f"{name}_{sirna % 4 + 1}_B{place:04d}", split, cell_type, name, sirna))
    return pd.DataFrame(rows, columns=["id_code", "split", "cell_type", "experiment", "sirna"])


def answers(table: pd.DataFrame, share: float, *, seed: int, siRNAs: int = 24) -> pd.Series:
    """siRNAs of which about `share` are right, experiments better and worse; half of the wrong ones the neighbour in the group."""
    rng = np.random.default_rng(seed)
    shift = dict(zip(table["experiment"].unique(), rng.normal(0, 0.05, table["experiment"].nunique())))
    right = rng.random(len(table)) < share + table["experiment"].map(shift).to_numpy()
    neighbour = (table["sirna"] + 4) % siRNAs
    wrong = np.where(rng.random(len(table)) < 0.5, neighbour, rng.integers(siRNAs, size=len(table)))
    return pd.Series(np.where(right, table["sirna"], wrong), index=table.index, dtype="Int64")


def write_run(folder: Path, *, raw: float, assigned: float, tables: Sequence[pd.DataFrame], seed: int = 0, siRNAs: int = 24,
              data: str = "one", **parameters: object) -> Path:
    """A finished run folder with answers for the wells of `tables`, a recipe, seconds and weights."""
    names = {key.rpartition(".")[2]: key for key in keys(Recipe)}
    dotted = {names.get(name, name): value for name, value in parameters.items()}
    table = pd.concat(tables, ignore_index=True)
    given = {"running raw": 0.05, "adapted raw": raw, "groups+expected assigned": assigned}
    noise = 100 * seed + int(1000 * raw)
    told = table.assign(**{name: answers(table, share, seed=noise + place, siRNAs=siRNAs) for place, (name, share) in enumerate(given.items())})
    write_known_answers(folder / "answers.csv", told)
    indexed = told.set_index("id_code")
    ladder = [{"rung": name.rpartition(" ")[0], "kind": name.rpartition(" ")[2], "split": split,
               **accuracy(mine[name], mine["sirna"], mine.reset_index())}
              for split, mine in indexed.groupby("split") for name in given]  # fmt: skip
    groups = [list(range(first, siRNAs, 4)) for first in range(4)]
    write_json(folder / "metrics.json", {"ladder": ladder, "plate_groups": groups, "data": data})
    write_json(folder / "recipe.json", {"parameters": nest({"seed": seed, "run": str(folder), "machine.num_processes": 2, **dotted})})
    write_json(folder / "seconds.json", {"2-pretrain-controls@RPE": 40.0, "3-train-cell-type@RPE": 80.0, "4-predict-assign": 30.0})
    write_json(folder / "run.json", {"run": folder.name})
    Receipt(folder / "scores/model/adapted/metadata.json", details={"experiments": {}, "device": "cpu"}).write()
    place = folder / "weights/RPE/model.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file({"body.weight": torch.zeros(10, 100), "body.running_mean": torch.zeros(10)}, place)
    vouch(folder)
    return folder


def vouch(folder: Path) -> None:
    """Have the receipts of a run vouch for its files as they are."""
    step = steps.Step("4-predict-assign", outputs=("answers.csv", "metrics.json"), extras=("scores/**/*", "weights/**/*"))
    for each in (step, steps.record_step()):
        steps.write_receipt(folder, each, identity={}, seconds=1.0)

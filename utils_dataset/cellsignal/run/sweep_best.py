"""The best of a sweep as a recipe of its own, which says where it comes from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cellsignal import files
from cellsignal.run import recipe

if TYPE_CHECKING:
    import pandas as pd


def best(variants: "pd.DataFrame", *, measure: str, seeds: int) -> "pd.Series | None":
    """The variant that did best on what was held out, never on the test: by its mean over all seeds of `measure`.

    Among equals the other kind decides. None when no variant finished with every seed.
    """
    if variants.empty:
        return None
    whole = variants[(variants["seeds"] == seeds) & variants[f"held_out_{measure}_mean"].notna()]
    if whole.empty:
        return None
    others = [name for name in variants if name.startswith("held_out_") and name.endswith("_mean")]
    order = list(dict.fromkeys([f"held_out_{measure}_mean", *others]))
    return whole.sort_values(order, ascending=False, kind="stable").iloc[0]


def write_best(
    path: Path, chosen: "pd.Series", *, metric: str, measure: str, params: Path, changes: Mapping[str, Any], overrides: Sequence[str], seeds: Sequence[int]
) -> None:
    """Write the parameters of the variant `chosen`: those of the file `params`, the overrides, and what the variant changes."""
    values, _ = recipe.read(params, overrides)
    values = {key: value for key, value in {**values, **changes}.items() if key != "run"}
    value = f"{chosen[f'held_out_{measure}_mean']:.4f}"
    spread = f" ± {chosen[f'held_out_{measure}_std']:.4f}" if len(seeds) > 1 else ""
    over = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    told = " ".join([*overrides, *(f"{key}={value}" for key, value in changes.items())])
    head = [
        f"Written by `cellsignal sweep`: the best of its variants on what was held out, {chosen['variant']}.",
        f"It is {params}{f' with {told}' if told else ''}.",
        f"There it has {metric}: {value}{spread} ({over}). By this it was chosen: expect a little less elsewhere.",
    ]
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, default_flow_style=None)
    files.write_text(path, "".join(f"# {' '.join(line.split())}\n" for line in head) + text)

"""What trials came to: one row a trial, one row a variant, and the differences from the first variant."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cellsignal import files, settings, shapes
from cellsignal.errors import InputError
from cellsignal.run import recipe
from cellsignal.run.record.weight_files import count_weights

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("held_out", "test")
MEASURED = tuple(f"{split}_" for split in SPLITS)  # so begin the names of measures; `held_out` alone is a parameter
KINDS = {"accuracy": ("raw", "assigned"), "macro_f1": ("half", "thresholds")}  # by metric: the networks' answers, and the decided ones
METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # in words
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")  # how cells begin that spreadsheets calculate
BEFORE, AFTER = ["variant", "seed"], ["seconds", "weights", "code", "error"]  # in a row, what was searched and what was measured
NETWORK = re.compile(r"model(-\d+)?")  # the names of what predicts; a further phase of it has as many weights
SHORT = 12  # characters of a digest of code


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run came to: its metric by split and kind, seconds of all its steps but the plates, learnt weights, code.

    Of a ladder's rungs the last one of each split and kind counts, which has all that the run knows; of several kinds of
    thresholds 0.5 and those that the run chose. Raises InputError for a damaged run.
    """
    try:
        metrics, seconds = files.read_json(run / "metrics.json", shapes.Metrics), files.read_json(run / "seconds.json", shapes.Seconds)
        measured = _of_labels(metrics) if "rungs" in metrics else _of_ladder(metrics)
        spent = sum(value for name, value in seconds.items() if name != "simulate")
        code = files.read_json(run / "recipe.json", shapes.Description)["code"]
    except KeyError as error:
        raise InputError(f"not a finished run ({type(error).__name__}: {error})", where=run, cure="delete it and run it again") from None
    return {**measured, "seconds": round(spent, 1), "weights": weights(run), "code": code[:SHORT]}


def _of_ladder(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{row['split']}_{row['kind']}": float(row["accuracy"]) for row in metrics["ladder"]}


def _of_labels(metrics: Mapping[str, Any]) -> dict[str, float]:
    rows = [row for row in metrics["rungs"] if "method" in row]
    half = {f"{row['split']}_half": float(row["macro_f1"]) for row in rows if row["method"] == "half"}
    return half | {f"{row['split']}_thresholds": float(row["macro_f1"]) for row in rows if row["method"] == metrics["thresholds"]}


def weights(run: Path) -> int:
    """How many learnt numbers the networks have that predict: `model` of each cell type and, in ensembles, those beside it."""
    return sum(count_weights(path) for path in (run / "weights").glob("*/*.safetensors") if NETWORK.fullmatch(path.stem))


def trials_table(records: Sequence[Mapping[str, Any]], *, keys: Sequence[str] = (), kinds: Sequence[str] = KINDS["accuracy"]) -> "pd.DataFrame":
    """One row a trial that has ended, in the order of `records`, with what it set `keys` to, and `kinds` of its metric."""
    import pandas as pd

    columns = [*BEFORE, *keys, "status", *(f"{split}_{kind}" for split in SPLITS for kind in kinds), *AFTER]
    return pd.DataFrame([{**record, **{key: record["changes"].get(key) for key in keys}} for record in records], columns=columns)


def variants_table(trials: "pd.DataFrame", *, order: Sequence[str], keys: Sequence[str] = ()) -> "pd.DataFrame":
    """One row a variant, of its finished trials.

    `seeds` that finished, `failed`, what it set `keys` to; of each measure `_mean`, `_std` over the seeds, `_difference` from the first
    of `order` over the seeds that both finished, and `_error`, the standard error of that (blank for one seed).
    """
    import pandas as pd

    measures = [name for name in trials if name.startswith(MEASURED)]
    whole = trials[trials["status"] == "done"]
    first = whole[whole["variant"] == order[0]].set_index("seed") if order else whole
    rows = []
    for name in order:
        its, tried = whole[whole["variant"] == name].set_index("seed"), trials[trials["variant"] == name]
        row = {"variant": name, "seeds": len(its), "failed": int((tried["status"] == "failed").sum())}
        row |= {key: tried[key].iloc[0] if len(tried) else None for key in keys}
        for measure in measures:
            row |= _measured(its[measure], first[measure], name=measure)
        rows.append({**row, "seconds": its["seconds"].mean(), "weights": its["weights"].max()})
    return pd.DataFrame(rows)


def _measured(its: "pd.Series", first: "pd.Series", *, name: str) -> dict[str, float]:
    its, first = its.astype(float), first.astype(float)
    difference = (its - first).dropna()
    return {f"{name}_mean": its.mean(), f"{name}_std": its.std(), f"{name}_difference": difference.mean(), f"{name}_error": difference.sem()}


def as_csv(table: "pd.DataFrame") -> str:
    """A table for people, with an apostrophe before each text that a spreadsheet would take for a formula (OWASP, CSV injection)."""
    texts = table.select_dtypes(exclude="number")
    return table.assign(**{name: texts[name].map(_no_formula) for name in texts}).to_csv(index=False)


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def as_markdown(variants: "pd.DataFrame", *, keys: Sequence[str] = (), differences: bool = True) -> str:
    """The table of variants as Markdown: mean ± standard deviation over seeds.

    With `differences` that from the first variant ± its standard error stands beside each.
    """
    measures = [name.removesuffix("_mean") for name in variants if name.startswith(MEASURED) and name.endswith("_mean")]
    heads = [(", ".join(_split_and_kind(name)), *["− first"] * differences) for name in measures]
    titles = ["variant", *keys, "seeds", *(title for head in heads for title in head), "seconds", "weights"]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for place, row in enumerate(variants.to_dict("records")):
        cells = [cell for name in measures for cell in _cells(row, name, first=place == 0)[: 1 + differences]]
        costs = _number(row["seconds"], ".0f"), _number(row["weights"], ",.0f")
        lines.append([_text(row["variant"]), *(_text(row[key]) for key in keys), str(row["seeds"]), *cells, *costs])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code_note(trials: "pd.DataFrame") -> str:
    """What must be said beside a table whose trials were run by different code; nothing where they were not."""
    versions = trials["code"].dropna().unique()
    return f"\nThe code changed on the way: {len(versions)} versions ran these trials (column `code` of results.csv).\n" if len(versions) > 1 else ""


def _split_and_kind(measure: str) -> tuple[str, str]:
    split = next(split for split in SPLITS if measure.startswith(split))
    return split.replace("_", " "), measure.removeprefix(f"{split}_")


def _cells(row: Mapping[str, Any], name: str, *, first: bool) -> tuple[str, str]:
    mean, std = _number(row[f"{name}_mean"], ".3f"), _number(row[f"{name}_std"], ".3f")
    difference, error = _number(row[f"{name}_difference"], "+.3f"), _number(row[f"{name}_error"], ".3f")
    return f"{mean} ± {std}" if std else mean, "" if first else f"{difference} ± {error}" if error else difference


def _number(value: Any, form: str) -> str:
    """A number as text; nothing for one that is not there."""
    return "" if value is None or value != value else format(value, form)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).split()).replace("|", "\\|")


# The best of a sweep as a recipe of its own, which says where it comes from.


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
    values = {key: value for key, value in settings.changed(values, changes).items() if key != "run"}
    value = f"{chosen[f'held_out_{measure}_mean']:.4f}"
    spread = f" ± {chosen[f'held_out_{measure}_std']:.4f}" if len(seeds) > 1 else ""
    over = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    told = " ".join([*overrides, *(f"{key}={value}" for key, value in changes.items())])
    head = [
        f"Written by `cellsignal sweep`: the best of its variants on what was held out, {chosen['variant']}.",
        f"It is {params}{f' with {told}' if told else ''}.",
        f"There it has {metric}: {value}{spread} ({over}). By this it was chosen: expect a little less elsewhere.",
    ]
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    files.write_text(path, "".join(f"# {' '.join(line.split())}\n" for line in head) + text)

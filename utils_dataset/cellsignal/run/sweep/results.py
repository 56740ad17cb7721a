"""The tables of a sweep: one row per trial, one row per variant, and the differences from the first variant."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cellsignal import files, json_schemas, settings
from cellsignal.data import simulated
from cellsignal.errors import InputError
from cellsignal.run import recipe
from cellsignal.run.record.results import count_weights

SPLITS = ("held_out", "test")
MEASURE_PREFIXES = tuple(f"{split}_" for split in SPLITS)  # of the names of measures; `held_out` alone is a parameter
RUNG_KINDS = {"accuracy": ("raw", "assigned"), "macro_f1": ("half", "thresholds"), "split_accuracy": ("raw",)}  # by metric: of the networks' answers, and of the decided ones
METRICS = {"accuracy": "accuracy", "macro_f1": "macro F1", "split_accuracy": "accuracy of sites"}  # in words
MARKUP = re.compile(r"[\\`*$|<>~\[\]]|(?<![^\W_])_|_(?![^\W_])")  # what Markdown would not show as it is in a name
FIRST_COLUMNS, LAST_COLUMNS = ["variant", "seed"], ["seconds", "weights", "code", "error"]
NETWORK_NAME = re.compile(r"model(-\d+)?")  # of the networks that predict; their further phases have as many weights
CODE_CHARACTERS = 12  # of the digest of the code


def outcome(run: Path) -> dict[str, Any]:
    """The results of a finished run: its metric by split and kind, seconds of all steps but the plates, number of weights, code.

    Of a ladder the last rung of each split and kind counts, which uses everything; of the kinds of thresholds 0.5 and the one
    that the run chose. Raises InputError for a damaged run.
    """
    try:
        metrics, seconds = files.read_json(run / "metrics.json", json_schemas.Metrics), files.read_json(run / "seconds.json", json_schemas.Seconds)
        scores = _label_scores(metrics) if "rungs" in metrics else _split_scores(metrics) if "splits" in metrics else _ladder_scores(metrics)
        total_seconds = sum(value for name, value in seconds.items() if name != "plates")
        code = files.read_json(run / "recipe.json", json_schemas.Description)["code"]
    except KeyError as error:
        raise InputError(f"not a finished run ({type(error).__name__}: {error})", where=run, cure="delete it and run it again") from None
    return {**scores, "seconds": round(total_seconds, 1), "weights": num_weights(run), "code": code[:CODE_CHARACTERS]}


def _ladder_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{row['split']}_{row['kind']}": float(row["accuracy"]) for row in metrics["ladder"]}


def _split_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of a benchmark, whose validation split is held out."""
    return {{"val": "held_out_raw"}.get(row["split"], f"{row['split']}_raw"): float(row["accuracy"]) for row in metrics["splits"]}


def _label_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    rows = [row for row in metrics["rungs"] if "method" in row]
    half = {f"{row['split']}_half": float(row["macro_f1"]) for row in rows if row["method"] == "half"}
    return half | {f"{row['split']}_thresholds": float(row["macro_f1"]) for row in rows if row["method"] == metrics["thresholds"]}


def num_weights(run: Path) -> int:
    """The learnt numbers of the networks that predict: `model` of each cell type, and the other members of an ensemble."""
    return sum(count_weights(path) for path in (run / "weights").glob("*/*.safetensors") if NETWORK_NAME.fullmatch(path.stem))


def trials_table(records: Sequence[Mapping[str, Any]], *, keys: Sequence[str] = (), kinds: Sequence[str] = RUNG_KINDS["accuracy"]) -> pd.DataFrame:
    """One row per trial that has ended, in the order of `records`, with its values of `keys` and the `kinds` of its metric."""
    columns = [*FIRST_COLUMNS, *keys, "status", *(f"{split}_{kind}" for split in SPLITS for kind in kinds), *LAST_COLUMNS]
    return pd.DataFrame([{**record, **{key: record["changes"].get(key) for key in keys}} for record in records], columns=columns)


def variants_table(trials: pd.DataFrame, *, order: Sequence[str], keys: Sequence[str] = ()) -> pd.DataFrame:
    """One row per variant, of its finished trials.

    Columns: `seeds`, the number of finished ones; `failed`; its values of `keys`; of each measure `_mean` and `_std` over the seeds,
    `_difference` from the first of `order` over the seeds that both finished, and its standard error `_error` (missing for one seed).
    """
    measures = [name for name in trials if name.startswith(MEASURE_PREFIXES)]
    done = trials[trials["status"] == "done"]
    first = done[done["variant"] == order[0]].set_index("seed") if order else done
    rows = []
    for name in order:
        finished, ended = done[done["variant"] == name].set_index("seed"), trials[trials["variant"] == name]
        row = {"variant": name, "seeds": len(finished), "failed": int((ended["status"] == "failed").sum())}
        row |= {key: ended[key].iloc[0] if len(ended) else None for key in keys}
        for measure in measures:
            row |= _statistics(finished[measure], first[measure], name=measure)
        rows.append({**row, "seconds": finished["seconds"].mean(), "weights": finished["weights"].max()})
    return pd.DataFrame(rows)


def _statistics(scores: pd.Series, first: pd.Series, *, name: str) -> dict[str, float]:
    scores, first = scores.astype(float), first.astype(float)
    difference = (scores - first).dropna()
    return {f"{name}_mean": scores.mean(), f"{name}_std": scores.std(), f"{name}_difference": difference.mean(), f"{name}_error": difference.sem()}


def as_markdown(variants: pd.DataFrame, *, keys: Sequence[str] = (), differences: bool = True) -> str:
    """The table of variants as Markdown: mean ± standard deviation over seeds.

    With `differences` the difference from the first variant ± its standard error is beside each.
    """
    measures = [name.removesuffix("_mean") for name in variants if name.startswith(MEASURE_PREFIXES) and name.endswith("_mean")]
    heads = [(", ".join(_split_and_kind(name)), *["− first"] * differences) for name in measures]
    titles = ["variant", *keys, "seeds", *(title for head in heads for title in head), "seconds", "weights"]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for number, row in enumerate(variants.to_dict("records")):
        cells = [cell for name in measures for cell in _cells(row, name, first=number == 0)[: 1 + differences]]
        costs = _number(row["seconds"], ".0f"), _number(row["weights"], ",.0f")
        lines.append([_text(row["variant"]), *(_text(row[key]) for key in keys), str(row["seeds"]), *cells, *costs])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def notes(trials: pd.DataFrame) -> str:
    """Lines below a table whose trials have simulated plates, or were run by different code; empty where neither is so."""
    versions = trials["code"].dropna().unique()
    lines = ["Simulated data: a virtual microscope drew every image."] * simulated.shown()
    lines += [f"The code changed on the way: {len(versions)} versions ran these trials (column `code` of results.csv)."] * (len(versions) > 1)
    return "".join(f"\n{line}\n" for line in lines)


def _split_and_kind(measure: str) -> tuple[str, str]:
    split = next(split for split in SPLITS if measure.startswith(split))
    return split.replace("_", " "), measure.removeprefix(f"{split}_")


def _cells(row: Mapping[str, Any], name: str, *, first: bool) -> tuple[str, str]:
    mean, std = _number(row[f"{name}_mean"], ".3f"), _number(row[f"{name}_std"], ".3f")
    difference, error = _number(row[f"{name}_difference"], "+.3f"), _number(row[f"{name}_error"], ".3f")
    return f"{mean} ± {std}" if std else mean, "" if first else f"{difference} ± {error}" if error else difference


def _number(value: Any, form: str) -> str:
    """A number as text; empty for a missing one."""
    return "" if value is None or value != value else format(value, form)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else MARKUP.sub(r"\\\g<0>", " ".join(str(value).split()))


# The best variant of a sweep as a recipe, whose first lines say where it comes from.


def best_variant(variants: pd.DataFrame, *, measure: str, seeds: int) -> pd.Series | None:
    """The variant with the best mean over all seeds of `measure` on the held-out wells, never on the test wells.

    Among equals the other kind decides. None when no variant finished with every seed.
    """
    if variants.empty:
        return None
    complete = variants[(variants["seeds"] == seeds) & variants[f"held_out_{measure}_mean"].notna()]
    if complete.empty:
        return None
    others = [name for name in variants if name.startswith("held_out_") and name.endswith("_mean")]
    order = list(dict.fromkeys([f"held_out_{measure}_mean", *others]))
    return complete.sort_values(order, ascending=False, kind="stable").iloc[0]


def write_best(
    path: Path, best: pd.Series, *, metric: str, measure: str, params: Path, changes: Mapping[str, Any], overrides: Sequence[str], seeds: Sequence[int]
) -> None:
    """Write the parameters of the variant `best`: those of the file `params`, the overrides, and what the variant changes."""
    values, _ = recipe.read(params, overrides)
    values = {key: value for key, value in settings.update(values, changes).items() if key != "run"}
    value = f"{best[f'held_out_{measure}_mean']:.4f}"
    spread = f" ± {best[f'held_out_{measure}_std']:.4f}" if len(seeds) > 1 else ""
    over = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    changed = " ".join([*overrides, *(f"{key}={value}" for key, value in changes.items())])
    head = [
        f"Written by `cellsignal sweep`: the best of its variants on what was held out, {best['variant']}.",
        f"It is {params}{f' with {changed}' if changed else ''}.",
        f"There it has {metric}: {value}{spread} ({over}). By this it was chosen: expect a little less elsewhere.",
    ]
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    files.write_text(path, "".join(f"# {' '.join(line.split())}\n" for line in head) + text)

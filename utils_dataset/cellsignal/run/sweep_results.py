"""What trials came to: one row a trial, one row a variant, and the differences from the first variant."""

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellsignal import files
from cellsignal.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SPLITS, KINDS = ("held_out", "test"), ("raw", "assigned")
MEASURES = [f"{split}_{kind}" for split in SPLITS for kind in KINDS]
COLUMNS = ["variant", "seed", "status", *MEASURES, "seconds", "weights", "code", "error"]
PLACE = 2  # in a row, of what was searched
NETWORK = re.compile(r"model(-\d+)?")  # the names of what predicts; a further phase of it has as many weights
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch normalisation: measured, not learnt


def outcome(run: Path) -> dict[str, Any]:
    """What a finished run came to: accuracies by split and kind, seconds of all its steps but the plates, learnt weights, code.

    Of each split and kind the ladder's last rung counts, which has all that the run knows. Raises InputError for a damaged run.
    """
    try:
        ladder, seconds = files.read_json(run / "metrics.json")["ladder"], files.read_json(run / "seconds.json")
        found = {f"{row['split']}_{row['kind']}": float(row["accuracy"]) for row in ladder}
        spent = sum(value for name, value in seconds.items() if name != "simulate")
        code = files.read_json(run / "recipe.json")["code"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a finished run ({type(error).__name__}: {error})", where=run, cure="delete it and run it again") from None
    measured = {name: found.get(name) for name in MEASURES}
    return {**measured, "seconds": round(spent, 1), "weights": weights(run), "code": code[:12]}


def weights(run: Path) -> int:
    """How many learnt numbers the networks have that predict: `model` of each cell type and, in ensembles, those beside it."""
    return sum(_numbers(path) for path in (run / "weights").glob("*/*.safetensors") if NETWORK.fullmatch(path.stem))


def _numbers(path: Path) -> int:
    """The elements of a safetensors file, from its header alone."""
    try:
        with open(path, "rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    except (OSError, ValueError, struct.error):
        return 0
    learnt = [entry for name, entry in header.items() if name != "__metadata__" and not name.endswith(BUFFERS)]
    return sum(_product(entry["shape"]) for entry in learnt)


def _product(shape: Iterable[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def trials_table(records: Sequence[Mapping[str, Any]], *, keys: Sequence[str] = ()) -> "pd.DataFrame":
    """One row a trial that has ended, in the order of `records`, with what it set `keys` to."""
    import pandas as pd

    rows = [{**{name: record.get(name) for name in COLUMNS}, **{key: record["changes"].get(key) for key in keys}} for record in records]
    return pd.DataFrame(rows, columns=[*COLUMNS[:PLACE], *keys, *COLUMNS[PLACE:]])


def variants_table(trials: "pd.DataFrame", *, order: Sequence[str], keys: Sequence[str] = ()) -> "pd.DataFrame":
    """One row a variant, of its finished trials.

    `seeds` that finished, `failed`, what it set `keys` to; of each measure `_mean`, `_std` over the seeds, `_difference` from the first
    of `order` over the seeds that both finished, and `_error`, the standard error of that (blank for one seed).
    """
    import pandas as pd

    whole = trials[trials["status"] == "done"]
    first = whole[whole["variant"] == order[0]].set_index("seed") if order else whole
    rows = []
    for name in order:
        its, tried = whole[whole["variant"] == name].set_index("seed"), trials[trials["variant"] == name]
        row = {"variant": name, "seeds": len(its), "failed": int((tried["status"] == "failed").sum())}
        row |= {key: tried[key].iloc[0] if len(tried) else None for key in keys}
        for measure in MEASURES:
            row |= _measured(its[measure], first[measure], name=measure)
        rows.append({**row, "seconds": its["seconds"].mean(), "weights": its["weights"].max()})
    return pd.DataFrame(rows)


def _measured(its: "pd.Series", first: "pd.Series", *, name: str) -> dict[str, float]:
    its, first = its.astype(float), first.astype(float)
    difference = (its - first).dropna()
    return {f"{name}_mean": its.mean(), f"{name}_std": its.std(), f"{name}_difference": difference.mean(), f"{name}_error": difference.sem()}


def as_markdown(variants: "pd.DataFrame", *, keys: Sequence[str] = (), differences: bool = True) -> str:
    """The table of variants as Markdown: mean ± standard deviation over seeds.

    With `differences` that from the first variant ± its standard error stands beside each.
    """
    measures = [(f"{split.replace('_', ' ')}, {kind}", *["− first"] * differences) for split in SPLITS for kind in KINDS]
    titles = ["variant", *keys, "seeds", *(title for measure in measures for title in measure), "seconds", "weights"]
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1)]
    for place, row in enumerate(variants.to_dict("records")):
        cells = [cell for name in MEASURES for cell in _cells(row, name, first=place == 0)[: 1 + differences]]
        costs = _number(row["seconds"], ".0f"), _number(row["weights"], ",.0f")
        lines.append([_text(row["variant"]), *(_text(row[key]) for key in keys), str(row["seeds"]), *cells, *costs])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Mapping[str, Any], name: str, *, first: bool) -> tuple[str, str]:
    mean, std = _number(row[f"{name}_mean"], ".3f"), _number(row[f"{name}_std"], ".3f")
    difference, error = _number(row[f"{name}_difference"], "+.3f"), _number(row[f"{name}_error"], ".3f")
    return f"{mean} ± {std}" if std else mean, "" if first else f"{difference} ± {error}" if error else difference


def _number(value: Any, form: str) -> str:
    """A number as text; nothing for one that is not there."""
    return "" if value is None or value != value else format(value, form)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")

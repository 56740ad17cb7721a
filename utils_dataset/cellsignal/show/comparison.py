"""The page about several runs, self-contained, and the same in numbers."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from cellsignal import files
from cellsignal.show import compare, page
from cellsignal.show.compare import COLOURS, SPLITS, of

MOST = 60  # pairs of runs on the page; all are in compare.json
Row = Mapping[str, Any]
INTERVALS = (
    "Intervals hold 95 %. The one for wells (Wilson's) takes each well for a witness of its own, which wells of one experiment are not, "
    "least of all once they are assigned. The one for experiments draws experiments and then wells within them (bootstrap): what "
    "to expect on plates that nobody has seen."
)
DIFFERENCES = (
    "Each recipe less the first one, well by well, with the same seed. Where there are several seeds, their standard error tells how "
    "much of a difference is the luck of a seed."
)
TESTS = (
    "McNemar's exact test asks whether the wells that only one of two runs has right are split too unevenly for chance; corrected by Holm "
    "among all pairs of a table. It takes wells for independent, so with assigned answers look at the interval for experiments first."
)
CONFUSED = (
    "siRNAs in the order of their plate groups: what lies in the blocks on the diagonal is confused within a group, where groups "
    "cannot help. All runs of a recipe together."
)


def write_comparison(folder: Path, comparison: Mapping[str, Any], parameters: pd.DataFrame) -> Path:
    """Write `folder`/compare.html and `folder`/compare.json, each atomic.

    `comparison`: what `decide.compare.compare` gives; `parameters`: one row for each that differs, one column a recipe.
    """
    told = {**comparison, "confusions": [{key: row[key] for key in row if key != "matrix"} for row in comparison["confusions"]]}
    files.write_json(folder / "compare.json", told)
    parts = [_head(comparison), _parameters(parameters)]
    for split in _splits(comparison):
        parts += [*_accuracies(comparison, split), *_differences(comparison, split), *_pairs(comparison, split)]
    parts += [*_confusions(comparison), _cost(comparison["runs"])]
    files.write_text(folder / "compare.html", page.page("cellsignal: runs compared", parts))
    return folder / "compare.html"


def _splits(comparison: Mapping[str, Any]) -> list[str]:
    return [split for split in SPLITS if of(comparison["accuracies"], split=split)]


def _head(comparison: Mapping[str, Any]) -> str:
    """The title and the best recipe of each kind."""
    recipes = {row["recipe"] for row in comparison["runs"]}
    boxes = []
    for split in _splits(comparison)[:1]:
        for kind in COLOURS:
            rows = of(comparison["accuracies"], split=split, kind=kind, by="")
            for best in sorted(rows, key=lambda row: -row["accuracy"])[:1]:
                boxes.append(page.number(f"{best['accuracy']:.3f}", f"best {kind} accuracy, {SPLITS[split]}: {best['recipe']}", kind=kind))
    words = f"{len(comparison['runs'])} runs of {len(recipes)} recipes"
    return "<h1>Runs compared</h1>\n" + page.paragraph(words, quiet=True) + (page.numbers(boxes) if boxes else "")


def _accuracies(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    name = SPLITS[split]
    yield page.section(
        f"Accuracy and cost: {name}", page.paragraph(INTERVALS),
        page.image(compare.accuracy_and_cost(comparison, split=split).png(), f"accuracy and cost, {name}"),
        *(_overall(comparison, split=split, kind=kind) for kind in COLOURS))
    yield page.section(
        f"By cell type: {name}", page.image(compare.by_cell_type(comparison, split=split).png(), f"accuracy by cell type, {name}"),
        *(_parts(comparison, split=split, kind=kind, by="cell_type") for kind in COLOURS))
    yield page.section(
        f"By experiment: {name}", page.image(compare.by_experiment(comparison, split=split).png(), f"accuracy by experiment, {name}"),
        *(_parts(comparison, split=split, kind=kind, by="experiment") for kind in COLOURS))
    yield page.section(f"Rung by rung: {name}", *(_rungs(comparison, split=split, kind=kind) for kind in COLOURS))


def _overall(comparison: Mapping[str, Any], *, split: str, kind: str) -> str:
    """One row a recipe: accuracy, its spread and intervals, and beside them what a run cost."""
    rows = of(comparison["accuracies"], split=split, kind=kind, by="")
    cells = [
        [row["recipe"], len(row["runs"]), row["rung"], row["accuracy"], row["std"], _interval(row["wilson"]), _interval(row["interval"]),
         *_costs(of(comparison["runs"], recipe=row["recipe"]))] for row in rows
    ]
    names = ["recipe", "runs", "rung", "accuracy", "std", "wells, 95\u00a0%", "experiments, 95\u00a0%", "training, min", "weights, M"]
    sizes = ", ".join(dict.fromkeys(f"{row['wells']:,} wells of {row['experiments']} experiments" for row in rows))
    table = page.table(names, cells, kinds=["", "", "", kind])
    return _titled(f"{kind.capitalize()} accuracy", page.paragraph(sizes, quiet=True), table) if rows else ""


def _costs(runs: Sequence[Row]) -> list[str]:
    """Mean training minutes and millions of weights, as far as they are known."""
    told = [([row[name] / unit for row in runs if row[name]]) for name, unit in compare.UNITS.items()]
    return [f"{sum(values) / len(values):.3g}" if values else "" for values in told]


def _parts(comparison: Mapping[str, Any], *, split: str, kind: str, by: str) -> str:
    """One row a cell type or experiment, one column a recipe: accuracy and Wilson's interval."""
    rows = of(comparison["accuracies"], split=split, kind=kind, by=by)
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    found = {(row["part"], row["recipe"]): f"{row['accuracy']:.3f} ({_interval(row['wilson'])})" for row in rows}
    cells = [[part, *(found.get((part, recipe), "") for recipe in recipes)] for part in dict.fromkeys(row["part"] for row in rows)]
    table = page.table([by.replace("_", " "), *recipes], cells, kinds=["", *[kind] * len(recipes)])
    return _titled(f"{kind.capitalize()} accuracy (wells, 95 %)", table) if rows else ""


def _rungs(comparison: Mapping[str, Any], *, split: str, kind: str) -> str:
    rows = of(comparison["rungs"], split=split, kind=kind)
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    found = {(row["rung"], row["recipe"]): row["accuracy"] for row in rows}
    cells = [[rung, *(found.get((rung, recipe)) for recipe in recipes)] for rung in dict.fromkeys(row["rung"] for row in rows)]
    table = page.table(["rung", *recipes], cells, kinds=["", *[kind] * len(recipes)])
    return _titled(f"{kind.capitalize()} accuracy", table) if rows else ""


def _differences(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    rows = of(comparison["differences"], split=split)
    if rows:
        figure = compare.differences(comparison, split=split)
        yield page.section(f"Differences between recipes: {SPLITS[split]}", page.paragraph(DIFFERENCES),
                           page.image(figure.png(), f"differences between recipes, {SPLITS[split]}"),
                           *(_difference_table(of(rows, kind=kind), kind=kind) for kind in COLOURS))


def _difference_table(rows: Sequence[Row], *, kind: str) -> str:
    cells = [[row["recipe"], row["from"], row["seeds"], row["mean"], row["standard_error"], _interval(row["of_wells"]),
              _interval(row["of_experiments"])] for row in rows]
    names = ["recipe", "less", "seeds", "difference", "standard error over seeds", "wells, 95\u00a0%", "experiments, 95\u00a0%"]
    return _titled(f"{kind.capitalize()} accuracy", page.table(names, cells, kinds=["", "", "", kind])) if rows else ""


def _pairs(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    """The pairs of one seed, where there are several: they share the luck of what was held out."""
    seeds = {row["name"]: row["seed"] for row in comparison["runs"]}
    rows = of(comparison["pairs"], split=split)
    alike = [row for row in rows if seeds[row["first"]] == seeds[row["second"]]] or rows
    tables = [_pair_table(of(alike, kind=kind), kind=kind) for kind in COLOURS]
    if any(tables):
        left = len(rows) - sum(min(MOST, len(of(alike, kind=kind))) for kind in COLOURS)
        more = [page.paragraph(f"{left} more in compare.json.", quiet=True)] * (left > 0)
        yield page.section(f"Two runs at a time: {SPLITS[split]}", page.paragraph(TESTS), *tables, *more)


def _pair_table(rows: Sequence[Row], *, kind: str) -> str:
    cells = [[row["first"], row["second"], f"{row['only_first']:,}", f"{row['only_second']:,}", row["difference"],
              _interval(row["of_experiments"]), _probability(row["p"]), _probability(row["p_holm"])] for row in rows[:MOST]]
    names = ["first", "second", "first alone right", "second alone right", "difference", "experiments, 95\u00a0%", "p", "p, Holm"]
    wells = ", ".join(dict.fromkeys(f"{row['wells']:,} wells" for row in rows))
    return _titled(f"{kind.capitalize()} answers", page.paragraph(wells, quiet=True), page.table(names, cells)) if rows else ""


def _probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-300 else "< 1e-300"


def _confusions(comparison: Mapping[str, Any]) -> Iterator[str]:
    """What each recipe confuses, of the wells that count most."""
    for split in _splits(comparison)[:1]:
        rows = of(comparison["confusions"], split=split, kind="raw") + of(comparison["confusions"], split=split, kind="assigned")
        parts = [part for row in rows for part in (
            page.image(compare.confusion(row).png(), f"confusion of siRNAs by {row['recipe']}, {row['kind']}"), _groups(row))]
        yield page.section(f"Confusion between siRNAs: {SPLITS[split]}", page.paragraph(CONFUSED), *parts)


def _groups(row: Row) -> str:
    """How often a wrong answer is of another plate group, in words."""
    total, same = sum(map(sum, row["between"])), sum(line[place] for place, line in enumerate(row["between"]))
    if not total or row["over_chance"] is None:
        return ""
    return page.paragraph(f"{row['recipe']}, {row['kind']}: {same:,} of {total:,} wrong answers are of the right plate group, "
                          f"{row['over_chance']:.1f} times as many as by chance.", quiet=True)


def _cost(runs: Sequence[Row]) -> str:
    """What each run took, and on what."""
    minutes = ("training_seconds", "prediction_seconds", "seconds")
    cells = [[row["name"], row["recipe"], row["seed"], *(f"{row[name] / 60:.1f}" if row[name] else "" for name in minutes),
              f"{row['weights']:,}" if row["weights"] else "", row["processes"] or "one per GPU", row["device"] or ""] for row in runs]
    names = ["run", "recipe", "seed", "training, min", "prediction, min", "all steps, min", "weights", "processes", "device"]
    words = "Minutes of the steps one after the other, as the run noted them; steps that ran side by side count each."
    return page.section("Cost", page.paragraph(words, quiet=True), page.table(names, cells))


def _parameters(table: pd.DataFrame) -> str:
    if table.empty:
        return page.section("What differs", page.paragraph("Nothing but the seed.", quiet=True))
    cells = [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist())]
    return page.section("What differs", page.table(["parameter", *table.columns], cells))


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f}\u00a0to\u00a0{ends[1]:.3f}"


def _titled(title: str, *parts: str) -> str:
    return f"<h3>{escape(title)}</h3>\n" + "\n".join(parts)

"""Comparing runs: accuracy with intervals, cost, differences, and confusions between siRNAs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from cellsignal import files
from cellsignal.show import html
from cellsignal.show.style import ASSIGNED, RAW, blank_figure, cell_type_colour, label_decades, new_figure, pale, short_name, styled

COLOURS = {"raw": RAW, "assigned": ASSIGNED}
SPLITS = {"test": "test wells", "held_out": "held-out wells"}
COSTS = {"training_seconds": "Training, minutes", "weights": "Weights, millions"}
UNITS = {"training_seconds": 60, "weights": 1e6}
Row = Mapping[str, Any]


def by_recipe(rows: Sequence[Row], **values: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


@styled
def accuracy_and_cost(comparison: Mapping[str, Any], *, split: str) -> Figure:
    """Accuracy of each recipe, raw and assigned in separate panels, and the cost of a run.

    A dot is the mean over its runs and small dots are these; the broad bar is the interval for new experiments, the
    narrow one that for independent wells (Wilson's).
    """
    rows = by_recipe(comparison["accuracies"], split=split, by="")
    if not rows:
        return blank_figure(f"no answers for {SPLITS[split]}")
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    kinds = [kind for kind in COLOURS if by_recipe(rows, kind=kind)]
    costs = _costs(comparison["runs"], recipes)
    figure = new_figure(4.6 * len(kinds) + 2.3 * len(costs), 1.3 + 0.42 * max(2, len(recipes)))
    widths = [4.6] * len(kinds) + [2.3] * len(costs)
    panels = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axes, kind in zip(panels, kinds):
        recipe_rows = by_recipe(rows, kind=kind)
        _accuracies(axes, [next(iter(by_recipe(recipe_rows, recipe=name)), None) for name in recipes], colour=COLOURS[kind], axis_range=_axis_range(rows))
        axes.set_title(f"{kind.capitalize()} accuracy, {SPLITS[split]}")
    for axes, (name, values) in zip(panels[len(kinds):], costs.items()):
        _bars(axes, values, title=COSTS[name])
    panels[0].set_yticks(range(len(recipes)), [*map(short_name, recipes)])
    panels[0].set_ylim(len(recipes) - 0.4, -0.6)
    return figure


def _axis_range(rows: Sequence[Row]) -> tuple[float, float]:
    """An axis that holds all intervals, in tenths: wide enough to read, the same in all panels."""
    low = min(min(row["interval"][0], row["wilson"][0], *row["runs"].values()) for row in rows)
    high = max(max(row["interval"][1], row["wilson"][1], *row["runs"].values()) for row in rows)
    return max(0.0, np.floor(10 * low - 0.2) / 10), min(1.0, np.ceil(10 * high + 0.2) / 10)


def _accuracies(axes: Axes, rows: Sequence[Row | None], *, colour: str, axis_range: tuple[float, float]) -> None:
    low, high = axis_range
    for y, row in enumerate(rows):
        if row:
            axes.plot(row["interval"], [y, y], color=pale(colour, share=0.3), lw=9, solid_capstyle="butt")
            axes.plot(row["wilson"], [y, y], color=pale(colour, share=0.65), lw=3, solid_capstyle="butt")
            if len(row["runs"]) > 1:
                axes.plot(list(row["runs"].values()), [y + 0.26] * len(row["runs"]), ".", color=colour, ms=5)
            axes.plot(row["accuracy"], y, "o", color=colour, ms=7, mec="white", mew=0.8)
            axes.text(high + 0.16 * (high - low), y, f"{row['accuracy']:.3f}", va="center", ha="right", color=colour)
    axes.set_xlim(low - 0.01 * (high - low), high + 0.17 * (high - low))
    axes.set_xticks([tick for tick in axes.get_xticks() if low - 1e-9 <= tick <= high + 1e-9])
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _costs(runs: Sequence[Row], recipes: Sequence[str]) -> dict[str, list[float | None]]:
    """Mean cost of a run of each recipe, by what is known of any."""
    found = {}
    for name, unit in UNITS.items():
        known = [[row[name] / unit for row in runs if row["recipe"] == recipe and row[name]] for recipe in recipes]
        if any(known):
            found[name] = [float(np.mean(values)) if values else None for values in known]
    return found


def _bars(axes: Axes, values: Sequence[float | None], *, title: str) -> None:
    axes.barh(range(len(values)), [value or 0 for value in values], height=0.5, color="#C9CED4")
    longest = max(value or 0 for value in values)
    for y, value in enumerate(values):
        text = "not known" if value is None else f"{value:.3g}"
        axes.text((value or 0) + 0.03 * longest, y, text, va="center", color="#444444")
    axes.set_xlim(0, 1.35 * longest)
    axes.set_title(title)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


@styled
def by_cell_type(comparison: Mapping[str, Any], *, split: str) -> Figure:
    """The same accuracies by cell type: a row of panels raw, a row assigned, a column a cell type."""
    rows, recipes, parts, kinds = _found(comparison, split=split, by="cell_type")
    if not rows:
        return blank_figure(f"no answers for {SPLITS[split]}")
    figure = new_figure(1.6 + 2.6 * len(parts), len(kinds) * (0.9 + 0.3 * max(2, len(recipes))))
    panels = figure.subplots(len(kinds), len(parts), sharex=True, sharey=True, squeeze=False)
    for line, kind in zip(panels, kinds):
        for axes, part in zip(line, parts):
            for row in by_recipe(rows, kind=kind, part=part):
                _interval(axes, row, recipes.index(row["recipe"]), colour=cell_type_colour(part))
            axes.set_title(f"{part}, {kind}")
            axes.set_xlim(*_axis_range(rows))
            axes.grid(False, axis="y")
        line[0].set_yticks(range(len(recipes)), [*map(short_name, recipes)])
        line[0].set_ylim(len(recipes) - 0.4, -0.6)
    return figure


def _found(comparison: Mapping[str, Any], *, split: str, by: str) -> tuple[list[Row], list[str], list[str], list[str]]:
    """The accuracies by some part, and of which recipes, parts and kinds there are any."""
    rows = by_recipe(comparison["accuracies"], split=split, by=by)
    recipes, parts = (list(dict.fromkeys(row[name] for row in rows)) for name in ("recipe", "part"))
    return rows, recipes, parts, [kind for kind in COLOURS if by_recipe(rows, kind=kind)]


def _interval(axes: Axes, row: Row, y: float, *, colour: str) -> None:
    axes.plot(row["wilson"], [y, y], color=pale(colour, share=0.45), lw=4, solid_capstyle="butt")
    axes.plot(row["accuracy"], y, "o", color=colour, ms=6, mec="white", mew=0.8)


@styled
def by_experiment(comparison: Mapping[str, Any], *, split: str) -> Figure:
    """Accuracy of each recipe in each experiment, raw and assigned in tables of their own, the darker the better."""
    rows, recipes, parts, kinds = _found(comparison, split=split, by="experiment")
    if not rows:
        return blank_figure(f"no answers for {SPLITS[split]}")
    figure = new_figure(1.2 + len(kinds) * (0.5 + 0.75 * max(3, len(recipes))), 1.6 + 0.28 * max(3, len(parts)))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds):
        found = {(row["part"], row["recipe"]): row["accuracy"] for row in by_recipe(rows, kind=kind)}
        values = np.array([[found.get((part, recipe), np.nan) for recipe in recipes] for part in parts])
        _table(axes, values, colour=COLOURS[kind])
        axes.set_xticks(range(len(recipes)), [*map(short_name, recipes)], rotation=30, ha="right", rotation_mode="anchor")
        axes.set_title(kind.capitalize())
    panels[0].set_yticks(range(len(parts)), parts)
    return figure


def _table(axes: Axes, values: np.ndarray, *, colour: str) -> None:
    """Figures in boxes, coloured by their size."""
    for (y, x), value in np.ndenumerate(values):
        share = 0 if np.isnan(value) else value
        axes.add_patch(_box(x, y, pale(colour, share=0.08 + 0.8 * share)))
        axes.text(x, y, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=9,
                  color="white" if share > 0.72 else "#222222")
    axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
    _bare(axes)


def _box(x: float, y: float, colour: tuple[float, ...]) -> Rectangle:
    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", lw=1.5)


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


@styled
def differences(comparison: Mapping[str, Any], *, split: str) -> Figure:
    """How much more each recipe has right than the first one; raw and assigned in panels of their own.

    The broad bar is the interval for new experiments, the narrow one for new wells of these, small dots are seeds. The
    large one is filled where the interval for new experiments leaves out nothing at all.
    """
    rows = by_recipe(comparison["differences"], split=split)
    if not rows:
        return blank_figure(f"no two recipes with the same {SPLITS[split]} and seed")
    kinds = [kind for kind in COLOURS if by_recipe(rows, kind=kind)]
    names = list(dict.fromkeys(row["recipe"] for row in rows))
    figure = new_figure(2.4 + 4.4 * len(kinds), 1.3 + 0.42 * max(2, len(names)))
    panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds):
        axes.axvline(0, color="#999999", lw=1, ls="--")
        for row in by_recipe(rows, kind=kind):
            _difference(axes, row, names.index(row["recipe"]), colour=COLOURS[kind])
        axes.set_title(f"{kind.capitalize()}: better than {short_name(rows[0]['from'])} by")
        axes.grid(False, axis="y")
    panels[0].set_yticks(range(len(names)), [*map(short_name, names)])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    if max(map(abs, panels[0].get_xlim())) < 0.01:  # rounding errors are no differences
        panels[0].set_xlim(-0.01, 0.01)
    return figure


def _difference(axes: Axes, row: Row, y: int, *, colour: str) -> None:
    axes.plot(row["of_experiments"], [y, y], color=pale(colour, share=0.3), lw=9, solid_capstyle="butt")
    axes.plot(row["of_wells"], [y, y], color=pale(colour, share=0.65), lw=3, solid_capstyle="butt")
    if len(row["by_seed"]) > 1:
        axes.plot(row["by_seed"], [y + 0.26] * len(row["by_seed"]), ".", color=colour, ms=5)
    sure = row["of_experiments"][0] > 0 or row["of_experiments"][1] < 0
    axes.plot(row["difference"], y, "o", color=colour, ms=7, mfc=colour if sure else "white")


def surest_pairs(comparison: Mapping[str, Any], *, split: str, count: int = 20) -> pd.DataFrame:
    """The pairs of runs that differ most surely by McNemar's test, raw answers first; p_holm is corrected for their number."""
    columns = ["kind", "first", "second", "only_first", "only_second", "difference", "p", "p_holm"]
    pairs = pd.DataFrame(by_recipe(comparison["pairs"], split=split), columns=columns)
    return pairs.sort_values(["kind", "p"], ascending=[False, True]).head(count)


def leader_confusion(comparison: Mapping[str, Any], *, split: str) -> Figure:
    """`confusion` of the raw answers of the recipe with the best raw accuracy."""
    best = max(by_recipe(comparison["accuracies"], split=split, kind="raw", by=""), key=lambda row: row["accuracy"])["recipe"]
    return confusion(by_recipe(comparison["confusions"], split=split, kind="raw", recipe=best)[0])


@styled
def confusion(row: Row) -> Figure:
    """Wrong answers of one recipe: siRNA against siRNA in the order of the plate groups, and the pairs confused most."""
    if not row["wrong"]:
        return blank_figure(f"{row['recipe']}: nothing is confused")
    counts, pairs = np.array(row["matrix"]), row["pairs"][:15]
    figure = new_figure(10.5, 4.6)
    matrix, bars = figure.subplots(1, 2, width_ratios=(1.15, 1))
    scale = LogNorm(1, counts.max()) if counts.max() >= 20 else Normalize(0, counts.max())
    shown = matrix.imshow(np.where(counts, counts, np.nan), cmap=_shades(COLOURS[row["kind"]]), norm=scale, aspect="equal")
    _boundaries(matrix, row["group_sizes"], bins=len(counts))
    matrix.set(xlabel="answer: siRNAs by plate group", ylabel="truth: siRNAs by plate group",
               title=f"{short_name(row['recipe'])}, {row['kind']}: {row['wrong']:,} of {row['wells']:,} wrong")
    ticks = None if counts.max() >= 20 else MaxNLocator(integer=True)
    bar = figure.colorbar(shown, ax=matrix, shrink=0.8, label="wells", ticks=ticks)
    if counts.max() >= 20:
        label_decades(bar.ax.yaxis)
    _pairs(bars, pairs, colour=COLOURS[row["kind"]])
    return figure


def _shades(colour: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("shades", [pale(colour, share=0.25), colour, "#101418"])


def _boundaries(axes: Axes, sizes: Sequence[int], *, bins: int) -> None:
    """Lines between the plate groups, and their numbers in place of ticks."""
    axes.grid(False)
    bounds = np.cumsum([0, *sizes]) * bins / max(sum(sizes), 1) - 0.5
    for end in bounds[1:-1]:
        axes.axhline(end, color="#999999", lw=0.8)
        axes.axvline(end, color="#999999", lw=0.8)
    middles, names = (bounds[:-1] + bounds[1:]) / 2, [str(number + 1) for number in range(len(sizes))]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)


def _pairs(axes: Axes, pairs: Sequence[Row], *, colour: str) -> None:
    shades = {True: colour, False: pale(colour), None: "#C9CED4"}
    for y, pair in enumerate(pairs):
        axes.barh(y, pair["wrong"], height=0.7, color=shades[pair["same_group"]])
    axes.set_yticks(range(len(pairs)), [" and ".join(map(str, pair["sirnas"])) for pair in pairs])
    axes.set_ylim(max(len(pairs), 4) - 0.4, -0.6)
    axes.set(xlabel="wells in which one is taken for the other", title="Most confused siRNAs; dark: of one plate group")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(False, axis="y")


# The page about several runs, self-contained, and the same in numbers.


MOST = 60  # pairs of runs on the page; all are in compare.json
TableRow = Mapping[str, Any]
INTERVALS = (
    "Intervals hold 95 %. The one for wells (Wilson's) treats wells as independent, which wells of one experiment are not, "
    "even less so after assignment. The one for experiments resamples experiments and then wells within them (bootstrap): what "
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

    `comparison`: what `decide.evaluate.compare.compare` gives; `parameters`: one row for each that differs, one column a recipe.
    """
    told = {**comparison, "confusions": [{key: row[key] for key in row if key != "matrix"} for row in comparison["confusions"]]}
    files.write_json(folder / "compare.json", told)
    parts = [_head(comparison), _parameters(parameters)]
    for split in _splits(comparison):
        parts += [*_accuracy_table(comparison, split), *_differences(comparison, split), *_pair_rows(comparison, split)]
    parts += [*_confusions(comparison), _cost(comparison["runs"])]
    files.write_text(folder / "compare.html", html.page("cellsignal: runs compared", parts))
    return folder / "compare.html"


def _splits(comparison: Mapping[str, Any]) -> list[str]:
    return [split for split in SPLITS if by_recipe(comparison["accuracies"], split=split)]


def _head(comparison: Mapping[str, Any]) -> str:
    """The title and the best recipe of each kind."""
    recipes = {row["recipe"] for row in comparison["runs"]}
    boxes = []
    for split in _splits(comparison)[:1]:
        for kind in COLOURS:
            rows = by_recipe(comparison["accuracies"], split=split, kind=kind, by="")
            for best in sorted(rows, key=lambda row: -row["accuracy"])[:1]:
                boxes.append(html.number(f"{best['accuracy']:.3f}", f"best {kind} accuracy, {SPLITS[split]}: {best['recipe']}", kind=kind))
    words = f"{len(comparison['runs'])} runs of {len(recipes)} recipes"
    return html.head("Runs compared", words, boxes)


def _accuracy_table(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    name = SPLITS[split]
    yield html.section(
        f"Accuracy and cost: {name}", html.paragraph(INTERVALS),
        html.image(accuracy_and_cost(comparison, split=split).png(), f"accuracy and cost, {name}"),
        *(_overall(comparison, split=split, kind=kind) for kind in COLOURS))
    yield html.section(
        f"By cell type: {name}", html.image(by_cell_type(comparison, split=split).png(), f"accuracy by cell type, {name}"),
        *(_parts(comparison, split=split, kind=kind, by="cell_type") for kind in COLOURS))
    yield html.section(
        f"By experiment: {name}", html.image(by_experiment(comparison, split=split).png(), f"accuracy by experiment, {name}"),
        *(_parts(comparison, split=split, kind=kind, by="experiment") for kind in COLOURS))
    yield html.section(f"Rung by rung: {name}", *(_rungs(comparison, split=split, kind=kind) for kind in COLOURS))


def _overall(comparison: Mapping[str, Any], *, split: str, kind: str) -> str:
    """One row a recipe: accuracy, its spread and intervals, and beside them what a run cost."""
    rows = by_recipe(comparison["accuracies"], split=split, kind=kind, by="")
    cells = [
        [row["recipe"], len(row["runs"]), row["rung"], row["accuracy"], row["std"], _interval_text(row["wilson"]), _interval_text(row["interval"]),
         *_cost_table(by_recipe(comparison["runs"], recipe=row["recipe"]))] for row in rows
    ]
    names = ["recipe", "runs", "rung", "accuracy", "std", "wells, 95\u00a0%", "experiments, 95\u00a0%", "training, min", "weights, M"]
    sizes = ", ".join(dict.fromkeys(f"{row['wells']:,} wells of {row['experiments']} experiments" for row in rows))
    table = html.table(names, cells, kinds=["", "", "", kind])
    return html.subsection(f"{kind.capitalize()} accuracy", html.paragraph(sizes, quiet=True), table) if rows else ""


def _cost_table(runs: Sequence[TableRow]) -> list[str]:
    """Mean training minutes and millions of weights, as far as they are known."""
    known = [([row[name] / unit for row in runs if row[name]]) for name, unit in UNITS.items()]
    return [f"{sum(values) / len(values):.3g}" if values else "" for values in known]


def _parts(comparison: Mapping[str, Any], *, split: str, kind: str, by: str) -> str:
    """One row a cell type or experiment, one column a recipe: accuracy and Wilson's interval."""
    rows = by_recipe(comparison["accuracies"], split=split, kind=kind, by=by)
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    found = {(row["part"], row["recipe"]): f"{row['accuracy']:.3f} ({_interval_text(row['wilson'])})" for row in rows}
    cells = [[part, *(found.get((part, recipe), "") for recipe in recipes)] for part in dict.fromkeys(row["part"] for row in rows)]
    table = html.table([by.replace("_", " "), *recipes], cells, kinds=["", *[kind] * len(recipes)])
    return html.subsection(f"{kind.capitalize()} accuracy (wells, 95 %)", table) if rows else ""


def _rungs(comparison: Mapping[str, Any], *, split: str, kind: str) -> str:
    rows = by_recipe(comparison["rungs"], split=split, kind=kind)
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    found = {(row["rung"], row["recipe"]): row["accuracy"] for row in rows}
    cells = [[rung, *(found.get((rung, recipe)) for recipe in recipes)] for rung in dict.fromkeys(row["rung"] for row in rows)]
    table = html.table(["rung", *recipes], cells, kinds=["", *[kind] * len(recipes)])
    return html.subsection(f"{kind.capitalize()} accuracy", table) if rows else ""


def _differences(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    rows = by_recipe(comparison["differences"], split=split)
    if rows:
        figure = differences(comparison, split=split)
        yield html.section(f"Differences between recipes: {SPLITS[split]}", html.paragraph(DIFFERENCES),
                           html.image(figure.png(), f"differences between recipes, {SPLITS[split]}"),
                           *(_difference_table(by_recipe(rows, kind=kind), kind=kind) for kind in COLOURS))


def _difference_table(rows: Sequence[TableRow], *, kind: str) -> str:
    cells = [[row["recipe"], row["from"], row["seeds"], row["mean"], row["standard_error"], _interval_text(row["of_wells"]),
              _interval_text(row["of_experiments"])] for row in rows]
    names = ["recipe", "minus", "seeds", "difference", "standard error over seeds", "wells, 95\u00a0%", "experiments, 95\u00a0%"]
    return html.subsection(f"{kind.capitalize()} accuracy", html.table(names, cells, kinds=["", "", "", kind])) if rows else ""


def _pair_rows(comparison: Mapping[str, Any], split: str) -> Iterator[str]:
    """The pairs of runs with the same seed, if there are any, because they share the held-out wells."""
    seeds = {row["name"]: row["seed"] for row in comparison["runs"]}
    rows = by_recipe(comparison["pairs"], split=split)
    same_seed = [row for row in rows if seeds[row["first"]] == seeds[row["second"]]] or rows
    tables = [_pair_table(by_recipe(same_seed, kind=kind), kind=kind) for kind in COLOURS]
    if any(tables):
        hidden = len(rows) - sum(min(MOST, len(by_recipe(same_seed, kind=kind))) for kind in COLOURS)
        note = [html.paragraph(f"{hidden} more in compare.json.", quiet=True)] * (hidden > 0)
        yield html.section(f"Two runs at a time: {SPLITS[split]}", html.paragraph(TESTS), *tables, *note)


def _pair_table(rows: Sequence[TableRow], *, kind: str) -> str:
    cells = [[row["first"], row["second"], f"{row['only_first']:,}", f"{row['only_second']:,}", row["difference"],
              _interval_text(row["of_experiments"]), _probability(row["p"]), _probability(row["p_holm"])] for row in rows[:MOST]]
    names = ["first", "second", "first alone right", "second alone right", "difference", "experiments, 95\u00a0%", "p", "p, Holm"]
    wells = ", ".join(dict.fromkeys(f"{row['wells']:,} wells" for row in rows))
    return html.subsection(f"{kind.capitalize()} answers", html.paragraph(wells, quiet=True), html.table(names, cells)) if rows else ""


def _probability(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-300 else "< 1e-300"


def _confusions(comparison: Mapping[str, Any]) -> Iterator[str]:
    """What each recipe confuses, of the wells that count most."""
    for split in _splits(comparison)[:1]:
        rows = by_recipe(comparison["confusions"], split=split, kind="raw") + by_recipe(comparison["confusions"], split=split, kind="assigned")
        parts = [part for row in rows for part in (
            html.image(confusion(row).png(), f"confusion of siRNAs by {row['recipe']}, {row['kind']}"), _groups(row))]
        yield html.section(f"Confusion between siRNAs: {SPLITS[split]}", html.paragraph(CONFUSED), *parts)


def _groups(row: TableRow) -> str:
    """How often a wrong answer is of another plate group, in words."""
    total, same = sum(map(sum, row["between"])), sum(line[place] for place, line in enumerate(row["between"]))
    if not total or row["over_chance"] is None:
        return ""
    return html.paragraph(f"{row['recipe']}, {row['kind']}: {same:,} of {total:,} wrong answers are of the right plate group, "
                          f"{row['over_chance']:.1f} times as many as by chance.", quiet=True)


def _cost(runs: Sequence[TableRow]) -> str:
    """What each run took, and on what."""
    minutes = ("training_seconds", "prediction_seconds", "seconds")
    cells = [[row["name"], row["recipe"], row["seed"], *(f"{row[name] / 60:.1f}" if row[name] else "" for name in minutes),
              f"{row['weights']:,}" if row["weights"] else "", row["processes"] or "one per GPU", row["device"] or ""] for row in runs]
    names = ["run", "recipe", "seed", "training, min", "prediction, min", "all steps, min", "weights", "processes", "device"]
    words = "The sum over all steps, as the run recorded them; steps that ran in parallel are added up too."
    return html.section("Cost", html.paragraph(words, quiet=True), html.table(names, cells))


def _parameters(table: pd.DataFrame) -> str:
    if table.empty:
        return html.section("What differs", html.paragraph("Nothing but the seed.", quiet=True))
    cells = [[name, *row] for name, row in zip(table.index, table.to_numpy().tolist())]
    return html.section("What differs", html.table(["parameter", *table.columns], cells))


def _interval_text(interval: Sequence[float]) -> str:
    return f"{interval[0]:.3f}\u00a0to\u00a0{interval[1]:.3f}"

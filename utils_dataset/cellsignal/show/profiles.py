"""Profiles of wells: maps, retrieval of replicates, and distances to untreated wells."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellsignal.show.style import GROUPS, blank_figure, new_figure, styled

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C6D31")  # Okabe and Ito's, and brown
OTHER = "#C9CED4"
STEP_COLOURS = {"uncorrected": "#C9CED4", "centred": GROUPS[0], "components": GROUPS[2], "corrected": "#0072B2"}
RANDOM_COLOURS = ("#EED9C4", "#D55E00")  # a network with random weights, before and after
MEASURES = {"mean_average_precision": "Mean average precision", "recall_at_1": "Recall at 1 (dashes: by chance)"}


@styled
def draw_maps(points: Mapping[str, np.ndarray], labels: Sequence[object], *, title: str, largest: int = len(PALETTE)) -> Figure:
    """Wells as points float[N, 2], or float[N, 1] on a line, a panel per map, coloured by label; all labels but the `largest` most frequent ones are grey.

    Missing labels are grey too. Axes have no unit: only nearness counts.
    """
    named = pd.Series(list(labels), dtype=object)
    shown = list(named.value_counts().index[:largest])
    columns = len(points) if len(points) < 4 else 2
    rows = -(-len(points) // columns)
    figure = new_figure(4.2 * columns + 1.2, 4.1 * rows)
    figure.suptitle(title, x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    rest = ~named.isin(shown).to_numpy()
    for axes in panels[len(points) :]:
        axes.remove()
    for axes, (name, xy) in zip(panels, points.items()):
        xy = np.pad(xy, [(0, 0), (0, 2)])[:, :2]
        axes.scatter(*xy[rest].T, s=8, color=OTHER, lw=0, label="others" if rest.any() else None)
        for label, colour in zip(shown, PALETTE):
            axes.scatter(*xy[(named == label).to_numpy()].T, s=14, color=colour, lw=0, alpha=0.8, label=str(label))
        axes.set_title(name)
        axes.set(xticks=[], yticks=[])
        _fit(axes, xy)
    handles, names = axes.get_legend_handles_labels()
    first = int(rest.any())  # the others come last
    panels[columns - 1].legend(handles[first:] + handles[:first], names[first:] + names[:first], loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, markerscale=1.6)
    return figure


def _fit(axes: Axes, xy: np.ndarray) -> None:
    """Limits that a few far wells do not blow up."""
    low, high = np.percentile(xy, (1, 99), axis=0)
    margin = 0.08 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])


@styled
def draw_retrieval(retrieval: pd.DataFrame) -> Figure:
    """Mean average precision and recall at 1 of each table under each restriction; dashes are chance for recall.

    retrieval: rows with profiles, restriction, mean_average_precision, recall_at_1 and chance_at_1.
    """
    if not len(retrieval):
        return blank_figure("No treatment has replicates, so retrieval cannot be measured.")
    tables, restrictions = (list(dict.fromkeys(retrieval[name])) for name in ("profiles", "restriction"))
    random = iter(RANDOM_COLOURS)
    colours = {name: STEP_COLOURS.get(name) or next(random, OTHER) for name in tables}
    width = 0.8 / len(tables)
    figure = new_figure(4.6 * len(MEASURES), 3.4)
    figure.suptitle("Do replicates find each other?", x=0.01, ha="left")
    panels = figure.subplots(1, len(MEASURES))
    for axes, (measure, label) in zip(panels, MEASURES.items()):
        for number, name in enumerate(tables):
            rows = retrieval[retrieval["profiles"] == name].set_index("restriction").reindex(restrictions)
            x = np.arange(len(restrictions)) + (number - (len(tables) - 1) / 2) * width
            axes.bar(x, rows[measure].fillna(0), 0.92 * width, color=colours[name], label=name)
            if measure == "recall_at_1":
                axes.hlines(rows["chance_at_1"], x - width / 2, x + width / 2, color="#222222", ls="--", lw=1)
        axes.set_title(label)
        axes.set_xticks(range(len(restrictions)), [name.replace("not the same ", "not the same\n").replace("none", "no restriction") for name in restrictions])
        axes.grid(False, axis="x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=min(len(tables), 4), fontsize=9)
    return figure


@styled
def draw_activity(perturbations: pd.DataFrame, null: np.ndarray, *, significance: float) -> Figure:
    """Distances of treatments to untreated wells, as a histogram above that of as many untreated wells drawn at random.

    perturbations: rows with distance and corrected_p_value. Both histograms have the same area.
    """
    active = (perturbations["corrected_p_value"] <= significance).to_numpy()
    distances = perturbations["distance"].to_numpy()
    figure = new_figure(8, 3)
    axes = figure.subplots()
    edges = np.linspace(0, max(np.percentile(distances, 99.5), np.percentile(null, 99.5)) * 1.05, 41)
    axes.hist(null, edges, weights=np.full(len(null), len(distances) / len(null)), color=OTHER, label="untreated wells, drawn at random")
    axes.hist([distances[active], distances[~active]], edges, stacked=True, color=["#0072B2", "#56B4E9"], alpha=0.85,
              label=[f"treatments that differ ({active.sum()})", f"other treatments ({(~active).sum()})"])  # fmt: skip
    axes.set_xlabel("distance to untreated wells (Mahalanobis)")
    axes.set_ylabel("treatments")
    axes.legend(fontsize=9)
    figure.suptitle(f"{active.mean():.0%} of {len(active)} treatments differ from untreated wells", x=0.01, ha="left")
    return figure

"""What a prediction notebook shows: scores and embeddings of the same wells under several statistics, and the plate groups weighed."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cellsignal.data.tables.plate_design import shifts
from cellsignal.show.style import ASSIGNED, RAW, TITLE_HEIGHT, blank, label_decades, picture, styled

FAINT = "#CFCFCF"
MOST_ORDERS = 24  # permutations of four groups; of more, the likeliest are drawn
LEAST_PROBABILITY = 1e-9


@styled
def plate_scores(
    scores: Mapping[str, pd.DataFrame], wells: pd.DataFrame, answers: pd.Series, *, experiment: str, plate: int, known: bool = True
) -> Figure:
    """The scores of one plate under each kind of statistics: a row for each well, a column for each siRNA of the plate.

    `scores`: by kind, index id_code, columns class numbers, natural-log probabilities. `wells`: id_code, experiment, plate. `answers`:
    siRNA by id_code, by which wells and siRNAs are sorted, so that right answers are on the diagonal: the true ones if `known`, else
    those assigned. Each title has the share of wells whose most likely siRNA of all is that one.
    """
    mine = wells.loc[(wells["experiment"] == experiment) & (wells["plate"] == plate), "id_code"]
    order = answers.dropna().astype(int).reindex(mine).dropna().astype(int).sort_values(kind="stable")
    tables = {kind: table.reindex(order.index).dropna(how="all") for kind, table in scores.items()}
    tables = {kind: table for kind, table in tables.items() if len(table)}
    if not tables:
        return blank("No scores of this plate.")
    figure = picture(4.2 * len(tables) + 0.8, 4.9)
    figure.suptitle(f"{experiment}, plate {plate}", x=0.01, ha="left")
    grid = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (kind, table) in zip(grid, tables.items()):
        mine, sirnas = order[table.index], sorted(set(order))
        right = (table.idxmax(axis=1) == mine).mean()
        values = np.exp(table.reindex(columns=sirnas, fill_value=-np.inf).to_numpy(float))
        image = axes.imshow(values, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{kind}: " + (f"accuracy {right:.3f}" if known else f"{right:.3f} as assigned"))
        _label_few(axes.xaxis, sirnas)
        _label_few(axes.yaxis, mine.tolist())
        axes.set_xlabel("siRNA of the plate")
        axes.grid(False)
    grid[0].set_ylabel(f"well, by its {'true' if known else 'assigned'} siRNA")
    figure.colorbar(image, ax=grid, label="probability", shrink=0.8, pad=0.01)
    return figure


def _label_few(axis: matplotlib.axis.Axis, names: Sequence[int]) -> None:
    """Name every place, or about twelve of many."""
    step = max(1, -(-len(names) // 12))
    axis.set_ticks(range(0, len(names), step), names[::step], fontsize=8)


# Embeddings of wells as points in the plane.


@styled
def embedding_maps(
    embeddings: Mapping[str, pd.DataFrame], wells: pd.DataFrame, *, method: str = "pca", sirnas: Sequence[int] = (), seed: int = 0
) -> Figure:
    """Wells of one cell type as points, under each kind of statistics: coloured by experiment, and below by siRNA.

    `embeddings`: by kind, index id_code, one column per feature, all of one network. `wells`: id_code, experiment, sirna (where known)
    and split; wells of experiments that the network has not learnt from are crosses. `method`: "pca", or "tsne" (van der Maaten and
    Hinton 2008) from at most 50 principal components, the same for the same `seed`. `sirnas`: those with a colour, or eight of
    the most frequent, drawn by `seed`; wells of others are grey.
    """
    tables = {kind: table.sort_index() for kind, table in embeddings.items() if len(table) > 3}
    if not tables:
        return blank("Too few wells for a map.")
    known = wells.set_index("id_code")
    figure = picture(4.6 * len(tables) + 1.6, 8.2)
    figure.suptitle(f"Embeddings of wells ({'principal components' if method == 'pca' else 't-SNE'})", x=0.01, ha="left")
    grid = figure.subplots(2, len(tables), squeeze=False)
    for column, (kind, table) in zip(grid.T, tables.items()):
        points, mine = _plane(table, method=method, seed=seed), known.loc[table.index]
        learnt = (mine["split"] == "train").to_numpy()
        _coloured(column[0], points, mine["experiment"], _colours(sorted(mine["experiment"].unique()), "turbo"), learnt)
        _coloured(column[1], points, mine["sirna"], _colours(_chosen(mine["sirna"], sirnas, seed=seed), "tab10"), learnt, prefix="siRNA ")
        column[0].set_title(f"{kind} statistics, by experiment")
        column[1].set_title(f"{kind} statistics, by siRNA")
    for row in grid:
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, handletextpad=0.2, borderaxespad=0)
    marks = [Line2D([], [], marker=marker, ls="", color="#666666", ms=5) for marker in "ox"]
    figure.legend(marks, ["learnt from", "not learnt from"], loc="outside lower left", ncols=2, fontsize=9, handletextpad=0.2)
    return figure


def _plane(table: pd.DataFrame, *, method: str, seed: int) -> np.ndarray:
    """float[wells,2]"""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = table.to_numpy(np.float64)
    if method == "pca":
        return PCA(2, svd_solver="full").fit_transform(values)
    parts = PCA(min(50, *values.shape), svd_solver="full").fit_transform(values)
    return TSNE(2, init="pca", perplexity=min(30, (len(values) - 1) / 3), random_state=seed).fit_transform(parts)


def _chosen(known: pd.Series, sirnas: Sequence[int], *, seed: int) -> list[int]:
    """The given siRNAs, or eight of those that most wells have."""
    counts = known.dropna().astype(int).value_counts().sort_index()
    frequent = counts.index[counts == counts.max()] if (counts == counts.max()).sum() >= 8 else counts.nlargest(8).index
    return list(sirnas) or sorted(np.random.default_rng(seed).permutation(frequent)[:8].tolist())


def _colours(names: Sequence, palette: str) -> dict:
    shades = matplotlib.colormaps[palette]
    return {name: shades(place) if palette == "tab10" else shades(0.05 + 0.9 * place / max(1, len(names) - 1)) for place, name in enumerate(names)}


def _coloured(axes: Axes, points: np.ndarray, names: pd.Series, colours: Mapping, learnt: np.ndarray, *, prefix: str = "") -> None:
    """Points of each name in its colour, the others grey and behind; circles where the network has learnt from them, else crosses."""
    others = ~names.isin(colours).to_numpy()
    for here, marker in ((learnt, "o"), (~learnt, "x")):
        axes.scatter(*points[others & here].T, s=9, color=FAINT, marker=marker, lw=0.8 * (marker == "x"), zorder=1)
        for name, colour in colours.items():
            some = points[(names == name).fillna(False).to_numpy(bool) & here]
            axes.scatter(*some.T, s=16 if others.any() else 9, color=[colour], marker=marker, lw=1.1 * (marker == "x"), zorder=2)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, ms=5, label=f"{prefix}{name}")
    axes.set(xticks=[], yticks=[])


# Plate groups.


class Permutations(Protocol):
    """What is known of the permutations of one experiment (`decide.assign.groups.GroupChoice`)."""

    orders: np.ndarray
    posterior: np.ndarray
    group_on_plate: tuple[int, ...]


@styled
def permutation_posterior(choice: Permutations | None, *, rotations: Mapping[str, Sequence[int]] | None = None, title: str = "") -> Figure:
    """Posterior probability of each permutation of plate groups in one experiment, as bars on a logarithmic axis, the chosen one marked.

    `choice`: None where no groups were weighed. `rotations`: index of the group by plate of training experiments; these and their
    cyclic shifts, which are likelier before any score is seen, have a colour of their own.
    """
    if choice is None:
        return blank("No plate groups were weighed in this experiment.")
    order = np.argsort(-choice.posterior, kind="stable")[:MOST_ORDERS]
    usual = shifts(rotations or {})
    colours = {"chosen": ASSIGNED, "rotation": RAW, "other": FAINT}
    figure = picture(9, 3.6 + (TITLE_HEIGHT if title else 0))
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    axes = figure.subplots()
    for place, (groups, probability) in enumerate(zip(choice.orders[order].tolist(), choice.posterior[order])):
        kind = "rotation" if tuple(groups) in usual else "other"
        kind = "chosen" if tuple(groups) == tuple(choice.group_on_plate) else kind
        axes.bar(place, max(probability, LEAST_PROBABILITY), color=colours[kind], width=0.7)
        axes.text(place, max(probability, LEAST_PROBABILITY) * 1.3, f"{probability:.2g}", ha="center", fontsize=7, rotation=90, va="bottom")
    names = [" ".join(str(group + 1) for group in groups) for groups in choice.orders[order].tolist()]
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    axes.set(yscale="log", ylim=(LEAST_PROBABILITY, 30), xlim=(-0.7, len(order) - 0.3), ylabel="posterior probability")
    axes.set_xlabel("plate group on plates " + ", ".join(map(str, range(1, choice.orders.shape[1] + 1))))
    label_decades(axes.yaxis)
    axes.grid(False, axis="x")
    return figure

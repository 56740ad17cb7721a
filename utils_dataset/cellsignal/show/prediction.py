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
from cellsignal.show.style import ASSIGNED, RAW, blank_figure, colour_legend, label_decades, new_figure, styled

FAINT = "#CFCFCF"
MOST_ORDERS = 24  # permutations of four groups; of more, the likeliest are drawn
LEAST_PROBABILITY = 1e-9


@styled
def plate_scores(
    scores: Mapping[str, pd.DataFrame], wells: pd.DataFrame, answers: pd.Series, *, experiment: str = "", plate: int = 0
) -> Figure:
    """The scores of one plate under each kind of statistics: a row for each well, a column for each siRNA of the plate.

    `scores`: by kind, index id_code, columns class numbers, natural-log probabilities. `wells`: id_code, experiment, plate. `answers`:
    siRNA by id_code, by which wells and siRNAs are sorted, so that right answers are on the diagonal. `experiment`, `plate`: the first that has answers if not given. Each title has the share of wells whose most likely
    siRNA of all is that one.
    """
    answered = wells[wells["id_code"].isin(answers.dropna().index)]
    if answered.empty:
        return blank_figure("No well with an answer.")
    experiment = experiment or answered["experiment"].min()
    plate = plate or answered.loc[answered["experiment"] == experiment, "plate"].min()
    mine = wells.loc[(wells["experiment"] == experiment) & (wells["plate"] == plate), "id_code"]
    order = answers[answers.index.isin(mine)].dropna().astype(int).sort_values(kind="stable")
    tables = {kind: table.loc[order.index[order.index.isin(table.index)]] for kind, table in scores.items()}
    tables = {kind: table for kind, table in tables.items() if len(table)}
    if not tables:
        return blank_figure("No scores of this plate.")
    order = order[order.index.isin(next(iter(tables.values())).index)]
    sirnas = sorted(set(order))
    figure = new_figure(4.2 * len(tables) + 0.8, 4.9)
    figure.suptitle(f"{experiment}, plate {plate}", x=0.01, ha="left")
    grid = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (kind, table) in zip(grid, tables.items()):
        right = (table.idxmax(axis=1) == order[table.index]).mean()
        values = np.exp(table.reindex(columns=sirnas, fill_value=-np.inf).to_numpy(float))
        image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{kind}: accuracy {right:.3f}")
        _label_few(axes.xaxis, sirnas)
        _label_few(axes.yaxis, order[table.index].tolist())
        axes.set_xlabel("siRNA of the plate")
        axes.grid(False)
    grid[0].set_ylabel("well, by its true siRNA")
    figure.colorbar(image, ax=grid, label="probability", shrink=0.8, pad=0.01)
    return figure


def _label_few(axis: matplotlib.axis.Axis, names: Sequence[int]) -> None:
    """Name every place, or about twelve of many."""
    step = max(1, -(-len(names) // 12))
    axis.set_ticks(range(0, len(names), step), names[::step], fontsize=8)


# Embeddings of wells as points in the plane.


def experiments_to_map(wells: pd.DataFrame, *, count: int = 6) -> list[str]:
    """Experiments of one cell type, sorted, for `embedding_maps`: at most half not learnt from, the others learnt from.

    `wells`: experiment, cell_type, sirna, split, well_type. Only experiments whose treatments are known count; of the cell types the
    first that has both kinds is taken, else the first.
    """
    known = wells[(wells["well_type"] == "treatment") & wells["sirna"].notna()]
    choices = []
    for _, some in known.groupby("cell_type", sort=True):
        learnt = some["split"] == "train"
        seen, unseen = (sorted(some.loc[which, "experiment"].unique()) for which in (learnt, ~learnt))
        unseen = unseen[: max(count // 2, count - len(seen))]
        choices.append((not (seen and unseen), sorted(unseen + seen[: count - len(unseen)])))
    return min(choices, key=lambda choice: choice[0], default=(True, []))[1]


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
        return blank_figure("Too few embeddings of wells for a map.")
    known = wells.set_index("id_code")
    figure = new_figure(4.6 * len(tables) + 1.6, 8.2)
    figure.suptitle(f"Embeddings of wells, {'principal components' if method == 'pca' else 't-SNE'}", x=0.01, ha="left")
    grid = figure.subplots(2, len(tables), squeeze=False)
    for column, (kind, table) in zip(grid.T, tables.items()):
        points, mine = _plane(table, method=method, seed=seed), known.loc[table.index]
        learnt = (mine["split"] == "train").to_numpy()
        _coloured(column[0], points, mine["experiment"], _experiment_colours(mine["experiment"]), learnt)
        _coloured(column[1], points, mine["sirna"], _sirna_colours(mine["sirna"], sirnas, seed=seed), learnt, prefix="siRNA ")
        column[0].set_title(f"{kind} statistics, by experiment")
        column[1].set_title(f"{kind} statistics, by siRNA")
    for row in grid:
        row[-1].legend(*row[-1].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, handletextpad=0.2, borderaxespad=0)
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


def _experiment_colours(experiments: pd.Series) -> dict[str, tuple[float, ...]]:
    names = sorted(experiments.unique())
    return dict(zip(names, matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))))


def _sirna_colours(known: pd.Series, sirnas: Sequence[int], *, seed: int) -> dict[int, tuple[float, ...]]:
    """A colour for each given siRNA, or for eight of those that most wells have."""
    if not sirnas:
        counts = known.dropna().astype(int).value_counts()
        frequent = counts.index[counts >= (counts.nlargest(8).min() if len(counts) else 0)].sort_values()
        sirnas = sorted(np.random.default_rng(seed).permutation(frequent)[:8].tolist())
    shades = [colour for colour in matplotlib.colormaps["tab10"].colors if len(set(colour)) > 1]  # grey is for all others
    return dict(zip(sirnas, shades * len(sirnas)))


def _coloured(axes: Axes, points: np.ndarray, names: pd.Series, colours: Mapping, learnt: np.ndarray, *, prefix: str = "") -> None:
    """Points of each name in its colour, the others grey and behind; circles where the network has learnt from them, else crosses."""
    others, size = ~names.isin(colours).to_numpy(), 9 if len(points) > 200 else 20
    for here, marker in ((learnt, "o"), (~learnt, "x")):
        axes.scatter(*points[others & here].T, s=size, color=FAINT, marker=marker, lw=0.8 * (marker == "x"), zorder=1)
        for name, colour in colours.items():
            some = points[(names == name).fillna(False).to_numpy(bool) & here]
            axes.scatter(*some.T, s=max(size, 16) if others.any() else size, color=[colour], marker=marker, lw=1.1 * (marker == "x"), zorder=2)
    for name, colour in colours.items():
        axes.plot([], [], "o", color=colour, ms=5, label=f"{prefix}{name}")
    axes.set(xticks=[], yticks=[])


# Plate groups.


class Plan(Protocol):
    """How one experiment is to be decided (`decide.assign.assign.AssignmentPlan`)."""

    experiment: str
    choice: "Permutations | None"


class Permutations(Protocol):
    """What is known of the permutations of one experiment (`decide.assign.groups.GroupChoice`)."""

    permutations: np.ndarray
    posterior: np.ndarray
    group_on_plate: tuple[int, ...]
    confidence: float


@styled
def permutation_posterior(choice: Permutations | None, *, rotations: Mapping[str, Sequence[int]] | None = None, title: str = "") -> Figure:
    """Posterior probability of each permutation of plate groups in one experiment, as bars on a logarithmic axis, the chosen one marked.

    `choice`: None where no groups were weighed. `rotations`: index of the group by plate of training experiments; these and their
    cyclic shifts, which are likelier before any score is seen, have a colour of their own.
    """
    if choice is None:
        return blank_figure("No plate groups were weighed in this experiment.")
    order = np.argsort(-choice.posterior, kind="stable")[:MOST_ORDERS]
    usual = shifts(rotations or {})
    colours = {"chosen": ASSIGNED, "rotation": RAW, "other": FAINT}
    lowest = 10 ** np.floor(np.log10(max(choice.posterior[order].min(), LEAST_PROBABILITY)) - 0.3)
    figure = new_figure(9, 4)
    figure.suptitle(title, x=0.01, ha="left")
    axes = figure.subplots()
    for place, (groups, probability) in enumerate(zip(choice.permutations[order].tolist(), choice.posterior[order])):
        kind = "rotation" if tuple(groups) in usual else "other"
        kind = "chosen" if tuple(groups) == tuple(choice.group_on_plate) else kind
        axes.bar(place, max(probability, lowest), color=colours[kind], width=0.7)
        number = f"{probability:.3f}" if probability >= 0.001 else f"{probability:.0e}"
        axes.annotate(number, (place, max(probability, lowest)), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7)
    names = [" ".join(str(group + 1) for group in groups) for groups in choice.permutations[order].tolist()]
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    axes.set(yscale="log", ylim=(lowest, 4), xlim=(-0.7, len(order) - 0.3), ylabel="posterior probability")
    axes.set_xlabel("plate group on plates " + ", ".join(map(str, range(1, choice.permutations.shape[1] + 1))))
    label_decades(axes.yaxis)
    axes.grid(False, axis="x")
    words = {"chosen": "the likeliest", "rotation": "rotations, as in training", "other": "other permutations"}
    colour_legend(figure, {name: colours[kind] for kind, name in words.items() if usual or kind != "rotation"})
    return figure


def hardest_permutation(plans: Sequence[Plan], *, rotations: Mapping[str, Sequence[int]] | None = None) -> Figure:
    """`permutation_posterior` of the experiment whose permutation is least certain."""
    plan = min(plans, key=lambda plan: plan.choice.confidence if plan.choice else 1)
    return permutation_posterior(plan.choice, rotations=rotations, title=plan.experiment)

"""What a training notebook shows: the sites it learns from, batches and augmentations as images, the network, accuracy by experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from cellsignal.show.eda.composites import composite, hide_ticks, limits
from cellsignal.show.style import blank_figure, cell_type_colour, pale, new_figure, styled

if TYPE_CHECKING:
    from torch import nn


def training_table(sites: pd.DataFrame) -> pd.DataFrame:
    """How many experiments, plates, wells, sites and siRNAs each cell type has in each split, and all of them together.

    `sites`: one row per site, with experiment, cell_type, plate, id_code, sirna and split ("train", "held_out", "test").
    """
    some = sites.assign(plate=sites["experiment"] + "_" + sites["plate"].astype(str), site=1)
    counted = {
        "experiments": ("experiment", "nunique"), "plates": ("plate", "nunique"), "wells": ("id_code", "nunique"),
        "sites": ("site", "sum"), "siRNAs": ("sirna", "nunique"),
    }  # fmt: skip
    table = some.groupby(["cell_type", "split"]).agg(**counted)
    if table.index.get_level_values("cell_type").nunique() < 2:
        return table
    return pd.concat([table, some.assign(cell_type="all").groupby(["cell_type", "split"]).agg(**counted)])


# Images.


def site_captions(sites: pd.DataFrame) -> list[str]:
    """Well and siRNA of each row of `sites`, as captions of its image; a site without a label has its well alone."""
    return [f"{well}, site {site}" + ("" if pd.isna(sirna) else f"\nsiRNA {int(sirna)}")
            for well, site, sirna in zip(sites["well"], sites["site"], sites["sirna"])]


@styled
def image_grid(images: Sequence[np.ndarray], captions: Sequence[str] = (), *, columns: int = 8, title: str = "") -> Figure:
    """Sites as colour composites, so many in a row, all on one scale of brightness.

    `images`: uint8[C,H,W], of one size or of several; `captions`: one for each, or none.
    """
    if not len(images):
        return blank_figure("No images to show.")
    columns = min(columns, len(images))
    rows, lines = -(-len(images) // columns), max((caption.count("\n") + 1 for caption in captions), default=0)
    figure = new_figure(max(4, 1.5 * columns), (1.42 + 0.15 * lines) * rows + 0.3 * bool(title))
    if title:
        figure.suptitle(title, x=0.01, ha="left")
    ends = limits(np.concatenate([image.reshape(len(image), 1, -1) for image in images], axis=2))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        hide_ticks(axes)
    for axes, image in zip(grid, images):
        axes.imshow(composite(image, ends=ends))
    for axes, caption in zip(grid, captions):
        axes.set_title(caption, fontsize=8)
    return figure


# The network.


def network_summary(model: nn.Module, *, size: int) -> pd.DataFrame:
    """The parts of a classifier in the order in which an image passes them: layers, parameters and what each part gives.

    `model`: a `Classifier`; `size`: side of its square images, px. Columns, by part: kind; layers (those with weights); parameters;
    output (channels x height x width, or features). Weights and running statistics stay as they are.
    """
    import torch

    shapes, parts = {}, dict(_parts(model))
    hooks = [part.register_forward_hook(lambda part, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
             for name, part in parts.items()]
    training, some = model.training, next(model.parameters())
    model.eval()
    with torch.inference_mode():
        model.body(some.new_zeros((1, model.channels, size, size)))
    model.train(training)
    for hook in hooks:
        hook.remove()
    first = {"part": "image", "kind": "", "layers": 0, "parameters": 0, "output": _size((model.channels, size, size))}
    rows = [_row(name, part, shapes.get(name, (model.classes,))) for name, part in parts.items()]
    table = pd.DataFrame([first, *(row for row in rows if row["parameters"])]).set_index("part")
    table.loc["all"] = ["", table["layers"].sum(), table["parameters"].sum(), ""]
    return table


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of the body, or of what it wraps, and the head."""
    body = model.body
    while len(children := [child for child in body.children() if next(child.parameters(), None) is not None]) == 1:
        body = children[0]
    yield from body.named_children()
    yield "head", model.head


def _row(name: str, part: nn.Module, shape: tuple[int, ...]) -> dict[str, object]:
    layers = sum(any(True for _ in module.parameters(recurse=False)) for module in part.modules())
    return {"part": name, "kind": type(part).__name__.lstrip("_"), "layers": layers,
            "parameters": sum(weights.numel() for weights in part.parameters()), "output": _size(shape)}


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# What it has learnt.


@styled
def accuracy_by_experiment(predicted: pd.Series, truth: pd.Series, wells: pd.DataFrame, *, classes: int = 0) -> Figure:
    """Share of rightly predicted wells of each experiment, a dot with its 95 % interval (Wilson's) in the colour of the cell type.

    `predicted`, `truth`: siRNA by id_code; wells without a prediction or a known siRNA do not count. `wells`: id_code, experiment,
    cell_type. `classes`: siRNAs to choose from, whose chance is drawn as a line; 0 for none.
    """
    known = truth.dropna().index.intersection(predicted.index)
    right = predicted.loc[known].astype(int) == truth.loc[known].astype(int)
    places = wells.set_index("id_code").loc[known]
    groups = list(right.groupby([places["cell_type"], places["experiment"]], sort=True))
    if not groups:
        return blank_figure("No well with a known siRNA was predicted.")
    figure = new_figure(8, 1.1 + 0.3 * max(2, len(groups)))
    axes = figure.subplots()
    for height, ((cell_type, _), some) in enumerate(groups):
        share, colour = binomtest(int(some.sum()), len(some)), cell_type_colour(cell_type)
        axes.plot(share.proportion_ci(method="wilson"), [height, height], color=pale(colour), lw=5, solid_capstyle="butt")
        axes.plot(share.statistic, height, "o", color=colour, ms=7)
        axes.text(1.04, height, f"{share.statistic:.3f} of {len(some):,} wells", va="center", fontsize=9)
    if classes:
        axes.axvline(1 / classes, color="#999999", lw=1, ls="--", label=f"chance: 1 in {classes:,}", zorder=0)
        figure.legend(loc="outside lower left", fontsize=9)
    axes.set_yticks(range(len(groups)), [name for (_, name), _ in groups])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(groups) - 0.4, -0.6), title="Accuracy by experiment")
    axes.tick_params(axis="y", length=0)
    return figure

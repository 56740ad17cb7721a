"""What a training notebook shows: the sites it learns from, batches and augmentations as images, the network, accuracy by experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from cellsignal.show.eda.composites import composite, hide_ticks, limits
from cellsignal.show.style import blank_figure, cell_type_colour, new_figure, pale, styled

if TYPE_CHECKING:
    from torch import nn

    from cellsignal.learn.batches.dataset import SiteImages
    from cellsignal.learn.training.fit import TrainingSites


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


def site_roles(sites: TrainingSites) -> pd.DataFrame:
    """How many sites of a training are trained on, are held out, are controls to compare with, and may get pseudo-labels."""
    roles = {"trained on": sites.train, "held out": sites.held_out, "controls to compare with": sites.controls, "may get pseudo-labels": sites.unlabelled}
    return pd.DataFrame({"sites": {role: len(some or ()) for role, some in roles.items()}})


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
        axes.imshow(composite(image, grey_range=ends))
    for axes, caption in zip(grid, captions):
        axes.set_title(caption, fontsize=8)
    return figure


def batch_grid(data: SiteImages, rows: Sequence[int], *, columns: int = 8, title: str = "") -> Figure:
    """Sites of a data set, such as those of a batch, as they are stored, each with its well and siRNA.

    `rows`: their row numbers; `columns`: so many in a row of the figure. The title names the plate when all are of one; else each caption does.
    """
    sites = data.sites.iloc[rows]
    plates = (sites["experiment"] + ", plate " + sites["plate"].astype(str)).unique()
    if len(plates) > 1:
        sites = sites.assign(well=sites["id_code"])
    return image_grid([data.image(row) for row in rows], site_captions(sites), columns=columns, title=title or (plates[0] if len(plates) == 1 else f"{len(plates)} plates"))


def control_grid(data: SiteImages, *, plates: int = 3, controls: int = 8) -> Figure:
    """The same controls on several plates, on one scale of brightness: a plate per row, a siRNA per column, untreated cells last.

    `data`: control sites. Plates of different experiments come first; those that lack one of the controls are left out.
    """
    controls = min(controls, len(data.class_numbers))
    sites = data.sites[data.sites["sirna"].isin(data.class_numbers[-controls:])]
    some = sites.sort_values(["plate", "experiment", "sirna"]).drop_duplicates(["plate", "experiment", "sirna"])
    whole = some.groupby(["plate", "experiment"])["sirna"].transform("size") == controls
    return batch_grid(data, some[whole].index[: plates * controls], columns=controls, title="The same controls on several plates")


def augmentation_grid(data: SiteImages, *, row: int = 0, epochs: int = 7) -> Figure:
    """A site of a data set as it is stored, and as the network sees it in the first epochs."""
    stored, augment = data.image(row), data.augment
    if augment is None:
        return image_grid([stored], ["as stored, and in every epoch"])
    from cellsignal.learn.batches.augment import augmented  # pulls in PyTorch

    images = [stored, *(augmented(augment, stored, epoch=epoch, site=row) for epoch in range(epochs))]
    return image_grid(images, ["as stored", *(f"epoch {epoch + 1}" for epoch in range(epochs))], title=site_captions(data.sites.iloc[[row]])[0].replace("\n", ", "))


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


def history_table(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per phase: its epochs, the loss and the training accuracy of the last one, the best held-out accuracy and its epoch, and minutes.

    `history`: rows as `fit` returns them; an accuracy that no epoch measured stays empty. Of several best epochs it is the last, whose weights `fit` selects.
    """
    rows = pd.DataFrame(history, columns=["phase", "epoch", "loss", "accuracy", "held_out_accuracy", "seconds"]).astype({"held_out_accuracy": float})
    phases = rows.groupby("phase", sort=False)
    table = phases.agg(epochs=("epoch", "size"), loss=("loss", "last"), accuracy=("accuracy", "last"), held_out=("held_out_accuracy", "max"))
    best = rows.dropna(subset="held_out_accuracy").sort_values("held_out_accuracy", kind="stable").groupby("phase")["epoch"].last()
    return table.assign(best_epoch=best.reindex(table.index).astype("Int64"), minutes=phases["seconds"].sum() / 60).round(3)


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
    figure = new_figure(8, 1.3 + 0.3 * max(2, len(groups)))
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
    axes.set(xlim=(-0.02, 1.02), ylim=(len(groups) - 0.4, -0.6), xlabel="share of wells whose siRNA is predicted rightly", title="Accuracy by experiment")
    axes.tick_params(axis="y", length=0)
    return figure

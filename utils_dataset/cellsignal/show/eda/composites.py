"""Images of wells: false-colour composites and single channels."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellsignal.show.style import blank_figure, new_figure, styled
from cellsignal.tasks import RXRX1, Task

LOW, HIGH = 2.0, 99.7  # percentiles of a channel drawn as black and as full colour


def limits(images: np.ndarray) -> np.ndarray:
    """The grey values drawn as black and as full colour, float[C,2], over all of uint8[...,C,H,W]."""
    pixels = np.moveaxis(images, -3, 0).reshape(images.shape[-3], -1)
    grey_range = np.percentile(pixels, (LOW, HIGH), axis=1).T
    grey_range[:, 1] = np.maximum(grey_range[:, 1], grey_range[:, 0] + 1)  # an even channel stays black
    return grey_range


def scaled(image: np.ndarray, grey_range: np.ndarray) -> np.ndarray:
    """`image` uint8[C,H,W] as float[C,H,W] from 0 to 1 between the grey values float[C,2]."""
    low, high = grey_range.T[:, :, None, None]
    return np.clip((image - low) / (high - low), 0, 1)


def composite(image: np.ndarray, *, grey_range: np.ndarray | None = None, task: Task = RXRX1) -> np.ndarray:
    """Faux colours of uint8[C,H,W] as float RGB[H,W,3], for RxRx1 blue green red cyan magenta yellow.

    Each channel is scaled to its own percentiles, or to the given grey values float[C,2]. The
    colours are the task's; each primary takes the mean of the channels that hold it.
    """
    colours = np.array(task.colours, dtype=float)  # [C, RGB]
    shares = colours / colours.sum(axis=0)
    rgb = np.einsum("chw,ck->hwk", scaled(image, limits(image) if grey_range is None else grey_range), shares)
    return np.clip(1.3 * rgb, 0, 1)  # the mean is dim, as stains seldom lie in one place


@styled
def show_wells(images: list[np.ndarray], titles: list[str], *, shared: bool = False, task: Task = RXRX1) -> Figure:
    """A row per well (or site): the composite, then each channel alone; `images` are uint8[C,H,W].

    `shared` scales all rows alike, so that brightness can be compared down a column.
    """
    if not images:
        return blank_figure("No images to show.")
    columns = 1 + len(task.channels)
    figure = new_figure(2 * columns, 0.45 + 2.05 * len(images))
    grid = figure.subplots(len(images), columns, squeeze=False)
    shared_range = limits(np.stack(images)) if shared else None
    for axes, image, title in zip(grid, images, titles):
        _well(axes, image, limits(image) if shared_range is None else shared_range, task)
        axes[0].set_ylabel(title)
    _column_titles(grid[0], task)
    return figure


def _column_titles(row: np.ndarray, task: Task) -> None:
    """Names above the columns, each channel under a strip of its colour in the composite."""
    row[0].set_title("composite", fontsize=10)
    for axes, name, colour in zip(row[1:], task.channels, task.colours):
        axes.set_title(name, fontsize=10)
        axes.spines["top"].set(visible=True, color=np.divide(colour, 255), lw=4)


def _well(axes: np.ndarray, image: np.ndarray, grey_range: np.ndarray, task: Task) -> None:
    """Draw one well into its axes: the composite, then each channel in grey."""
    axes[0].imshow(composite(image, grey_range=grey_range, task=task))
    for panel, channel in zip(axes[1:], scaled(image, grey_range)):
        panel.imshow(channel, cmap="gray", vmin=0, vmax=1)
    for panel in axes:
        hide_ticks(panel)


def hide_ticks(axes: Axes) -> None:
    """Leave nothing of the axes but what is drawn in them."""
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


@styled
def show_composites(images: list[np.ndarray], titles: list[str], *, rows: list[str]) -> Figure:
    """Composites side by side; those with the same name in `rows` share a row and one scale."""
    if not images:
        return blank_figure("No images to show.")
    indices_by_row = {name: [i for i, row in enumerate(rows) if row == name] for name in dict.fromkeys(rows)}
    columns = max(map(len, indices_by_row.values()))
    figure = new_figure(max(5, 2.3 * columns), 2.6 * len(indices_by_row))
    grid = figure.subplots(len(indices_by_row), columns, squeeze=False)
    for axes in grid.flat:
        hide_ticks(axes)
    for panel_row, (name, indices) in zip(grid, indices_by_row.items()):
        panel_row[0].set_ylabel(name)
        grey_range = limits(np.stack([images[i] for i in indices]))
        for axes, i in zip(panel_row, indices):
            axes.imshow(composite(images[i], grey_range=grey_range))
            axes.set_title(titles[i], fontsize=9)
    return figure

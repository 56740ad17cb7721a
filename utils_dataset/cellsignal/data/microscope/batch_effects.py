"""Batch effects that no gain and offset undo: focus, crowding, bleed-through, uneven staining, plate edges, drift."""

from dataclasses import dataclass

import cv2
import numpy as np

from cellsignal.data.microscope.cell_types import even_normals, stream
from cellsignal.data.microscope.cells import FIELD, MAX_OFFSET, noise

CHANNELS = 6
SPECTRUM = np.array([0, 1, 4, 2, 5, 3])  # of channels 1-6, the place of the dye's light from blue to far red
LIGHT_WAVELENGTH = 250.0  # native pixels over which the staining rises and falls
EDGE_REACH = 1.5  # wells over which an edge effect fades
DRIFT_PERIOD = 9.0  # experiments

# Traits that shrink where cells crowd, by the exponent with which they follow the length that a cell has for itself.
CROWDED = {"nuclear_size": 1.0, "er_reach": 1.0, "mitochondria_reach": 1.0, "golgi_distance": 0.5, "nuclear_elongation": 0.5}


@dataclass(frozen=True)
class Effects:
    """Strengths of the effects; 0 is none.

    The sources of the values of `hard` stand in utils_dataset/README.md.
    """

    defocus: float = 0.0  # native pixels of blur, standard deviation of the focus error between experiments
    tilt: float = 0.0  # native pixels of focus error that the picture's border has more than its centre, standard deviation
    density: float = 0.0  # standard deviation of the log number of cells between experiments
    crowding: float = 0.0  # exponent with which cells shrink in area as their number grows; 1 keeps the covered area
    bleed: float = 0.0  # share of a dye's light that the next channel of the spectrum receives, on average
    staining: float = 0.0  # standard deviation of the log staining over a well
    edge: float = 0.0  # log number of cells that a well on the border loses, and three times that: its focus error in native pixels
    drift: float = 0.0  # standard deviation of the log strength of phenotypes between experiments, and half of it along a plate


@dataclass(frozen=True)
class WellEffects:
    """What the effects do to one well."""

    cells: float  # factor on the number of cells
    traits: dict[str, float]  # factors on traits
    phenotype: float  # factor on the siRNA's effect
    defocus: np.ndarray  # float[6], focus error of each channel in native pixels of blur
    tilt: np.ndarray  # float[2], what is added to it from the centre to the lower and to the right border


def bleed_through(effects: Effects, seed: int, experiment: str) -> np.ndarray:
    """One experiment's float32[6, 6]: the light that channel `column` sends to channel `row` besides what all experiments have.

    Filters and exposure times differ between experiments, so each pair of channels has an exponentially distributed
    share of its own, which falls with the distance of the dyes in the spectrum.
    """
    distance = np.abs(SPECTRUM[:, None] - SPECTRUM)
    shares = stream(seed, "bleed", experiment).exponential(size=(CHANNELS, CHANNELS)) * np.exp(1.0 - distance)
    return (effects.bleed * shares * (distance > 0)).astype(np.float32)


def well_effects(effects: Effects, seed: int, *, experiment: str, plate: int, well: str) -> WellEffects:
    """The effects of experiment, plate and position on one well."""
    cell_type, _, number = experiment.rpartition("-")
    cells, common_focus, *rest = even_normals(stream(seed, "effects", cell_type), int(number), 4 + CHANNELS)
    tilt, channel_focus = np.array(rest[:2]), np.array(rest[2:])
    edge = stream(seed, "edge", experiment).exponential()
    rng = stream(seed, "effects", experiment, plate, well)
    focus_error, tilt_error = rng.standard_normal(), rng.standard_normal(2)
    border = edge * edge_closeness(well)
    log_cells = effects.density * cells - effects.edge * border
    return WellEffects(
        cells=float(np.exp(log_cells)),
        traits={name: float(np.exp(-0.5 * effects.crowding * power * log_cells)) for name, power in CROWDED.items()},
        phenotype=float(np.exp(effects.drift * _drift(seed, experiment, plate=plate, column=int(well[1:])))),
        defocus=effects.defocus * (0.7 * common_focus + 0.5 * channel_focus + 0.5 * focus_error) + 3 * effects.edge * border,
        tilt=effects.tilt * (0.8 * tilt + 0.6 * tilt_error),
    )


def edge_closeness(well: str) -> float:
    """1 in the outermost wells that are used, falling towards the middle of the plate."""
    row, column = ord(well[0]) - ord("B"), int(well[1:]) - 2
    return float(np.exp(-min(row, 13 - row, column, 21 - column) / EDGE_REACH))


def _drift(seed: int, experiment: str, *, plate: int, column: int) -> float:
    """Standardised log strength of phenotypes: a slow wave over the experiments of a cell type, and a slope along each plate."""
    cell_type, _, number = experiment.rpartition("-")
    phase = stream(seed, "drift phase", cell_type).random()
    slope = stream(seed, "drift slope", experiment, plate).standard_normal()
    return float(np.sqrt(2) * np.sin(2 * np.pi * (phase + int(number) / DRIFT_PERIOD)) + 0.5 * slope * (column - 12.5) / 6.3)


def staining(
    effects: Effects, seed: int, *, experiment: str, plate: int, well: str, site: int, size: int, pixel_size: float
) -> np.ndarray:
    """Factors float32[6, size, size] on the light of a site: dyes spread unevenly over the well, half of it alike for all.

    The sites of a well are neighbouring parts of the same uneven field.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(pixel_size)
    starts = stream(seed, "staining", experiment, plate, well).random((1 + CHANNELS, 2)) * MAX_OFFSET
    fields = [
        noise("grains", x + np.float32(right + FIELD * site), y=y + np.float32(down), wavelength=LIGHT_WAVELENGTH)
        for right, down in starts
    ]
    uneven = np.sqrt(np.float32(0.5)) * (fields[0] + np.stack(fields[1:]))
    return np.exp(np.float32(effects.staining) * uneven)


def focus_map(defocus: float, tilt: np.ndarray, *, size: int) -> np.ndarray:
    """Focus error float32[size, size] in native pixels of blur, of a field that is tilted out of the focal plane."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    return np.float32(defocus) + np.float32(tilt[0]) * axis[:, None] + np.float32(tilt[1]) * axis[None, :]


def blurred_unevenly(image: np.ndarray, sigma: np.ndarray, *, levels: int = 5) -> np.ndarray:
    """An image float32[H, W] blurred by a Gaussian whose standard deviation, float32[H, W] in pixels, differs from place to place.

    Interpolated between `levels` evenly blurred images.
    """
    sigma = np.maximum(sigma, np.float32(0.1))
    steps = np.linspace(float(sigma.min()), float(sigma.max()) + 1e-3, levels)
    stack = np.stack([cv2.GaussianBlur(image, (0, 0), step, borderType=cv2.BORDER_REFLECT) for step in steps])
    position = ((sigma - steps[0]) / (steps[1] - steps[0])).astype(np.float32)
    lower = np.minimum(position.astype(int), levels - 2)
    rows, columns = np.indices(image.shape)
    part = position - lower
    return (1 - part) * stack[lower, rows, columns] + part * stack[lower + 1, rows, columns]

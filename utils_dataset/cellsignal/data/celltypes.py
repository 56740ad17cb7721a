"""The four cell types as numbers: what untreated wells look like under the real microscope."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CellType:
    """Lengths in native pixels (512 across a field); brightness in 8-bit units.

    `stains` holds one row per channel and one column per component of `cells.COMPONENTS`: how much of each
    component a dye shows, neighbouring dyes' light included. `floor` is the background of each channel.
    """

    nuclei: float  # per 512 x 512 field
    nuclear_radius: float
    elongation: float  # long axis over short axis
    er_reach: float  # distance from the nucleus at which the endoplasmic reticulum fades
    mitochondria_reach: float
    fibre_spacing: float
    fibre_disorder: float  # radians
    gaps: float  # share of the field without cells
    relief: float  # strength of the thickness shared by channels 2-6
    jitter: float  # irregularity of the cells' positions, in units of their distance
    clumping: float  # how far cells gather, in the same units
    variety: float  # spread of the log brightness of one cell to the next
    rounded: float  # share of dying cells
    stains: np.ndarray
    floor: np.ndarray
    gain_spread: np.ndarray  # standard deviation of log mean brightness between real experiments


def _rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


# Columns: nucleus nucleolus er body fibres cortex mitochondria golgi vesicles rounded
CELL_TYPES = {
    "HEPG2": CellType(
        nuclei=400, nuclear_radius=8.9, elongation=1.25, er_reach=9.0, mitochondria_reach=8.0, fibre_spacing=8.0,
        fibre_disorder=1.0, gaps=0.02, relief=0.45, jitter=0.28, clumping=0.16, variety=0.35, rounded=0.015,
        stains=_rows((60, 0, 2, 4, 0, 0, 0, 0, 2, 30), (3, 5, 14, 12, 0, 0, 2, 3, 2, 30), (4, 4, 8, 16, 6, 8, 8, 5, 20, 30),
                     (6, 14, 12, 10, 0, 0, 4, 4, 4, 30), (4, 4, 10, 16, 0, 2, 22, 6, 30, 30), (5, 5, 8, 14, 2, 3, 6, 16, 10, 30)),
        floor=_rows((3, 7, 9, 8, 8, 8))[0],
        gain_spread=_rows((.90, .39, .60, .78, .94, .68))[0],
    ),
    "HUVEC": CellType(
        nuclei=120, nuclear_radius=10.9, elongation=1.40, er_reach=13.0, mitochondria_reach=11.0, fibre_spacing=8.0,
        fibre_disorder=0.35, gaps=0.02, relief=0.20, jitter=0.30, clumping=0.12, variety=0.45, rounded=0.02,
        stains=_rows((28, 0, .3, .4, 0, 0, 0, 0, 0, 30), (4, 9, 38, 7, 0, 0, 3, 2, 2, 30), (1, 0, 3, 5, 11, 9, 1, 1, 1, 30),
                     (5, 12, 20, 3.5, 0, 0, 2, 1, 1, 30), (0, 0, 2, .7, 0, 0, 11, 0, 2, 30), (14, 3, 3, 3.5, 3, 2, 0, 12, 2, 30)),
        floor=_rows((1, 5, 5, 3, 1, 7))[0],
        gain_spread=_rows((.27, .28, .19, .25, .32, .36))[0],
    ),
    "RPE": CellType(
        nuclei=110, nuclear_radius=11.9, elongation=1.45, er_reach=18.0, mitochondria_reach=15.0, fibre_spacing=9.0,
        fibre_disorder=0.45, gaps=0.07, relief=0.35, jitter=0.36, clumping=0.14, variety=0.45, rounded=0.015,
        stains=_rows((20, 0, .5, 1, 0, 0, 0, 0, 0, 30), (2, 3, 16, 5, 0, 0, 2, 2, 1, 30), (0, 0, 4, 7, 16, 8, 1, 2, 1, 30),
                     (3, 9, 10, 4, 0, 0, 2, 1, 1, 30), (0, 0, 2.5, 1.5, 0, 0, 10, 1, 1, 30), (7, 2, 4, 6, 5, 2, 1, 10, 2, 30)),
        floor=_rows((1, 2, 5, 2, 1, 6))[0],
        gain_spread=_rows((.18, .20, .17, .11, .42, .27))[0],
    ),
    "U2OS": CellType(
        nuclei=162, nuclear_radius=11.9, elongation=1.22, er_reach=14.0, mitochondria_reach=10.0, fibre_spacing=8.0,
        fibre_disorder=0.8, gaps=0.03, relief=0.25, jitter=0.33, clumping=0.12, variety=0.35, rounded=0.02,
        stains=_rows((50, 0, .5, 1.5, 0, 0, 0, 0, 1, 30), (4, 5, 20, 5, 0, 0, 4, 3, 4, 30), (1, 1, 4, 5, 9, 7, 1, 2, 2, 30),
                     (5, 14, 12, 4, 0, 0, 2, 2, 2, 30), (0, 0, 2, .7, 0, 0, 9, 0, 3, 30), (17, 4, 5, 6, 3, 2, 1, 14, 4, 30)),
        floor=_rows((1, 3, 5, 3, 1, 6))[0],
        gain_spread=_rows((.36, .72, .38, .60, .98, .50))[0],
    ),
}

"""Parameters of the four cell types, fitted to untreated wells of the real images, and of the siRNAs' effects."""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri


@dataclass(frozen=True)
class CellType:
    """Lengths in native pixels (512 across a field); brightness in 8-bit units.

    `stains` holds one row per channel and one column per component of `cells.COMPONENTS`: how much of each
    component a dye shows, neighbouring dyes' light included. `background` is the background of each channel.
    """

    nuclei: float  # per 512 x 512 field
    nuclear_radius: float
    elongation: float  # long axis over short axis
    er_reach: float  # distance from the nucleus at which the endoplasmic reticulum fades
    mitochondria_reach: float
    fibre_spacing: float
    fibre_disorder: float  # radians
    gaps: float  # share of the field without cells
    long_fibres: float  # how far fibres that cross cells outshine the cells' own
    relief: float  # strength of the thickness shared by channels 2-6
    relief_scale: float  # its finest wavelength
    jitter: float  # irregularity of the cells' positions, in units of their distance
    clumping: float  # how far cells gather, in the same units
    brightness_spread: float  # spread of the log brightness of one cell to the next
    rounded: float  # share of dying cells
    stains: np.ndarray
    background: np.ndarray
    gain_spread: np.ndarray  # standard deviation of log mean brightness between real experiments


def _rows(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


# Columns: nucleus nucleolus er body fibres cortex mitochondria golgi vesicles rounded
CELL_TYPES = {
    "HEPG2": CellType(
        nuclei=480, nuclear_radius=8.5, elongation=1.25, er_reach=9.0, mitochondria_reach=8.0, fibre_spacing=6.5,
        fibre_disorder=1.0, gaps=0.02, long_fibres=-2.0, relief=0.45, relief_scale=7.0,
        jitter=0.28, clumping=0.16, brightness_spread=0.35, rounded=0.015,
        stains=_rows(
            (41, 0, 2.2, 0.78, 0, 0, 0, 0, 2, 34),
            (13, 3.2, 15, 0.66, 0, 0, 1.1, 6.3, 2, 46),
            (8.3, 4.8, 3, 10, 3.7, 3, 5.2, 3.2, 32, 40),
            (16, 9.8, 12, 1.7, 0, 0, 7.9, 2.9, 4.1, 37),
            (15, 4.5, 2.4, 21, 0, 2, 21, 2.7, 66, 40),
            (11, 6.3, 2.1, 5.5, 2.4, 3.1, 5.5, 4.5, 11, 34),
        ),
        background=_rows((0.078, 2.7, 0.089, 1.9, 0.12, 0.057))[0],
        gain_spread=_rows((.95, .39, .66, .82, 1.15, .80))[0],
    ),
    "HUVEC": CellType(
        nuclei=128, nuclear_radius=10.2, elongation=1.40, er_reach=13.0, mitochondria_reach=11.0, fibre_spacing=5.5,
        fibre_disorder=0.35, gaps=0.02, long_fibres=0.3, relief=0.20, relief_scale=20.0,
        jitter=0.30, clumping=0.12, brightness_spread=0.55, rounded=0.02,
        stains=_rows(
            (14, 0, 2.1, 0.33, 0, 0, 0, 0, 0, 47),
            (8.4, 11, 28, 2.1, 0, 0, 4.2, 0.96, 2.1, 39),
            (1.3, 0, 0.83, 1.1, 2, 5.2, 0.43, 1.3, 0.99, 74),
            (7.1, 12, 15, 1.8, 0, 0, 2.1, 0.71, 1, 44),
            (0, 0, 1.9, 0.65, 0, 0, 3.3, 0, 1.8, 68),
            (15, 3.8, 1.2, 4.9, 1.6, 3.2, 0, 9.9, 2, 164),
        ),
        background=_rows((0.37, 3.2, 4.3, 1.4, 0.22, 3.7))[0],
        gain_spread=_rows((.27, .28, .19, .25, .32, .36))[0],
    ),
    "RPE": CellType(
        nuclei=118, nuclear_radius=11.3, elongation=1.45, er_reach=18.0, mitochondria_reach=15.0, fibre_spacing=7.0,
        fibre_disorder=0.45, gaps=0.06, long_fibres=0.3, relief=0.35, relief_scale=20.0,
        jitter=0.36, clumping=0.14, brightness_spread=0.55, rounded=0.03,
        stains=_rows(
            (14, 0, 1.1, 0.36, 0, 0, 0, 0, 0, 14),
            (7.4, 3.6, 10, 2, 0, 0, 6.3, 0.63, 1, 25),
            (0, 0, 0.23, 0.17, 3.8, 8.4, 0.55, 3.4, 0.99, 58),
            (6.4, 15, 6, 3.1, 0, 0, 4.6, 0.77, 1, 21),
            (0, 0, 1.4, 2.5, 0, 0, 2.9, 0.9, 0.98, 76),
            (12, 2.4, 1.2, 1.3, 2.5, 5.2, 0.77, 9.5, 2, 49),
        ),
        background=_rows((2.5, 1.4, 6.1, 2, 0.73, 5))[0],
        gain_spread=_rows((.18, .20, .17, .11, .42, .32))[0],
    ),
    "U2OS": CellType(
        nuclei=172, nuclear_radius=11.3, elongation=1.22, er_reach=14.0, mitochondria_reach=10.0, fibre_spacing=6.5,
        fibre_disorder=0.8, gaps=0.03, long_fibres=0.0, relief=0.25, relief_scale=20.0,
        jitter=0.33, clumping=0.12, brightness_spread=0.35, rounded=0.02,
        stains=_rows(
            (23, 0, 2.1, 0.42, 0, 0, 0, 0, 1, 115),
            (9.5, 5.1, 14, 1.2, 0, 0, 9.5, 3.8, 3.5, 73),
            (1, 1, 2.9, 3, 3.5, 3.6, 0.46, 1.4, 1.9, 65),
            (6.2, 9.3, 7.7, 2.4, 0, 0, 4.5, 1.6, 2.3, 61),
            (0, 0, 0.33, 0.99, 0, 0, 6, 0, 2.4, 51),
            (14, 4.3, 2.3, 4.9, 2.9, 1.9, 1.5, 13, 4.1, 101),
        ),
        background=_rows((1.1, 0.022, 0.046, 0.94, 0.021, 0.2))[0],
        gain_spread=_rows((.36, .75, .38, .70, 1.0, .50))[0],
    ),
}


# The effect of an siRNA: from class number to the traits with which cells are drawn.


UNTREATED = 1138
POSITIVE_CONTROLS = range(1108, UNTREATED)

# Each trait and how far one unit of phenotype moves it, as a natural logarithm. All of them are shape,
# texture or place: none is brightness, because brightness is what the batch effects destroy.
TRAITS = {
    "nuclear_size": 0.13,
    "nuclear_elongation": 0.22,
    "nuclear_lobes": 0.84,
    "chromatin_grain": 0.42,
    "chromatin_contrast": 0.42,
    "nucleolus_number": 0.56,
    "nucleolus_size": 0.35,
    "er_reach": 0.35,
    "er_grain": 0.56,
    "er_contrast": 0.42,
    "mitochondria_reach": 0.42,
    "mitochondria_grain": 0.56,
    "mitochondria_polarity": 0.84,
    "fibre_spacing": 0.56,
    "fibre_disorder": 0.84,
    "fibre_share": 0.49,
    "golgi_distance": 0.56,
    "golgi_spread": 0.49,
    "golgi_fragments": 0.70,
    "vesicle_number": 0.56,
    "clumping": 0.84,
}
SHARED = 0.5  # part of a phenotype's variance that all cell types have in common
# How strongly a cell type shows a phenotype. Small crowded cells hide their texture; with these
# factors the four are about equally hard at the size of the preset `demo`.
RESPONSE = {"HEPG2": 1.45, "HUVEC": 0.85, "RPE": 1.2, "U2OS": 1.0}


def phenotype(seed: int, sirna: int, *, cell_type: str) -> np.ndarray:
    """The latent effect of one siRNA in one cell type: float64[traits]; untreated is 0."""
    if sirna == UNTREATED:
        return np.zeros(len(TRAITS))
    common = stream(seed, "phenotype", sirna).standard_normal(len(TRAITS))
    specific = stream(seed, "phenotype", cell_type, sirna).standard_normal(len(TRAITS))
    return RESPONSE[cell_type] * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * specific)


def traits(latent: np.ndarray) -> dict[str, float]:
    """Factors on a cell type's normal traits; saturating, so that no cell is drawn absurd."""
    bounded = 2.5 * np.tanh(latent / 2.5)
    steps = np.fromiter(TRAITS.values(), float)
    return dict(zip(TRAITS, np.exp(steps * bounded).tolist(), strict=True))


def stream(*key: int | str) -> np.random.Generator:
    """A random generator that depends on `key` alone, never on the order or the process of a call."""
    return np.random.default_rng(np.random.SeedSequence([_words(part) for part in key]))


def even_normals(rng: np.random.Generator, number: int, count: int) -> np.ndarray:
    """`count` (at most 10) standard normal values of a cell type's experiment `number`, which starts at 1.

    `rng` must be the same for all experiments of the cell type: together they then cover the normal distribution
    evenly (an additive recurrence), as few random draws would not.
    """
    quantiles = (rng.random(count) + number * np.sqrt([2, 3, 5, 7, 11, 13, 17, 19, 23, 29][:count])) % 1
    return ndtri(np.clip(quantiles, 0.04, 0.96))


def _words(part: int | str) -> int | np.ndarray:
    # The length in front keeps ("a", "b") and ("ab",) apart; SeedSequence takes an array many times faster than a list.
    return part if isinstance(part, int) else np.array([len(part), *part.encode()], dtype=np.uint32)

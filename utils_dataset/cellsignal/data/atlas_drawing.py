"""One site of the simulated Protein Atlas under its four stains: microtubules, protein, nucleus, endoplasmic reticulum."""

from dataclasses import dataclass

import numpy as np

from cellsignal.data import optics
from cellsignal.data.cells import organelles, settled
from cellsignal.data.celltypes import CELL_TYPES
from cellsignal.data.labels import Labels
from cellsignal.data.phenotypes import TRAITS, stream, traits
from cellsignal.data.proteins import chromosomes, dividing, microtubules, named, pattern, spindle
from cellsignal.data.tissue import Territory

LINES = ("U2OS", "RPE", "HUVEC")  # cell lines; the atlas has 27
SPINDLE = 17  # the class that only cells in division show
DIVIDING = 0.1  # share of the other sites that show such cells too
VARIETY = 0.5  # how far the cells of a site differ from their line's, in units of one siRNA's effect


@dataclass(frozen=True)
class Subject:
    """One site to photograph; `twin_of` is the id that its picture follows from."""

    seed: int
    dataset: str
    id_code: str
    twin_of: str
    labels: Labels
    image_size: int
    pixel_size: float


def photograph(subject: Subject) -> np.ndarray:
    """The camera's picture, uint8[4, H, W], of a site."""
    rng = stream(subject.seed, "atlas", subject.twin_of)
    cell_type = CELL_TYPES[LINES[int(rng.integers(len(LINES)))]]
    looks = traits(VARIETY * rng.standard_normal(len(TRAITS)))
    density = float(np.exp(0.15 * rng.standard_normal()))
    place = settled(rng, subject.image_size, pixel_size=subject.pixel_size, cell_type=cell_type, traits=looks, density=density)
    parts = named(organelles(rng, place, cell_type=cell_type, traits=looks))
    divides = SPINDLE in subject.labels or rng.random() < DIVIDING
    parts["dividing"] = dividing(rng, place) * np.float32(divides)
    light = _stained(rng, place, parts, labels=subject.labels)
    return optics.expose(rng, light, optics=_optics(rng), floor=np.full(4, 1.5), pixel_size=subject.pixel_size)


def _stained(rng: np.random.Generator, place: Territory, parts: dict[str, np.ndarray], *, labels: Labels) -> np.ndarray:
    """Light float32[4, H, W] before the microscope, in 8-bit units."""
    cells = parts["dividing"]
    threads = microtubules(rng, place, parts) * place.ground
    nucleus = parts["nucleus"] * (1 - cells) + np.float32(1.6) * chromosomes(place, cells)
    red = np.float32(75) * (threads * (1 - np.float32(0.7) * cells) + spindle(place, cells)) + np.float32(14) * parts["body"]
    protein = np.float32(6) * parts["body"] + np.float32(2) * parts["nucleus"]  # what an antibody binds to besides
    for label in labels:
        strength = np.float32(150 * rng.uniform(0.45, 1.0))
        protein = protein + strength * np.minimum(pattern(label, rng, place, parts=parts), np.float32(1.4))
    return np.stack([red, protein, np.float32(130) * nucleus, np.float32(80) * parts["er"]]).astype(np.float32)


def _optics(rng: np.random.Generator) -> optics.Optics:
    """Confocal pictures are sharp and evenly lit; their brightness is set by hand, site by site."""
    bleed = np.eye(4, dtype=np.float32) + np.float32(0.02) * (1 - np.eye(4, dtype=np.float32))
    return optics.Optics(
        gain=np.exp(0.3 * rng.standard_normal(4)),
        offset=0.5 * rng.random(4),
        blur=0.6 + 0.4 * rng.random(4),
        vignette=0.1 * rng.random(4),
        centre=0.5 + 0.1 * (rng.random(2) - 0.5),
        bleed=bleed,
    )

"""Drawing cells: the organelles of one site, sampled at the camera's pixels, as light in six channels."""

import numpy as np

from cellsignal.data.celltypes import CellType
from cellsignal.data.tissue import Territory, noise, positions, settle, _turned, _step

COMPONENTS = ("nucleus", "nucleolus", "er", "body", "fibres", "cortex", "mitochondria", "golgi", "vesicles")


def draw(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> np.ndarray:
    """Light of one site before the microscope: float32[6, size, size], 8-bit units, background left out.

    `traits` are factors by name (`phenotypes.traits`), `density` a factor on the number of cells.
    """
    centres = positions(
        rng, size * pixel_size, nuclei=cell_type.nuclei * density, jitter=cell_type.jitter,
        clumping=0.12 * traits["clumping"],
    )
    place = settle(rng, centres, size=size, pixel_size=pixel_size, cell_type=cell_type, traits=traits)
    parts = np.stack(_components(rng, place, cell_type=cell_type, traits=traits))
    light = np.einsum("kc,chw->khw", cell_type.stains, parts)
    relief = noise("clouds", place.x + rng.random() * 4000, y=place.y + rng.random() * 4000, wavelength=40)
    light[1:] *= np.exp(np.float32(cell_type.relief) * relief)
    return light


def _components(
    rng: np.random.Generator, place: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, ...]:
    inside = _step(-place.rim, 0.8)
    outside = (1 - inside) * place.ground
    strength = np.exp(0.25 * rng.standard_normal((3, place.cells))).astype(np.float32)
    # Every cell sees its own piece of the noise tiles.
    x = place.x + (rng.random(place.cells) * 4000).astype(np.float32)[place.cell]
    y = place.y + (rng.random(place.cells) * 4000).astype(np.float32)[place.cell]
    away = np.maximum(place.rim, 0)
    fibres, cortex = _actin(rng, place, cell_type=cell_type, traits=traits)
    return (
        inside * strength[0][place.cell] * _chromatin(x, y, traits=traits),
        inside * _nucleoli(rng, place, traits=traits),
        outside * strength[1][place.cell] * _reticulum(away, x, y=y, cell_type=cell_type, traits=traits),
        place.ground * np.minimum(0.5 + place.border / 20, 1),
        place.ground * fibres,
        place.ground * cortex,
        outside * strength[2][place.cell] * _mitochondria(rng, place, x, y=y, cell_type=cell_type, traits=traits),
        outside * _golgi(rng, place, x, y=y, traits=traits),
        outside * _vesicles(x, y, traits=traits),
    )


def _chromatin(x: np.ndarray, y: np.ndarray, *, traits: dict[str, float]) -> np.ndarray:
    grain = noise("grains", x, y=y, wavelength=6.5 * traits["chromatin_grain"])
    return np.exp(np.float32(0.16 * traits["chromatin_contrast"]) * grain)


def _nucleoli(rng: np.random.Generator, place: Territory, *, traits: dict[str, float]) -> np.ndarray:
    """Up to four bright bodies in every nucleus."""
    total = np.zeros_like(place.rim)
    chance = 0.55 * traits["nucleolus_number"]
    size = np.float32(1.9 * traits["nucleolus_size"])
    for k in range(4):
        there = (rng.random(place.cells) < (1.0 if k == 0 else chance)).astype(np.float32)
        u, v = ((rng.random((2, place.cells)) - 0.5) * 1.1).astype(np.float32) * place.radius
        away = (place.u - u[place.cell]) ** 2 + (place.v - v[place.cell]) ** 2
        total = np.maximum(total, there[place.cell] * np.exp(-away / (2 * size**2)))
    return total


def _reticulum(away: np.ndarray, x: np.ndarray, *, y: np.ndarray, cell_type: CellType, traits: dict[str, float]) -> np.ndarray:
    reach = np.float32(cell_type.er_reach * traits["er_reach"])
    grain = noise("grains", x + 1000, y=y, wavelength=8 * traits["er_grain"])
    return np.exp(-away / reach + np.float32(0.35 * traits["er_contrast"]) * grain)


def _mitochondria(
    rng: np.random.Generator, place: Territory, x: np.ndarray, *, y: np.ndarray, cell_type: CellType,
    traits: dict[str, float],
) -> np.ndarray:
    """Threads (ridges of a noise) around the nucleus, denser on one side."""
    reach = np.float32(cell_type.mitochondria_reach * traits["mitochondria_reach"])
    ridge = np.exp(-2.5 * noise("grains", x + 2000, y=y, wavelength=11 * traits["mitochondria_grain"]) ** 2)
    side = (rng.random(place.cells) * 2 * np.pi).astype(np.float32)[place.cell]
    polar = np.exp(np.float32(0.45 * traits["mitochondria_polarity"]) * np.cos(place.angle - side))
    return 1.6 * ridge * polar * np.exp(-((np.maximum(place.rim, 0) / reach) ** 2))


def _actin(
    rng: np.random.Generator, place: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Stress fibres along each cell's direction, and the cortex along its membrane."""
    common = rng.random() * np.pi
    disorder = cell_type.fibre_disorder * traits["fibre_disorder"]
    layers = []
    for turn in (0.0, 0.6):
        bend = noise("clouds", place.x + rng.random() * 4000, y=place.y, wavelength=50)
        direction = common + turn + disorder * rng.standard_normal(place.cells)
        along, across = _turned(place.x, place.y, direction.astype(np.float32)[place.cell])
        offset = (rng.random(place.cells) * 4000).astype(np.float32)[place.cell]
        spacing = cell_type.fibre_spacing * traits["fibre_spacing"]
        thread = noise("fibres", along + offset, y=across + offset + 4 * bend, wavelength=spacing)
        layers.append(np.exp(0.7 * thread))
    share = np.float32(traits["fibre_share"])
    return 0.5 * (layers[0] + layers[1]) * share, 2 * np.exp(-np.maximum(place.border, 0) / 1.8) / share


def _golgi(rng: np.random.Generator, place: Territory, x: np.ndarray, *, y: np.ndarray, traits: dict[str, float]) -> np.ndarray:
    """A ribbon on one side of the nucleus, whole or in fragments."""
    side = (rng.random(place.cells) * 2 * np.pi).astype(np.float32)[place.cell]
    distance = np.float32(4 * traits["golgi_distance"])
    spread = np.float32(0.5 * traits["golgi_spread"])
    aside = np.abs((place.angle - side + np.pi) % (2 * np.pi) - np.pi)
    ribbon = np.exp(-((aside / spread) ** 2) / 2 - ((place.rim - distance) / 2.5) ** 2 / 2)
    pieces = noise("grains", x + 3000, y=y, wavelength=7)
    return 1.5 * ribbon * np.exp(np.float32(0.5 * traits["golgi_fragments"]) * pieces)


def _vesicles(x: np.ndarray, y: np.ndarray, *, traits: dict[str, float]) -> np.ndarray:
    grain = noise("grains", x + 500, y=y + 2500, wavelength=8)
    return 2 * _step(grain - np.float32(2.1 / traits["vesicle_number"] ** 0.5), 0.15)

"""Drawing cells: the organelles of one site, sampled at the camera's pixels, as light in six channels."""

import numpy as np

from cellsignal.data.celltypes import CellType
from cellsignal.data.textures import FAR, noise, shifted, step
from cellsignal.data.tissue import Territory, positions, settle, turned

COMPONENTS = (
    "nucleus", "nucleolus", "er", "body", "fibres", "cortex", "mitochondria", "golgi", "vesicles", "rounded",
)


def draw(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> np.ndarray:
    """Light of one site before the microscope: float32[6, size, size], 8-bit units, background left out.

    `traits` are factors by name (`phenotypes.traits`), `density` a factor on the number of cells.
    """
    parts = components(rng, size, pixel_size=pixel_size, cell_type=cell_type, traits=traits, density=density)
    return np.einsum("kc,chw->khw", cell_type.stains, parts)


def components(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> np.ndarray:
    """What a site is made of: float32[len(COMPONENTS), size, size], each about 1 where it is strong."""
    place = settled(rng, size, pixel_size=pixel_size, cell_type=cell_type, traits=traits, density=density)
    return organelles(rng, place, cell_type=cell_type, traits=traits)


def settled(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> Territory:
    """Where the cells of a site lie, and which pixel belongs to which."""
    centres = positions(
        rng, size * pixel_size, nuclei=cell_type.nuclei * density, jitter=cell_type.jitter,
        clumping=cell_type.clumping * traits["clumping"],
    )
    return settle(rng, centres, size=size, pixel_size=pixel_size, cell_type=cell_type, traits=traits)


def organelles(
    rng: np.random.Generator, place: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """What settled cells are made of: float32[len(COMPONENTS), size, size]."""
    parts = np.stack(_organelles(rng, place, cell_type=cell_type, traits=traits))
    x, y = shifted(rng, place.x, y=place.y)
    relief = noise("clouds", x, y=y, wavelength=cell_type.relief_scale)
    parts[2:] *= place.ground * np.exp(np.float32(cell_type.relief) * relief)
    return parts


def _organelles(
    rng: np.random.Generator, place: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, ...]:
    inside = step(-place.rim, 0.8) * place.rooted
    outside = step(place.rim, 0.8)
    away = np.maximum(place.rim, 0)
    spread = np.float32(cell_type.variety) * np.array([[0.5], [1], [1]], dtype=np.float32)
    vary = np.exp(spread * rng.standard_normal((3, place.cells), dtype=np.float32))[:, place.cell]
    # Every cell sees its own piece of the noise tiles, and has one pole where its organelles gather.
    x, y = (rng.random((2, place.cells)) * FAR).astype(np.float32)[:, place.cell] + np.stack([place.x, place.y])
    pole = np.cos(place.angle - (rng.random(place.cells) * 2 * np.pi).astype(np.float32)[place.cell])
    fibres, cortex = _actin(rng, place, cell_type=cell_type, traits=traits)
    return (
        inside * vary[0] * _chromatin(x, y, traits=traits),
        inside * _nucleoli(rng, place, traits=traits),
        outside * vary[1] * _reticulum(away, x, y=y, pole=pole, cell_type=cell_type, traits=traits),
        vary[1] * _body(away, border=place.border, cell_type=cell_type),
        fibres,
        cortex,
        outside * vary[2] * _mitochondria(away, x, y=y, pole=pole, cell_type=cell_type, traits=traits),
        outside * _golgi(place.rim, x, y=y, pole=pole, traits=traits),
        outside * _vesicles(x, y, away=away, traits=traits),
        _rounded(rng, place, cell_type=cell_type),
    )


def _conserved(area: float, *, contrast: float, factor: float) -> np.float32:
    """What keeps an organelle's total light when its area and the contrast of its texture grow by factors.

    Dyes are conserved, and a phenotype must show in shape and texture, not in a channel's mean.
    `contrast` is the normal standard deviation of the texture's logarithm.
    """
    return np.float32(np.exp(contrast**2 * (1 - factor**2) / 2) / area)


def _chromatin(x: np.ndarray, y: np.ndarray, *, traits: dict[str, float]) -> np.ndarray:
    """Granules; a larger nucleus is paler, because it holds no more DNA."""
    grain = noise("grains", x, y=y, wavelength=6.5 * traits["chromatin_grain"])
    return np.exp(np.float32(0.16 * traits["chromatin_contrast"]) * grain) / np.float32(traits["nuclear_size"])


def _nucleoli(rng: np.random.Generator, place: Territory, *, traits: dict[str, float]) -> np.ndarray:
    """One to four bright bodies in every nucleus."""
    total = np.zeros_like(place.rim)
    chance = 0.55 * traits["nucleolus_number"]
    narrow = np.float32(1 / (2 * (1.9 * traits["nucleolus_size"]) ** 2))
    for k in range(4):
        there = (rng.random(place.cells) < (1.0 if k == 0 else chance)).astype(np.float32)
        u, v = ((rng.random((2, place.cells)) - 0.5) * 1.1).astype(np.float32) * place.radius
        away = (place.u - u[place.cell]) ** 2 + (place.v - v[place.cell]) ** 2
        total = np.maximum(total, there[place.cell] * np.exp(-away * narrow))
    return total / np.float32(traits["nucleolus_size"])


def _body(away: np.ndarray, *, border: np.ndarray, cell_type: CellType) -> np.ndarray:
    """The cell's thickness: highest over the nucleus, with a furrow towards the neighbour."""
    mound = np.exp(-away / np.float32(1.3 * cell_type.nuclear_radius))
    return (np.float32(0.3) + np.float32(0.7) * mound) * (1 - np.float32(0.4) * np.exp(-np.maximum(border, 0) / 3))


def _reticulum(
    away: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """A granular veil that fades from the nucleus outwards, thicker at the pole."""
    reach = np.float32(cell_type.er_reach * traits["er_reach"])
    grain = noise("grains", x + 1000, y=y, wavelength=8 * traits["er_grain"])
    veil = np.exp(np.float32(0.35 * traits["er_contrast"]) * grain + np.float32(0.4) * pole - away / reach)
    return veil * _conserved(traits["er_reach"] ** 0.8, contrast=0.35, factor=traits["er_contrast"])


def _mitochondria(
    away: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """Threads (ridges of a noise) around the nucleus, denser at the pole."""
    reach = np.float32(cell_type.mitochondria_reach * traits["mitochondria_reach"])
    ridge = noise("grains", x + 2000, y=y, wavelength=10 * traits["mitochondria_grain"])
    polarity = np.float32(0.5 * traits["mitochondria_polarity"])
    near = 1 - np.float32(0.7) * np.exp(-away / 3)
    threads = np.float32(1.8) * near * np.exp(polarity * pole - np.float32(2.5) * ridge**2 - away / reach)
    area, factor = traits["mitochondria_reach"], traits["mitochondria_polarity"]
    return threads * _conserved(area, contrast=0.35, factor=factor)


def _actin(
    rng: np.random.Generator, place: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Stress fibres, short ones of each cell and long ones across cells, and the cortex along the membrane."""
    x, y = shifted(rng, place.x, y=place.y)
    bend = noise("clouds", x, y=y, wavelength=120)
    spacing = cell_type.fibre_spacing * traits["fibre_spacing"]
    spread = cell_type.fibre_disorder * traits["fibre_disorder"]
    direction = (place.course + spread * rng.standard_normal(place.cells)).astype(np.float32)[place.cell]
    along, across = turned(x, y, direction)
    short = noise("fibres", along, y=across + np.float32(6) * bend, wavelength=spacing)
    along, across = turned(x + FAR, y, place.course.mean() + np.float32(0.5 * spread * rng.standard_normal()))
    long = noise("fibres", along, y=across + np.float32(25) * bend, wavelength=spacing)
    fibres = np.maximum(short, long + np.float32(cell_type.long_fibres))
    patches = np.float32(0.35) * noise("clouds", x + FAR, y=y, wavelength=12)
    share = np.float32(traits["fibre_share"])
    cortex = 2 * np.exp(-np.maximum(place.border, 0) / np.float32(1.8))
    return share * np.exp(np.float32(0.7) * fibres + patches), cortex / share


def _golgi(rim: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, traits: dict[str, float]) -> np.ndarray:
    """A ribbon at the nucleus' pole, whole or in fragments."""
    narrow = np.float32(2 / traits["golgi_spread"] ** 2)
    distance = np.float32(4 * traits["golgi_distance"])
    pieces = np.float32(0.5 * traits["golgi_fragments"]) * noise("grains", x + 3000, y=y, wavelength=7)
    ribbon = np.float32(1.5) * np.exp(narrow * (pole - 1) - ((rim - distance) / np.float32(3.5)) ** 2 + pieces)
    return ribbon * _conserved(traits["golgi_spread"], contrast=0.5, factor=traits["golgi_fragments"])


def _vesicles(x: np.ndarray, y: np.ndarray, *, away: np.ndarray, traits: dict[str, float]) -> np.ndarray:
    grain = noise("grains", x + 500, y=y + 2500, wavelength=8)
    dots = step(grain - np.float32(2.0 / traits["vesicle_number"] ** 0.5), 0.15) * np.exp(-away / 30)
    return dots / np.float32(traits["vesicle_number"])


def _rounded(rng: np.random.Generator, place: Territory, *, cell_type: CellType) -> np.ndarray:
    """Dying cells that round up: small and bright under every dye."""
    there = (rng.random(place.cells) < cell_type.rounded).astype(np.float32)
    size = (rng.uniform(0.35, 0.75, place.cells) * cell_type.nuclear_radius).astype(np.float32)
    u, v = (rng.standard_normal((2, place.cells)) * 5).astype(np.float32)
    away = (place.u - u[place.cell]) ** 2 + (place.v - v[place.cell]) ** 2
    return there[place.cell] * np.exp(-away / (2 * size[place.cell] ** 2))

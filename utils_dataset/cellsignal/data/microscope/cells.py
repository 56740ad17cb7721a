"""Drawing cells: the organelles of one site as light in six channels."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtri

from cellsignal.data.microscope.cell_types import CellType

# Noise textures: periodic tiles computed once and sampled at any scale, and smooth steps.


TILE = 512  # pixels across a tile
GRAIN = 8.0  # tile pixels per wavelength
MAX_OFFSET = 4000.0  # native pixels; random offsets up to this give independent parts of a tile


@cache
def tile(kind: str) -> np.ndarray:
    """A periodic image float32[512, 512], zero mean and unit variance, 8 pixels a wavelength.

    `grains` is isotropic, `fibres` is stretched along x, `clouds` holds all wavelengths from 8 up.
    """
    frequency = np.fft.fftfreq(TILE)
    fy, fx = frequency[:, None] * GRAIN, frequency[None, :] * GRAIN
    radius = np.hypot(fx, fy)
    filters = {
        "grains": np.exp(-((radius - 1) ** 2) / 0.12),
        "fibres": np.exp(-((np.abs(fy) - 0.9) ** 2) / 0.45 - (fx / 0.07) ** 2),
        "clouds": np.where(radius > 0, np.exp(-(radius**2)) / np.maximum(radius, 4 * GRAIN / TILE) ** 1.2, 0),
    }
    white = np.random.default_rng([len(kind), *kind.encode()]).standard_normal((TILE, TILE))
    pattern = np.fft.ifft2(np.fft.fft2(white) * filters[kind]).real
    return ((pattern - pattern.mean()) / pattern.std()).astype(np.float32)


@cache
def _padded_tile(kind: str) -> np.ndarray:
    """The tile with its first rows and columns again at the end, so that a lookup can cross the seam."""
    return np.pad(tile(kind), ((0, 2), (0, 2)), mode="wrap")


def noise(kind: str, x: np.ndarray, *, y: np.ndarray, wavelength: float) -> np.ndarray:
    """The tile looked up at coordinates float32[H, W] in native pixels, scaled to `wavelength` of them."""
    scale = np.float32(GRAIN / wavelength)
    return cv2.remap(_padded_tile(kind), _wrapped(x * scale), _wrapped(y * scale), cv2.INTER_LINEAR)


def _wrapped(coordinate: np.ndarray) -> np.ndarray:
    """Modulo the tile's side, many times faster than NumPy's for floats."""
    return coordinate - np.float32(TILE) * np.floor(coordinate * np.float32(1 / TILE))


def shifted_grid(rng: np.random.Generator, x: np.ndarray, *, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates shifted by a random offset."""
    right, down = (rng.random(2) * MAX_OFFSET).astype(np.float32)
    return x + right, y + down


def smooth_step(value: np.ndarray, width: float) -> np.ndarray:
    """A soft step from 0 to 1 at value 0, `width` wide."""
    return np.float32(0.5) + np.float32(0.5) * np.tanh(value / np.float32(2 * width))


# Positions of cells and the assignment of pixels to them: clumps, gaps, territories, nuclei.


FIELD = 512.0  # native pixels across a real field
MARGIN = 32.0  # cells centred this far outside still reach into the image


@dataclass(frozen=True)
class Nuclei:
    """Shapes, float32[cells] each."""

    radius: np.ndarray  # native pixels
    elongation: np.ndarray  # long axis over short axis
    bumps: np.ndarray  # depth of the lobes, in radii
    phase: np.ndarray  # where the lobes are, radians
    axis: np.ndarray  # direction of the long axis, radians


@dataclass(frozen=True)
class Territory:
    """Each pixel's position in its cell: float32[H, W], lengths in native pixels."""

    x: np.ndarray
    y: np.ndarray
    cell: np.ndarray  # int[H, W], the nearest cell
    cells: int
    u: np.ndarray  # along the nucleus' long axis, from its centre
    v: np.ndarray
    angle: np.ndarray  # of (u, v), radians
    radius: np.ndarray  # float32[cells], of the nucleus
    tissue_direction: np.ndarray  # float32[cells], direction in which the tissue runs there, radians
    border_distance: np.ndarray  # distance to the neighbour's territory
    nuclear_distance: np.ndarray  # distance outside the nuclear envelope, negative inside
    coverage: np.ndarray  # 1 where cells lie, 0 in gaps
    nucleus_covered: np.ndarray  # 1 where the pixel's cell has its nucleus outside gaps


def positions(rng: np.random.Generator, extent: float, *, nuclei: float, jitter: float, clumping: float) -> np.ndarray:
    """Cell centres float32[N, 2] on a disturbed hexagonal lattice, drawn together into clumps.

    `extent` is the side of the image in native pixels, `nuclei` the number of cells in a 512-pixel field;
    `jitter` and `clumping` are in units of the lattice's spacing.
    """
    spacing = FIELD / np.sqrt(nuclei * np.sqrt(0.75))
    reach = int((extent + 2 * MARGIN) / spacing * 0.85) + 3
    j, i = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    turn, *shift = rng.random(3)
    lattice = rotated(i + 0.5 * (j % 2), j * np.sqrt(0.75), turn * np.pi)
    points = (np.stack(lattice, axis=1) + shift) * spacing + extent / 2
    distance = np.abs(points - extent / 2).max(axis=1)
    points = points[distance <= max(extent / 2 + MARGIN, np.partition(distance, 1)[1])]  # two at least: each needs a neighbour
    points = (points + rng.standard_normal(points.shape) * jitter * spacing).astype(np.float32)
    x, y = points[:, :1], points[:, 1:]
    starts = [shifted_grid(rng, x, y=y) for _ in range(2)]
    bend = [noise("clouds", right, y=down, wavelength=spacing) for right, down in starts]
    return points + np.concatenate(bend, axis=1) * np.float32(clumping * spacing)


def place_cells(
    rng: np.random.Generator, centres: np.ndarray, *, size: int, pixel_size: float, cell_type: CellType,
    traits: dict[str, float],
) -> Territory:
    """Assign every pixel to its nearest cell and compute its position in the cell."""
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(pixel_size)
    cell, border = _territories(rng, centres, x, y=y)
    right, down = shifted_grid(rng, centres[:, :1], y=centres[:, 1:])
    tissue_direction = 0.8 * noise("clouds", right, y=down, wavelength=25)[:, 0] + np.float32(rng.random() * np.pi)
    start = (rng.random(2) * MAX_OFFSET).astype(np.float32)
    nuclei = _nuclei(rng, tissue_direction, cell_type=cell_type, traits=traits)
    u, v = rotated(x - centres[cell, 0], y - centres[cell, 1], nuclei.axis[cell])
    angle = np.arctan2(v, u)
    nucleus_covered = _coverage(centres[:, :1], centres[:, 1:], start=start, gaps=cell_type.gaps)
    return Territory(
        x=x, y=y, cell=cell, cells=len(centres), u=u, v=v, angle=angle, radius=nuclei.radius, tissue_direction=tissue_direction,
        border_distance=border, nuclear_distance=_nuclear_distance(u, v, angle=angle, cell=cell, nuclei=nuclei),
        coverage=_coverage(x, y, start=start, gaps=cell_type.gaps), nucleus_covered=nucleus_covered[cell, 0],
    )


def _territories(
    rng: np.random.Generator, centres: np.ndarray, x: np.ndarray, *, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest cell of each pixel, and the distance to the next cell's territory; borders are wavy."""
    right, down = shifted_grid(rng, x, y=y)
    warp = [np.float32(3) * noise("clouds", right + k, y=down, wavelength=6) for k in (0, MAX_OFFSET / 2)]
    distance, nearest = cKDTree(centres).query(np.stack([x + warp[0], y + warp[1]], axis=-1), k=2)
    centre_distance = np.maximum(np.linalg.norm(centres[nearest[..., 0]] - centres[nearest[..., 1]], axis=-1), 1)
    border = (distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * centre_distance)
    return nearest[..., 0], border.astype(np.float32)


def _nuclei(rng: np.random.Generator, tissue_direction: np.ndarray, *, cell_type: CellType, traits: dict[str, float]) -> Nuclei:
    variation = rng.standard_normal((4, len(tissue_direction))).astype(np.float32)
    extra_length = np.float32((cell_type.elongation - 1) * traits["nuclear_elongation"])
    return Nuclei(
        radius=np.float32(cell_type.nuclear_radius * traits["nuclear_size"]) * np.exp(np.float32(0.13) * variation[0]),
        elongation=1 + extra_length * np.exp(np.float32(0.4) * variation[1]),
        bumps=np.float32(0.05 * traits["nuclear_lobes"]) * np.exp(np.float32(0.3) * variation[2]),
        phase=(rng.random(len(tissue_direction)) * 2 * np.pi).astype(np.float32),
        axis=tissue_direction + np.float32(0.7) * variation[3],
    )


def _nuclear_distance(u: np.ndarray, v: np.ndarray, *, angle: np.ndarray, cell: np.ndarray, nuclei: Nuclei) -> np.ndarray:
    stretch = np.sqrt(nuclei.elongation)[cell]
    lobes = 1 + nuclei.bumps[cell] * np.cos(3 * angle + nuclei.phase[cell])
    return np.hypot(u / stretch, v * stretch) - nuclei.radius[cell] * lobes


def _coverage(x: np.ndarray, y: np.ndarray, *, start: np.ndarray, gaps: float) -> np.ndarray:
    """1 where cells cover the glass, 0 in gaps, which take about the share `gaps` of the field."""
    right, down = x + start[0], y + start[1]
    relief = noise("grains", right, y=down, wavelength=200)
    relief += np.float32(0.3) * noise("clouds", right + 1000, y=down, wavelength=16)
    return smooth_step(relief - np.float32(1.04 * ndtri(gaps)), 0.05)


def rotated(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a direction given in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


COMPONENTS = (
    "nucleus", "nucleolus", "er", "body", "fibres", "cortex", "mitochondria", "golgi", "vesicles", "rounded",
)


def draw(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> np.ndarray:
    """Light of one site before the microscope: float32[6, size, size], 8-bit units, background left out.

    `traits` are factors by name (`cell_types.traits`), `density` a factor on the number of cells.
    """
    parts = components(rng, size, pixel_size=pixel_size, cell_type=cell_type, traits=traits, density=density)
    return np.einsum("kc,chw->khw", cell_type.stains, parts)


def components(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> np.ndarray:
    """The components of a site: float32[len(COMPONENTS), size, size], each about 1 where it is bright."""
    territory = draw_territory(rng, size, pixel_size=pixel_size, cell_type=cell_type, traits=traits, density=density)
    return organelles(rng, territory, cell_type=cell_type, traits=traits)


def draw_territory(
    rng: np.random.Generator, size: int, *, pixel_size: float, cell_type: CellType, traits: dict[str, float],
    density: float = 1.0,
) -> Territory:
    """The cells of a site and the assignment of pixels to them."""
    centres = positions(
        rng, size * pixel_size, nuclei=cell_type.nuclei * density, jitter=cell_type.jitter,
        clumping=cell_type.clumping * traits["clumping"],
    )
    return place_cells(rng, centres, size=size, pixel_size=pixel_size, cell_type=cell_type, traits=traits)


def organelles(
    rng: np.random.Generator, territory: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """The components of cells that are placed: float32[len(COMPONENTS), size, size]."""
    parts = np.stack(_organelles(rng, territory, cell_type=cell_type, traits=traits))
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    relief = noise("clouds", x, y=y, wavelength=cell_type.relief_scale)
    parts[2:] *= territory.coverage * np.exp(np.float32(cell_type.relief) * relief)
    return parts


def _organelles(
    rng: np.random.Generator, territory: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, ...]:
    inside = smooth_step(-territory.nuclear_distance, 0.8) * territory.nucleus_covered
    outside = smooth_step(territory.nuclear_distance, 0.8)
    nuclear_distance = np.maximum(territory.nuclear_distance, 0)
    spread = np.float32(cell_type.brightness_spread) * np.array([[0.5], [1], [1]], dtype=np.float32)
    variation = np.exp(spread * rng.standard_normal((3, territory.cells), dtype=np.float32))[:, territory.cell]
    # Every cell samples its own part of the noise tiles, and has one pole where its organelles gather.
    x, y = (rng.random((2, territory.cells)) * MAX_OFFSET).astype(np.float32)[:, territory.cell] + np.stack([territory.x, territory.y])
    pole = np.cos(territory.angle - (rng.random(territory.cells) * 2 * np.pi).astype(np.float32)[territory.cell])
    fibres, cortex = _actin(rng, territory, cell_type=cell_type, traits=traits)
    return (
        inside * variation[0] * _chromatin(x, y, traits=traits),
        inside * _nucleoli(rng, territory, traits=traits),
        outside * variation[1] * _reticulum(nuclear_distance, x, y=y, pole=pole, cell_type=cell_type, traits=traits),
        variation[1] * _body(nuclear_distance, border_distance=territory.border_distance, cell_type=cell_type),
        fibres,
        cortex,
        outside * variation[2] * _mitochondria(nuclear_distance, x, y=y, pole=pole, cell_type=cell_type, traits=traits),
        outside * _golgi(territory.nuclear_distance, x, y=y, pole=pole, traits=traits),
        outside * _vesicles(x, y, nuclear_distance=nuclear_distance, traits=traits),
        _rounded(rng, territory, cell_type=cell_type),
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


def _nucleoli(rng: np.random.Generator, territory: Territory, *, traits: dict[str, float]) -> np.ndarray:
    """One to four bright bodies in every nucleus."""
    total = np.zeros_like(territory.nuclear_distance)
    chance = 0.55 * traits["nucleolus_number"]
    narrow = np.float32(1 / (2 * (1.9 * traits["nucleolus_size"]) ** 2))
    for k in range(4):
        present = (rng.random(territory.cells) < (1.0 if k == 0 else chance)).astype(np.float32)
        u, v = ((rng.random((2, territory.cells)) - 0.5) * 1.1).astype(np.float32) * territory.radius
        distance_squared = (territory.u - u[territory.cell]) ** 2 + (territory.v - v[territory.cell]) ** 2
        total = np.maximum(total, present[territory.cell] * np.exp(-distance_squared * narrow))
    return total / np.float32(traits["nucleolus_size"])


def _body(nuclear_distance: np.ndarray, *, border_distance: np.ndarray, cell_type: CellType) -> np.ndarray:
    """The cell's thickness: highest over the nucleus, with a furrow towards the neighbour."""
    mound = np.exp(-nuclear_distance / np.float32(1.3 * cell_type.nuclear_radius))
    return (np.float32(0.3) + np.float32(0.7) * mound) * (1 - np.float32(0.4) * np.exp(-np.maximum(border_distance, 0) / 3))


def _reticulum(
    nuclear_distance: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """A granular veil that fades from the nucleus outwards, thicker at the pole."""
    reach = np.float32(cell_type.er_reach * traits["er_reach"])
    grain = noise("grains", x + 1000, y=y, wavelength=8 * traits["er_grain"])
    veil = np.exp(np.float32(0.35 * traits["er_contrast"]) * grain + np.float32(0.4) * pole - nuclear_distance / reach)
    return veil * _conserved(traits["er_reach"] ** 0.8, contrast=0.35, factor=traits["er_contrast"])


def _mitochondria(
    nuclear_distance: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, cell_type: CellType, traits: dict[str, float]
) -> np.ndarray:
    """Threads (ridges of a noise) around the nucleus, denser at the pole."""
    reach = np.float32(cell_type.mitochondria_reach * traits["mitochondria_reach"])
    ridge = noise("grains", x + 2000, y=y, wavelength=10 * traits["mitochondria_grain"])
    polarity = np.float32(0.5 * traits["mitochondria_polarity"])
    nuclear_gap = 1 - np.float32(0.7) * np.exp(-nuclear_distance / 3)
    threads = np.float32(1.8) * nuclear_gap * np.exp(polarity * pole - np.float32(2.5) * ridge**2 - nuclear_distance / reach)
    area, factor = traits["mitochondria_reach"], traits["mitochondria_polarity"]
    return threads * _conserved(area, contrast=0.35, factor=factor)


def _actin(
    rng: np.random.Generator, territory: Territory, *, cell_type: CellType, traits: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Stress fibres, short ones of each cell and long ones across cells, and the cortex along the membrane."""
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    bend = noise("clouds", x, y=y, wavelength=120)
    spacing = cell_type.fibre_spacing * traits["fibre_spacing"]
    spread = cell_type.fibre_disorder * traits["fibre_disorder"]
    direction = (territory.tissue_direction + spread * rng.standard_normal(territory.cells)).astype(np.float32)[territory.cell]
    along, across = rotated(x, y, direction)
    short = noise("fibres", along, y=across + np.float32(6) * bend, wavelength=spacing)
    along, across = rotated(x + MAX_OFFSET, y, territory.tissue_direction.mean() + np.float32(0.5 * spread * rng.standard_normal()))
    long = noise("fibres", along, y=across + np.float32(25) * bend, wavelength=spacing)
    fibres = np.maximum(short, long + np.float32(cell_type.long_fibres))
    patches = np.float32(0.35) * noise("clouds", x + MAX_OFFSET, y=y, wavelength=12)
    share = np.float32(traits["fibre_share"])
    cortex = 2 * np.exp(-np.maximum(territory.border_distance, 0) / np.float32(1.8))
    return share * np.exp(np.float32(0.7) * fibres + patches), cortex / share


def _golgi(rim: np.ndarray, x: np.ndarray, *, y: np.ndarray, pole: np.ndarray, traits: dict[str, float]) -> np.ndarray:
    """A ribbon at the nucleus' pole, whole or in fragments."""
    narrow = np.float32(2 / traits["golgi_spread"] ** 2)
    distance = np.float32(4 * traits["golgi_distance"])
    pieces = np.float32(0.5 * traits["golgi_fragments"]) * noise("grains", x + 3000, y=y, wavelength=7)
    ribbon = np.float32(1.5) * np.exp(narrow * (pole - 1) - ((rim - distance) / np.float32(3.5)) ** 2 + pieces)
    return ribbon * _conserved(traits["golgi_spread"], contrast=0.5, factor=traits["golgi_fragments"])


def _vesicles(x: np.ndarray, y: np.ndarray, *, nuclear_distance: np.ndarray, traits: dict[str, float]) -> np.ndarray:
    grain = noise("grains", x + 500, y=y + 2500, wavelength=8)
    dots = smooth_step(grain - np.float32(2.0 / traits["vesicle_number"] ** 0.5), 0.15) * np.exp(-nuclear_distance / 30)
    return dots / np.float32(traits["vesicle_number"])


def _rounded(rng: np.random.Generator, territory: Territory, *, cell_type: CellType) -> np.ndarray:
    """Dying cells that round up: small and bright under every dye."""
    present = (rng.random(territory.cells) < cell_type.rounded).astype(np.float32)
    size = (rng.uniform(0.35, 0.75, territory.cells) * cell_type.nuclear_radius).astype(np.float32)
    u, v = (rng.standard_normal((2, territory.cells)) * 5).astype(np.float32)
    distance_squared = (territory.u - u[territory.cell]) ** 2 + (territory.v - v[territory.cell]) ** 2
    return present[territory.cell] * np.exp(-distance_squared / (2 * size[territory.cell] ** 2))

"""Protein patterns: the 28 classes of the Protein Atlas, drawn in the cells of the virtual microscope."""

from collections.abc import Callable

import numpy as np

from cellsignal.data.microscope.cells import COMPONENTS, MAX_OFFSET, Territory, noise, rotated, shifted_grid, smooth_step

Pattern = np.ndarray  # float32[H, W], about 1 where the protein is
Parts = dict[str, np.ndarray]  # of `cells.organelles`, by name


def pattern(label: int, rng: np.random.Generator, territory: Territory, *, parts: Parts) -> Pattern:
    """The pattern of one class number, none of it in gaps; its brightest hundredth is at 1 or above."""
    image = PATTERNS[label](rng, territory, parts) * territory.coverage
    return image / np.float32(max(np.percentile(image, 99), 0.35 * float(image.max()), 1e-3))


def by_component(parts: np.ndarray) -> Parts:
    """The organelles of a site by their names."""
    return dict(zip(COMPONENTS, parts))


def _inside(territory: Territory) -> Pattern:
    return smooth_step(-territory.nuclear_distance, 0.8) * territory.nucleus_covered


def _outside(territory: Territory) -> Pattern:
    return smooth_step(territory.nuclear_distance, 0.8)


def _nuclear_distance(territory: Territory) -> Pattern:
    return np.maximum(territory.nuclear_distance, 0)


def _at_border(territory: Territory, *, width: float, depth: float = 0.0) -> Pattern:
    """1 at `depth` pixels inside the border between two cells, falling off over `width`."""
    return np.exp(-(((np.maximum(territory.border_distance, 0) - depth) / width) ** 2)).astype(np.float32)


def _spots(
    rng: np.random.Generator, territory: Territory, *, number: int, size: float, between: tuple[float, float], chance: float = 1.0,
    stretch: float = 1.0, hollow: float = 0.0,
) -> Pattern:
    """In each cell so many bright spots, each there by `chance`, between two distances from the nucleus' middle in its radii.

    `size` in native pixels; `stretch` makes rods of them, `hollow` (a radius in native pixels) rings.
    """
    total = np.zeros_like(territory.nuclear_distance)
    for _ in range(number):
        present = (rng.random(territory.cells) < chance).astype(np.float32)[territory.cell]
        angle = rng.random(territory.cells) * 2 * np.pi
        reach = rng.uniform(*between, territory.cells) * territory.radius
        u, v = (reach * np.cos(angle)).astype(np.float32), (reach * np.sin(angle)).astype(np.float32)
        along, across = rotated(territory.u - u[territory.cell], territory.v - v[territory.cell], (2 * angle).astype(np.float32)[territory.cell])
        distance = np.hypot(along / np.float32(stretch), across) - np.float32(hollow)
        total = np.maximum(total, present * np.exp(-((distance / np.float32(size)) ** 2) / 2))
    return total


def _dots(rng: np.random.Generator, territory: Territory, *, wavelength: float, rarity: float) -> Pattern:
    """Dots strewn over the cells: the peaks of a noise, `rarity` standard deviations up."""
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    return smooth_step(noise("grains", x, y=y, wavelength=wavelength) - np.float32(rarity), 0.15)


def _nucleoplasm(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    return _inside(territory) * (np.float32(0.8) + np.float32(0.25) * _dots(rng, territory, wavelength=6, rarity=0.3))


def _membrane_of_nucleus(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    return np.exp(-((territory.nuclear_distance / np.float32(1.2)) ** 2)) * territory.nucleus_covered


def _speckles(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    return smooth_step(-territory.nuclear_distance - 1, 0.8) * territory.nucleus_covered * (np.float32(0.12) + _dots(rng, territory, wavelength=5.5, rarity=0.7))


def _fibrillar_centers(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """Tiny spots in the middle of the nucleus, close together."""
    return _spots(rng, territory, number=9, size=0.9, between=(0.0, 0.42)) * _inside(territory)


def _intermediate_filaments(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """A net of bent fibres, densest around the nucleus."""
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    bend = np.float32(9) * noise("clouds", x, y=y, wavelength=22)
    direction = territory.tissue_direction[territory.cell]
    along, across = rotated(x, y, direction)
    net = noise("fibres", along, y=across + bend, wavelength=6)
    return _outside(territory) * np.exp(np.float32(0.9) * net - _nuclear_distance(territory) / np.float32(11))


def _focal_adhesions(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """Short streaks just inside the cell's edge."""
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    along, across = rotated(x, y, territory.tissue_direction[territory.cell])
    streaks = smooth_step(noise("fibres", np.float32(3) * along, y=across, wavelength=5) - np.float32(0.8), 0.15)
    return streaks * (_at_border(territory, width=3.5, depth=3.5) + np.float32(0.1)) * _outside(territory)


def microtubules(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """Threads that run from the nucleus to the edge, bent a little."""
    start = (rng.random(territory.cells) * MAX_OFFSET).astype(np.float32)[territory.cell]
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    bend = np.float32(3) * noise("clouds", x, y=y, wavelength=14)
    threads = noise("fibres", _nuclear_distance(territory), y=start + np.float32(13) * np.abs(territory.angle) + bend, wavelength=4.2)
    return _outside(territory) * np.exp(np.float32(0.85) * threads - _nuclear_distance(territory) / np.float32(22))


def _ends(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    return _dots(rng, territory, wavelength=4, rarity=0.9) * _at_border(territory, width=3.0, depth=3.0) * _outside(territory)


def _bridges(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """One or two short bars across the line between two cells, with a dark middle."""
    total = np.zeros_like(territory.nuclear_distance)
    for angle in rng.random(int(rng.integers(1, 3))) * np.pi:
        score = np.maximum(territory.border_distance, 0) + np.float32(3) * rng.random(territory.nuclear_distance.shape, dtype=np.float32) + 50 * (1 - territory.coverage)
        margin = np.minimum.reduce([territory.x, territory.y, territory.x.max() - territory.x, territory.y.max() - territory.y])
        row, column = np.unravel_index(np.argmin(score + 50 * (margin < 8)), score.shape)
        along, across = rotated(territory.x - territory.x[row, column], territory.y - territory.y[row, column], np.float32(angle))
        bar = np.exp(-((along / np.float32(6)) ** 2) - (across / np.float32(1.5)) ** 2)
        total = np.maximum(total, bar * (1 - np.float32(0.8) * np.exp(-(along**2) / 2)))
    return total


def dividing(rng: np.random.Generator, territory: Territory) -> np.ndarray:
    """1 in the cells that divide, which is one or two near the middle of the image; float32[H, W]."""
    dividing_cells = [int(territory.cell[row, column]) for row, column in rng.integers(territory.cell.shape[0] // 4, 3 * territory.cell.shape[0] // 4, (2, 2))]
    return np.isin(territory.cell, dividing_cells).astype(np.float32)


def spindle(territory: Territory, cells: np.ndarray) -> Pattern:
    """Two cones that meet where the chromosomes stand, in the cells that divide."""
    along, across = territory.u / np.float32(9), territory.v / (np.float32(2.2) + np.float32(0.35) * np.maximum(9 - np.abs(territory.u), 0))
    return cells * np.exp(-(along**4) - across**2)


def chromosomes(territory: Territory, cells: np.ndarray) -> Pattern:
    """The plate of condensed chromosomes across the spindle of cells that divide."""
    return cells * np.exp(-((territory.u / np.float32(1.8)) ** 2) - (territory.v / np.float32(7.5)) ** 4)


def _spindles(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    return spindle(territory, parts["dividing"])


def _organizing_center(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """One broad spot beside the nucleus, with a halo."""
    return _spots(rng, territory, number=1, size=2.6, between=(1.25, 1.5)) + np.float32(0.12) * microtubules(rng, territory, parts)


def _aggresomes(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """One large lump beside the nucleus of most cells, in a pale cytoplasm."""
    return _spots(rng, territory, number=1, size=4.2, between=(1.4, 1.7), chance=0.7) * _outside(territory) + np.float32(0.12) * parts["body"]


def _junctions(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    """The line between two cells, in pieces."""
    return _at_border(territory, width=1.5) * _dots(rng, territory, wavelength=15, rarity=0.0)


def _cytosol(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    x, y = shifted_grid(rng, territory.x, y=territory.y)
    return parts["body"] * (np.float32(0.25) + np.float32(0.75) * _outside(territory)) * np.exp(np.float32(0.12) * noise("clouds", x, y=y, wavelength=6))


def _rods_and_rings(rng: np.random.Generator, territory: Territory, parts: Parts) -> Pattern:
    rods = _spots(rng, territory, number=1, size=1.0, stretch=5, between=(0.6, 1.6))
    return np.maximum(rods, _spots(rng, territory, number=1, size=0.8, hollow=3.2, between=(0.9, 1.7), chance=0.8))


def _part(name: str) -> Callable[..., Pattern]:
    return lambda rng, territory, parts: parts[name]


def _dotted(wavelength: float, rarity: float, reach: float) -> Callable[..., Pattern]:
    """Dots in the cytoplasm that become fewer within so many pixels from the nucleus."""
    return lambda rng, territory, parts: (
        _dots(rng, territory, wavelength=wavelength, rarity=rarity) * _outside(territory) * np.exp(-_nuclear_distance(territory) / np.float32(reach))
    )


def _spotted(number: int, size: float, between: tuple[float, float], **shape: float) -> Callable[..., Pattern]:
    return lambda rng, territory, parts: _spots(rng, territory, number=number, size=size, between=between, **shape)


# By class number, in the order of tasks.PROTEIN_ATLAS.class_names.
PATTERNS: tuple[Callable[[np.random.Generator, Territory, Parts], Pattern], ...] = (
    _nucleoplasm,
    _membrane_of_nucleus,
    _part("nucleolus"),
    _fibrillar_centers,
    _speckles,
    _spotted(4, 1.2, (0.2, 0.8), chance=0.8),  # nuclear bodies
    _part("er"),
    _part("golgi"),
    _dotted(4.2, 1.2, 60.0),  # peroxisomes: many and tiny
    _dotted(8.0, 1.3, 60.0),  # endosomes: fewer, larger
    _dotted(7.0, 0.5, 5.0),  # lysosomes: crowded around the nucleus
    _intermediate_filaments,
    _part("fibres"),
    _focal_adhesions,
    microtubules,
    _ends,
    _bridges,
    _spindles,
    _organizing_center,
    _spotted(2, 0.9, (1.1, 1.3)),  # centrosomes: two tiny spots at the nucleus
    _spotted(7, 0.7, (1.2, 2.0), hollow=1.9),  # lipid droplets: small rings
    lambda rng, territory, parts: _at_border(territory, width=1.6),  # plasma membrane
    _junctions,
    _part("mitochondria"),
    _aggresomes,
    _cytosol,
    _spotted(3, 1.7, (1.3, 2.1), chance=0.9),  # cytoplasmic bodies
    _rods_and_rings,
)

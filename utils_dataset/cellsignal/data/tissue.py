"""Where cells lie and which pixel belongs to which: positions, clumps, gaps, territories, nuclei."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtri

from cellsignal.data.celltypes import CellType
from cellsignal.data.textures import FAR, noise, shifted, step

FIELD = 512.0  # native pixels across a real field
MARGIN = 32.0  # cells centred this far outside still reach into the picture


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
    """Each pixel's place in its cell: float32[H, W], lengths in native pixels."""

    x: np.ndarray
    y: np.ndarray
    cell: np.ndarray  # int[H, W], the nearest cell
    cells: int
    u: np.ndarray  # along the nucleus' long axis, from its centre
    v: np.ndarray
    angle: np.ndarray  # of (u, v), radians
    radius: np.ndarray  # float32[cells], of the nucleus
    course: np.ndarray  # float32[cells], direction in which the tissue runs there, radians
    border: np.ndarray  # distance to the neighbour's territory
    rim: np.ndarray  # distance outside the nuclear envelope, negative inside
    ground: np.ndarray  # 1 where cells lie, 0 in gaps
    rooted: np.ndarray  # 1 where the pixel's cell has its nucleus outside gaps


def positions(rng: np.random.Generator, extent: float, *, nuclei: float, jitter: float, clumping: float) -> np.ndarray:
    """Cell centres float32[N, 2] on a disturbed hexagonal lattice, drawn together into clumps.

    `extent` is the side of the picture in native pixels, `nuclei` the number of cells in a 512-pixel field;
    `jitter` and `clumping` are in units of the lattice's spacing.
    """
    spacing = FIELD / np.sqrt(nuclei * np.sqrt(0.75))
    reach = int((extent + 2 * MARGIN) / spacing * 0.85) + 3
    j, i = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    turn, *shift = rng.random(3)
    lattice = turned(i + 0.5 * (j % 2), j * np.sqrt(0.75), turn * np.pi)
    points = (np.stack(lattice, axis=1) + shift) * spacing + extent / 2
    points = points[np.abs(points - extent / 2).max(axis=1) < extent / 2 + MARGIN]
    points = (points + rng.standard_normal(points.shape) * jitter * spacing).astype(np.float32)
    x, y = points[:, :1], points[:, 1:]
    starts = [shifted(rng, x, y=y) for _ in range(2)]
    bend = [noise("clouds", right, y=down, wavelength=spacing) for right, down in starts]
    return points + np.concatenate(bend, axis=1) * np.float32(clumping * spacing)


def settle(
    rng: np.random.Generator, centres: np.ndarray, *, size: int, pixel_size: float, cell_type: CellType,
    traits: dict[str, float],
) -> Territory:
    """Give every pixel to its nearest cell and measure where in the cell it lies."""
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(pixel_size)
    cell, border = _territories(rng, centres, x, y=y)
    right, down = shifted(rng, centres[:, :1], y=centres[:, 1:])
    course = 0.8 * noise("clouds", right, y=down, wavelength=25)[:, 0] + np.float32(rng.random() * np.pi)
    start = (rng.random(2) * FAR).astype(np.float32)
    nuclei = _nuclei(rng, course, cell_type=cell_type, traits=traits)
    u, v = turned(x - centres[cell, 0], y - centres[cell, 1], nuclei.axis[cell])
    angle = np.arctan2(v, u)
    rooted = _ground(centres[:, :1], centres[:, 1:], start=start, gaps=cell_type.gaps)
    return Territory(
        x=x, y=y, cell=cell, cells=len(centres), u=u, v=v, angle=angle, radius=nuclei.radius, course=course,
        border=border, rim=_rim(u, v, angle=angle, cell=cell, nuclei=nuclei),
        ground=_ground(x, y, start=start, gaps=cell_type.gaps), rooted=rooted[cell, 0],
    )


def _territories(
    rng: np.random.Generator, centres: np.ndarray, x: np.ndarray, *, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest cell of each pixel, and the distance to the next cell's territory; borders are wavy."""
    right, down = shifted(rng, x, y=y)
    warp = [np.float32(3) * noise("clouds", right + k, y=down, wavelength=6) for k in (0, FAR / 2)]
    distance, nearest = cKDTree(centres).query(np.stack([x + warp[0], y + warp[1]], axis=-1), k=2)
    apart = np.maximum(np.linalg.norm(centres[nearest[..., 0]] - centres[nearest[..., 1]], axis=-1), 1)
    border = (distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * apart)
    return nearest[..., 0], border.astype(np.float32)


def _nuclei(rng: np.random.Generator, course: np.ndarray, *, cell_type: CellType, traits: dict[str, float]) -> Nuclei:
    vary = rng.standard_normal((4, len(course))).astype(np.float32)
    longer = np.float32((cell_type.elongation - 1) * traits["nuclear_elongation"])
    return Nuclei(
        radius=np.float32(cell_type.nuclear_radius * traits["nuclear_size"]) * np.exp(np.float32(0.13) * vary[0]),
        elongation=1 + longer * np.exp(np.float32(0.4) * vary[1]),
        bumps=np.float32(0.05 * traits["nuclear_lobes"]) * np.exp(np.float32(0.3) * vary[2]),
        phase=(rng.random(len(course)) * 2 * np.pi).astype(np.float32),
        axis=course + np.float32(0.7) * vary[3],
    )


def _rim(u: np.ndarray, v: np.ndarray, *, angle: np.ndarray, cell: np.ndarray, nuclei: Nuclei) -> np.ndarray:
    stretch = np.sqrt(nuclei.elongation)[cell]
    lobes = 1 + nuclei.bumps[cell] * np.cos(3 * angle + nuclei.phase[cell])
    return np.hypot(u / stretch, v * stretch) - nuclei.radius[cell] * lobes


def _ground(x: np.ndarray, y: np.ndarray, *, start: np.ndarray, gaps: float) -> np.ndarray:
    """1 where cells cover the glass, 0 in gaps, which take about the share `gaps` of the field."""
    right, down = x + start[0], y + start[1]
    relief = noise("grains", right, y=down, wavelength=200)
    relief += np.float32(0.3) * noise("clouds", right + 1000, y=down, wavelength=16)
    return step(relief - np.float32(1.04 * ndtri(gaps)), 0.05)


def turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along and across a direction given in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin

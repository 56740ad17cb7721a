"""Where cells lie and which pixel belongs to which: positions, clumps, gaps, territories, nuclei."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from scipy.special import ndtri
from scipy.spatial import cKDTree

from cellsignal.data.celltypes import CellType

FIELD = 512.0  # native pixels across a real field
MARGIN = 32.0  # cells centred this far outside still reach into the picture
TILE = 512  # pixels across a noise tile
GRAIN = 8.0  # tile pixels per wavelength


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
    axis: np.ndarray  # float32[cells], direction of the long axis, radians
    radius: np.ndarray  # float32[cells], mean radius of the nucleus
    border: np.ndarray  # distance to the neighbour's territory
    rim: np.ndarray  # distance outside the nuclear envelope, negative inside
    ground: np.ndarray  # 1 where cells lie, 0 in gaps


@cache
def tile(kind: str) -> np.ndarray:
    """A periodic noise picture float32[512, 512], zero mean and unit variance, 8 pixels a wavelength.

    `grains` is isotropic, `fibres` is stretched along x, `clouds` holds all wavelengths from 8 up.
    """
    frequency = np.fft.fftfreq(TILE)
    fy, fx = frequency[:, None] * GRAIN, frequency[None, :] * GRAIN
    radius = np.hypot(fx, fy)
    filters = {
        "grains": np.exp(-((radius - 1) ** 2) / 0.12),
        "fibres": np.exp(-((np.abs(fy) - 1) ** 2) / 0.18 - (fx / 0.10) ** 2),
        "clouds": np.where(radius > 0, np.exp(-(radius**2)) / np.maximum(radius, GRAIN / TILE) ** 1.2, 0),
    }
    white = np.random.default_rng([len(kind), *kind.encode()]).standard_normal((TILE, TILE))
    picture = np.fft.ifft2(np.fft.fft2(white) * filters[kind]).real
    return ((picture - picture.mean()) / picture.std()).astype(np.float32)


def noise(kind: str, x: np.ndarray, *, y: np.ndarray, wavelength: float) -> np.ndarray:
    """The noise tile looked up at native coordinates, its wavelength scaled to `wavelength` pixels."""
    scale = np.float32(GRAIN / wavelength)
    # Wrapped here, because remap's own wrapping repeats the last row.
    return cv2.remap(_rimmed(kind), x * scale % TILE, y * scale % TILE, cv2.INTER_LINEAR)


@cache
def _rimmed(kind: str) -> np.ndarray:
    return np.pad(tile(kind), ((0, 2), (0, 2)), mode="wrap")


def positions(rng: np.random.Generator, extent: float, *, nuclei: float, jitter: float, clumping: float) -> np.ndarray:
    """Cell centres float32[N, 2] on a disturbed hexagonal lattice, drawn together into clumps."""
    spacing = FIELD / np.sqrt(nuclei * np.sqrt(0.75))
    reach = int((extent + 2 * MARGIN) / spacing * 0.85) + 3
    j, i = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    lattice = np.stack([i + 0.5 * (j % 2), j * np.sqrt(0.75)], axis=1) * spacing
    turn, *shift = rng.random(3)
    cos, sin = np.cos(turn * np.pi), np.sin(turn * np.pi)
    points = lattice @ np.array([[cos, sin], [-sin, cos]]) + extent / 2 + np.array(shift) * spacing
    points = points[np.abs(points - extent / 2).max(axis=1) < extent / 2 + MARGIN]
    points = (points + rng.standard_normal(points.shape) * jitter * spacing).astype(np.float32)
    start = rng.random((2, 2, 1)).astype(np.float32) * 4000
    bend = [noise("clouds", points[:, :1] + x, y=points[:, 1:] + y, wavelength=spacing) for x, y in start]
    return points + np.concatenate(bend, axis=1) * np.float32(clumping * spacing)


def settle(
    rng: np.random.Generator, centres: np.ndarray, *, size: int, pixel_size: float, cell_type: CellType,
    traits: dict[str, float],
) -> Territory:
    """Give every pixel to its nearest cell and measure where in the cell it lies."""
    y, x = np.mgrid[:size, :size].astype(np.float32) * np.float32(pixel_size)
    start = rng.random(6).astype(np.float32) * 4000
    holes = noise("grains", x + start[0], y=y + start[1], wavelength=150)
    holes += 0.4 * noise("clouds", x + start[2], y=y + start[3], wavelength=12)
    ground = _step(holes - _gap_level(cell_type.gaps), 0.06)
    warp = [noise("clouds", x + start[k], y=y + start[k + 1], wavelength=14) * np.float32(3) for k in (2, 4)]
    distance, nearest = cKDTree(centres).query(np.stack([x + warp[0], y + warp[1]], axis=-1), k=2)
    cell, other = nearest[..., 0], nearest[..., 1]
    apart = np.maximum(np.linalg.norm(centres[cell] - centres[other], axis=-1), 1)
    border = ((distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * apart)).astype(np.float32)
    shape = _nuclei(rng, len(centres), cell_type=cell_type, traits=traits)
    u, v = _turned(x - centres[cell, 0], y - centres[cell, 1], shape["axis"][cell])
    angle = np.arctan2(v, u)
    bumps = shape["bumps"][cell] * np.cos(3 * angle + shape["phase"][cell])
    stretch = np.sqrt(shape["elongation"])[cell]
    rim = np.hypot(u / stretch, v * stretch) - shape["radius"][cell] * (1 + bumps)
    return Territory(
        x=x, y=y, cell=cell, cells=len(centres), u=u, v=v, angle=angle, axis=shape["axis"], radius=shape["radius"],
        border=border, rim=rim, ground=ground,
    )


def _nuclei(rng: np.random.Generator, count: int, *, cell_type: CellType, traits: dict[str, float]) -> dict[str, np.ndarray]:
    """Shapes of the nuclei, one value per cell."""
    vary = rng.standard_normal((3, count)).astype(np.float32)
    long = (cell_type.elongation - 1) * traits["nuclear_elongation"] * 1.5
    return {
        "radius": cell_type.nuclear_radius * traits["nuclear_size"] * np.exp(0.13 * vary[0]),
        "elongation": 1 + long * np.exp(0.4 * vary[1]) / 1.5,
        "bumps": 0.05 * traits["nuclear_lobes"] * np.exp(0.3 * vary[2]),
        "axis": (rng.random(count) * np.pi).astype(np.float32),
        "phase": (rng.random(count) * 2 * np.pi).astype(np.float32),
    }


def _gap_level(share: float) -> np.float32:
    return np.float32(ndtri(share) * 1.08) if share else np.float32(-9)


def _turned(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _step(value: np.ndarray, width: float) -> np.ndarray:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(value / np.float32(2 * width))

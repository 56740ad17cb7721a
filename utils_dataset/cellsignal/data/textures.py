"""Noise to draw with: periodic tiles made once, looked up at any scale, and soft steps."""

from functools import cache

import cv2
import numpy as np

TILE = 512  # pixels across a tile
GRAIN = 8.0  # tile pixels per wavelength
FAR = 4000.0  # native pixels; offsets up to here give unrelated pieces of a tile


@cache
def tile(kind: str) -> np.ndarray:
    """A periodic picture float32[512, 512], zero mean and unit variance, 8 pixels a wavelength.

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
    picture = np.fft.ifft2(np.fft.fft2(white) * filters[kind]).real
    return ((picture - picture.mean()) / picture.std()).astype(np.float32)


@cache
def _rimmed(kind: str) -> np.ndarray:
    """The tile with its first rows and columns again at the end, so that a lookup can cross the seam."""
    return np.pad(tile(kind), ((0, 2), (0, 2)), mode="wrap")


def noise(kind: str, x: np.ndarray, *, y: np.ndarray, wavelength: float) -> np.ndarray:
    """The tile looked up at coordinates float32[H, W] in native pixels, scaled to `wavelength` of them."""
    scale = np.float32(GRAIN / wavelength)
    return cv2.remap(_rimmed(kind), _wrapped(x * scale), _wrapped(y * scale), cv2.INTER_LINEAR)


def _wrapped(place: np.ndarray) -> np.ndarray:
    """Modulo the tile's side, many times faster than NumPy's for floats."""
    return place - np.float32(TILE) * np.floor(place * np.float32(1 / TILE))


def shifted(rng: np.random.Generator, x: np.ndarray, *, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates moved to a random piece of the tiles."""
    right, down = (rng.random(2) * FAR).astype(np.float32)
    return x + right, y + down


def step(value: np.ndarray, width: float) -> np.ndarray:
    """A soft step from 0 to 1 at value 0, `width` wide."""
    return np.float32(0.5) + np.float32(0.5) * np.tanh(value / np.float32(2 * width))

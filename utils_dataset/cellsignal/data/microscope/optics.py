"""Optics and batch effects: how experiment, plate, well and camera change the light of the cells."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from cellsignal.data.microscope.batch_effects import CHANNELS, WellEffects, blurred_unevenly, focus_map
from cellsignal.data.microscope.cell_types import even_normals

HAZE = np.float32(0.25)  # share of the light that is out of focus
HAZE_REACH = 8.0  # native pixels


@dataclass(frozen=True)
class Optics:
    """The optics of one plate; one value per channel unless stated otherwise."""

    gain: np.ndarray
    offset: np.ndarray  # 8-bit units
    blur: np.ndarray  # standard deviation, native pixels
    vignette: np.ndarray  # loss of light towards the corners
    centre: np.ndarray  # float[2], where the light is brightest, in fields
    bleed: np.ndarray  # float32[6, 6], light that reaches neighbouring channels


def experiment_optics(
    rng: np.random.Generator, brightness: np.ndarray, *, gain_spread: np.ndarray, strength: float
) -> Optics:
    """Draw one experiment's optics; `strength` 1 has the spread of the real experiments, 0 has none.

    `brightness` is the experiment's row of `brightness`, `gain_spread` the cell type's, float[6] each.
    """
    bleed = np.abs(rng.standard_normal((CHANNELS, CHANNELS))) * 0.03 * strength
    np.fill_diagonal(bleed, 1)
    return Optics(
        gain=np.exp(strength * gain_spread * brightness),
        offset=strength * 0.6 * rng.random(CHANNELS),
        blur=0.8 + strength * (0.8 * rng.random(CHANNELS) - 0.3),
        vignette=strength * 0.35 * rng.random(CHANNELS),
        centre=0.5 + 0.2 * strength * (rng.random(2) - 0.5),
        bleed=bleed.astype(np.float32),
    )


def brightness(rng: np.random.Generator, number: int) -> np.ndarray:
    """Standard normal log brightness float[6] of a cell type's experiment `number`, which starts at 1.

    `rng` must be the same for all experiments of the cell type (`even_normals`). Channels correlate by 0.6, as the
    real ones do.
    """
    common, *per_channel = even_normals(rng, number, 1 + CHANNELS)
    return np.sqrt(0.6) * common + np.sqrt(0.4) * np.array(per_channel)


def scaled(optics: Optics, gain: np.ndarray) -> Optics:
    """The same optics, brighter by a factor per channel."""
    return replace(optics, gain=optics.gain * gain)


def plate_gain(rng: np.random.Generator, *, strength: float) -> np.ndarray:
    """A plate's own brightness: float[6], a factor."""
    return np.exp(0.08 * strength * rng.standard_normal(CHANNELS))


def well_gain(rng: np.random.Generator, row: int, *, column: int, strength: float) -> np.ndarray:
    """A well's own brightness: float[6], a factor; wells near the plate's edge are dimmer."""
    common, per_channel = rng.standard_normal(), rng.standard_normal(CHANNELS)
    edge = np.exp(-min(row - 1, 14 - row, column - 2, 23 - column) / 1.5)
    return np.exp(strength * (0.15 * common + 0.15 * per_channel - 0.15 * edge))


def expose(
    rng: np.random.Generator, light: np.ndarray, *, optics: Optics, background: np.ndarray, pixel_size: float,
    well: WellEffects | None = None,
) -> np.ndarray:
    """Turn light float32[C, H, W] into the camera's image uint8[C, H, W].

    `background`: in 8-bit units. `well` adds its focus error; without it the whole field is in focus.
    """
    signal = np.einsum("kc,chw->khw", optics.bleed, light)
    for channel in range(len(light)):
        sigma = optics.blur[channel] / pixel_size
        if well is not None and (well.defocus.any() or well.tilt.any()):
            error = focus_map(well.defocus[channel], well.tilt, size=light.shape[-1]) / np.float32(pixel_size)
            signal[channel] = blurred_unevenly(signal[channel], np.hypot(error, np.float32(sigma)))
            sigma = 0.0
        signal[channel] = _blurred(signal[channel], sigma, haze=HAZE, halo_sigma=HAZE_REACH / pixel_size)
    shading = _shading(light.shape[-1], optics=optics)
    signal *= shading * _per_channel(optics.gain)
    signal += _per_channel(background * np.sqrt(optics.gain) + optics.offset)
    grain = rng.standard_normal(signal.shape, dtype=np.float32)
    signal += grain * np.sqrt(0.1 + 0.02 * np.maximum(signal, 0))
    return np.clip(np.rint(signal), 0, 255).astype(np.uint8)


def _blurred(image: np.ndarray, sigma: float, *, haze: float, halo_sigma: float) -> np.ndarray:
    """Focus blur, and the wide halo that light from above and below the focal plane adds."""
    sharp = cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1), borderType=cv2.BORDER_REFLECT)
    halo = cv2.GaussianBlur(image, (0, 0), halo_sigma, borderType=cv2.BORDER_REFLECT)
    return (1 - haze) * sharp + haze * halo


def _per_channel(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _shading(size: int, *, optics: Optics) -> np.ndarray:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    distance_squared = (axis[:, None] - optics.centre[0]) ** 2 + (axis[None, :] - optics.centre[1]) ** 2
    return 1 - _per_channel(optics.vignette) * np.float32(2) * distance_squared.astype(np.float32)

"""What untreated wells look like, measured on real ones, and the same measures for simulated ones."""

import cv2
import numpy as np
from scipy import ndimage

# Real untreated wells (B02, site 1, 512 x 512): nuclei per site, medians by channel of the dimmest and the
# brightest experiment measured, slopes of the power spectrum by channel, correlations between channels
# 12 13 14 15 16 23 24 25 26 34 35 36 45 46 56. HEPG2 is the mean of two experiments, all others are one.
REAL = {
    "HEPG2": (
        410, ((6, 24, 20, 16, 28, 15), (50, 30, 53, 52, 79, 44)), (3.65, 3.15, 3.0, 3.05, 2.95, 3.05),
        (.28, .32, .46, .36, .48, .75, .95, .77, .78, .81, .94, .96, .85, .88, .93),
    ),
    "HUVEC": (
        120, ((2, 17, 12, 10, 2, 14),) * 2, (3.4, 3.2, 2.6, 3.2, 2.8, 3.2),
        (.31, .21, .47, .27, .81, .33, .98, .66, .51, .36, .40, .61, .67, .63, .51),
    ),
    "RPE": (
        106, ((4, 11, 17, 10, 4, 16),) * 2, (3.5, 3.1, 2.7, 3.1, 3.3, 2.9),
        (.30, .07, .47, .26, .59, .33, .95, .75, .59, .34, .41, .75, .73, .68, .58),
    ),
    "U2OS": (
        162, ((4, 12, 12, 9, 2, 16),) * 2, (3.6, 3.1, 2.6, 3.1, 2.7, 3.0),
        (.32, .24, .51, .22, .72, .56, .95, .73, .69, .61, .49, .71, .70, .81, .51),
    ),
}


def nuclei(image: np.ndarray) -> int:
    """Nuclei in channel 1: smoothed, thresholded by Otsu, counted as peaks of the distance transform."""
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 2)
    scale = 255 / smooth.max()
    level, _ = cv2.threshold((smooth * scale).astype(np.uint8), 0, 255, cv2.THRESH_OTSU)
    inside = ndimage.binary_fill_holes(smooth * scale > level)
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), 1)
    peaks = (depth == ndimage.maximum_filter(depth, 11)) & (depth > 2)
    return int(ndimage.label(peaks)[1])


def slope(image: np.ndarray) -> float:
    """Exponent of the fall of the radial power spectrum between 8 and 128 cycles per image."""
    size = image.shape[0]
    window = np.outer(np.hanning(size), np.hanning(size))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    frequency = np.fft.fftfreq(size) * size
    radius = np.hypot(frequency[:, None], frequency).astype(int).ravel()
    radial = np.bincount(radius, power.ravel()) / np.bincount(radius)
    cycles = np.arange(8, 129)
    return -float(np.polyfit(np.log(cycles), np.log(radial[cycles]), 1)[0])


def measure(image: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Nuclei, medians, slopes and correlations of one site uint8[6, 512, 512], as in REAL."""
    flat = image.reshape(6, -1)
    return (
        nuclei(image[0]), np.median(flat, axis=1), np.array([slope(channel) for channel in image]),
        np.corrcoef(flat)[np.triu_indices(6, 1)],
    )


def mean_measure(images: list[np.ndarray]) -> list[np.ndarray]:
    """The means of `measure` over sites; medians as geometric means, since experiments differ by factors."""
    count, medians, slopes, correlations = (np.array(values) for values in zip(*map(measure, images), strict=True))
    geometric = np.exp(np.log(np.maximum(medians, 0.5)).mean(axis=0))
    return [count.mean(), geometric, slopes.mean(axis=0), correlations.mean(axis=0)]

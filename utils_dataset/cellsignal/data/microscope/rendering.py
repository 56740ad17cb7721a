"""Rendering plates: every well of a plate drawn, exposed and written as the competition's PNG files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cellsignal.data.images.reader import write_channel
from cellsignal.data.microscope import batch_effects, optics
from cellsignal.data.microscope.batch_effects import Effects, WellEffects
from cellsignal.data.microscope.cell_types import CELL_TYPES, TRAITS, phenotype, stream, traits
from cellsignal.data.microscope.cells import draw
from cellsignal.tasks import RXRX1

SITES = (1, 2)
EXPERIMENT_SHIFT = 0.7  # how far an experiment moves every trait, in units of one siRNA's effect at strength 1
PLATE_DRIFT = 0.15
WELL_DRIFT = 0.2


@dataclass(frozen=True)
class Plate:
    """One plate to render; `lost` names a well whose second site is not written whole."""

    seed: int
    experiment: str
    plate: int
    wells: tuple[tuple[str, int], ...]  # (well, sirna)
    image_size: int
    pixel_size: float
    phenotype: float
    batch: float
    lost: str = ""
    effects: Effects = Effects()


def render_plate(plate: Plate, folder: Path) -> list[str]:
    """Write `folder`/{well}_s{site}_w{channel}.png for a plate; returns its rows of pixel_stats.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    plate_optics = _plate_optics(plate)
    return [row for well, sirna in plate.wells for row in _render_well(plate, well, sirna=sirna, plate_optics=plate_optics, folder=folder)]


def _plate_optics(plate: Plate) -> optics.Optics:
    """The experiment's optics and bleed-through, with the plate's own brightness."""
    cell_type, _, number = plate.experiment.rpartition("-")
    brightness = optics.brightness(stream(plate.seed, "brightness", cell_type), int(number))
    spread = CELL_TYPES[cell_type].gain_spread
    rng = stream(plate.seed, "optics", plate.experiment)
    experiment_optics = optics.experiment_optics(rng, brightness, gain_spread=spread, strength=plate.batch)
    bleed = experiment_optics.bleed + batch_effects.bleed_through(plate.effects, plate.seed, plate.experiment)
    rng = stream(plate.seed, "gain", plate.experiment, plate.plate)
    return optics.scaled(replace(experiment_optics, bleed=bleed), optics.plate_gain(rng, strength=plate.batch))


def _latent(plate: Plate, rng: np.random.Generator, sirna: int, *, strength: float) -> np.ndarray:
    """The phenotype of a well's cells: the siRNA's effect, `strength` times, plus drifts of experiment, plate and well."""
    size, cell_type = len(TRAITS), plate.experiment.rsplit("-", 1)[0]
    effect = phenotype(plate.seed, sirna, cell_type=cell_type) * strength * np.exp(0.15 * rng.standard_normal())
    drift = EXPERIMENT_SHIFT * stream(plate.seed, "drift", plate.experiment).standard_normal(size)
    drift += PLATE_DRIFT * stream(plate.seed, "drift", plate.experiment, plate.plate).standard_normal(size)
    return effect + plate.batch * (drift + WELL_DRIFT * rng.standard_normal(size))


def _render_well(plate: Plate, well: str, *, sirna: int, plate_optics: optics.Optics, folder: Path) -> list[str]:
    rng = stream(plate.seed, plate.experiment, plate.plate, well)
    gain = optics.well_gain(rng, ord(well[0]) - ord("A"), column=int(well[1:]), strength=plate.batch)
    effects = batch_effects.well_effects(plate.effects, plate.seed, experiment=plate.experiment, plate=plate.plate, well=well)
    factors = traits(_latent(plate, rng, sirna, strength=plate.phenotype * effects.phenotype))
    factors |= {name: factors[name] * factor for name, factor in effects.traits.items()}
    density = float(np.exp(0.12 * rng.standard_normal())) * effects.cells
    rows = []
    for site in SITES:
        site_optics = optics.scaled(plate_optics, gain)
        site_image = _render_site(plate, well, site=site, factors=factors, density=density, site_optics=site_optics, effects=effects)
        rows += _write(site_image, folder, plate=plate, well=well, site=site)
    return rows


def _render_site(
    plate: Plate, well: str, *, site: int, factors: dict[str, float], density: float, site_optics: optics.Optics,
    effects: WellEffects,
) -> np.ndarray:
    rng = stream(plate.seed, plate.experiment, plate.plate, well, site)
    cell_type = CELL_TYPES[plate.experiment.rsplit("-", 1)[0]]
    light = draw(rng, plate.image_size, pixel_size=plate.pixel_size, cell_type=cell_type, traits=factors, density=density)
    if plate.effects.staining:
        light *= batch_effects.staining(
            plate.effects, plate.seed, experiment=plate.experiment, plate=plate.plate, well=well, site=site,
            size=plate.image_size, pixel_size=plate.pixel_size,
        )
    return optics.expose(rng, light, optics=site_optics, background=cell_type.background, pixel_size=plate.pixel_size, well=effects)


def _write(site_image: np.ndarray, folder: Path, *, plate: Plate, well: str, site: int) -> list[str]:
    code = f"{plate.experiment}_{plate.plate}_{well},{plate.experiment},{plate.plate},{well},{site}"
    written = site_image[:4] if (well, site) == (plate.lost, 2) else site_image  # what a real damaged site has
    for suffix, image in zip(RXRX1.suffixes, written):
        write_channel(f"{folder}/{well}_s{site}{suffix}", image)
    return [f"{code},{channel},{row}\n" for channel, row in enumerate(_statistics(written), start=1)]


def _statistics(images: np.ndarray) -> list[str]:
    """Mean, standard deviation, median, minimum and maximum of each channel, exact: taken from the histograms."""
    counts = np.stack([np.bincount(image.ravel(), minlength=256) for image in images])
    values, total = np.arange(256), images[0].size
    means = counts @ values / total
    deviations = np.sqrt(np.maximum(counts @ values**2 / total - means**2, 0.0))
    middle = (counts.cumsum(axis=1)[:, :, None] < [(total + 1) // 2, total // 2 + 1]).sum(axis=1).mean(axis=1)
    present = counts > 0
    lowest, highest = present.argmax(axis=1), 255 - present[:, ::-1].argmax(axis=1)
    return [f"{mean:.6f},{deviation:.6f},{median:.1f},{low},{high}" for mean, deviation, median, low, high in zip(means, deviations, middle, lowest, highest)]

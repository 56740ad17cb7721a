"""The sites of a benchmark: some of a data set, or of the virtual microscope, as a small data set."""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.images import reader
from cellsignal.data.images.packed_store import is_store
from cellsignal.data.microscope import rendering
from cellsignal.data.microscope.cells import FIELD
from cellsignal.data.microscope.simulate import PLATES, check_channels
from cellsignal.data.tables import wells
from cellsignal.errors import InputError
from cellsignal.tasks import RXRX1

EXPERIMENT, CHANNELS = "HUVEC-01", len(RXRX1.channels)
MAX_DRAWN = 8  # sites that the microscope draws at most; their symmetries look as different to a decoder
SYMMETRIES = 8
WELLS = [f"{row}{column:02}" for row in "BCDEFGHIJKLMNO" for column in range(2, 24)]  # wells of a plate, its edge left out
MAX_SITES = SYMMETRIES * MAX_DRAWN
HEADERS = {"train_controls.csv": "id_code,experiment,plate,well,sirna,well_type", "test.csv": "id_code,experiment,plate,well",
           "test_controls.csv": "id_code,experiment,plate,well,sirna,well_type"}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Sites of one plate as PNGs in the competition's tree: `sites` as in `Tables.sites`, the size of images in px.

    `originals`: how many are unmodified; the others are mirrored and rotated copies of these.
    """

    root: Path
    sites: pd.DataFrame
    image_size: int
    originals: int
    origin: str

    @property
    def stems(self) -> list[str]:
        """The sites, by the names of their files."""
        return self.sites["stem"].tolist()

    @property
    def bytes_per_site(self) -> float:
        """What the PNGs of a site take on the disk, in the mean."""
        return sum(path.stat().st_size for path in self.root.rglob("*.png")) / len(self.sites)

    def paths(self, stem: str) -> list[Path]:
        """The files of a site."""
        return [reader.channel_path(self.root, stem, channel) for channel in range(1, CHANNELS + 1)]

    def images(self) -> np.ndarray:
        """All of them, uint8[N, C, H, W]."""
        return reader.read_sites(self.root, self.sites)


def take_sample(folder: Path, *, data: Path | None, count: int = MAX_SITES, image_size: int = 512, seed: int = 0) -> Sample:
    """Put `count` sites of `data`, or of the virtual microscope at `image_size` px, into `folder`, as a data set of one plate.

    If there are fewer, mirrored and rotated copies are added, which decode equally fast.
    Raises InputError for a data set without a whole site and for a count that is odd or too large.
    """
    if not 2 <= count <= 2 * len(WELLS) or count % 2:
        raise InputError(f"{count} sites", where="sites", cure=f"use an even number from 2 to {2 * len(WELLS)}")
    root, drawn_folder = Path(folder) / "png", Path(folder) / "drawn"
    if data is None:
        sources = _draw_sites(drawn_folder, min(count, MAX_DRAWN), image_size=image_size, seed=seed)
    else:
        sources = _choose_sites(Path(data), count, seed=seed)
    if (available := len(sources) * SYMMETRIES) < count:
        raise InputError(f"only {len(sources)} whole sites are there", where=data or "sites", cure=f"measure at most {available // 2 * 2}")
    sites = _tables(root, count)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: _write_site(sources, number, root / sites["stem"].iloc[number]), range(count)))
    shutil.rmtree(drawn_folder, ignore_errors=True)
    size = reader.read_channel(reader.channel_path(root, sites["stem"].iloc[0], 1)).shape[0]
    origin = "drawn by the virtual microscope" if data is None else f"from {simulated.described(data)}"
    return Sample(root, sites, size, originals=min(len(sources), count), origin=origin)


def reduced_sample(sample: Sample, folder: Path, image_size: int) -> Sample:
    """The same sites at another size, means over areas; the sample itself where it has that size."""
    if image_size == sample.image_size:
        return sample
    root = Path(folder) / f"png-{image_size}"
    sites = _tables(root, len(sample.sites))
    for stem, images in zip(sample.stems, sample.images(), strict=True):
        _write(root / stem, (cv2.resize(plane, (image_size, image_size), interpolation=cv2.INTER_AREA) for plane in images))
    return Sample(root, sites, image_size, originals=sample.originals, origin=sample.origin)


def _choose_sites(data: Path, count: int, *, seed: int) -> list[Path]:
    """Stems, with their folders, of so many whole sites of a data set, chosen at random; looks at few files, each on its own."""
    stems = wells.read_tables(data).sites["stem"].tolist()
    order = np.random.default_rng(seed).permutation(len(stems))
    complete = list(islice((data / stems[row] for row in order if _is_complete(data / stems[row])), count))
    if not complete and is_store(data):
        raise InputError("is a store, and others read PNGs", where=data, cure="name the data set that was packed")
    if not complete:
        raise InputError("no site has all its images", where=data, cure="name a data set with images, or none for drawn plates")
    return complete


def _is_complete(stem: Path) -> bool:
    return all(reader.channel_path(stem.parent, stem.name, channel).is_file() for channel in range(1, CHANNELS + 1))


def _draw_sites(folder: Path, count: int, *, image_size: int, seed: int) -> list[Path]:
    check_channels("demo")
    preset = PLATES["demo"]
    plate_wells = tuple((well, sirna) for sirna, well in enumerate(WELLS[:-(-count // 2)]))
    plate = rendering.Plate(seed=seed, experiment=EXPERIMENT, plate=1, wells=plate_wells, image_size=image_size,
                            pixel_size=min(preset.pixel_size, FIELD / image_size), phenotype=preset.phenotype, batch=1.0)
    rendering.render_plate(plate, folder)
    return [folder / f"{well}_s{site}" for well, _ in plate.wells for site in rendering.SITES]


def _tables(root: Path, count: int) -> pd.DataFrame:
    """Write the tables of a plate with so many sites, and read its sites back."""
    rows = [f"{EXPERIMENT}_1_{well},{EXPERIMENT},1,{well},{sirna}" for sirna, well in enumerate(WELLS[:count // 2])]
    files.write_text(root / "train.csv", "\n".join(["id_code,experiment,plate,well,sirna", *rows, ""]))
    for name, header in HEADERS.items():
        files.write_text(root / name, f"{header}\n")
    return wells.read_tables(root).sites


def _write_site(sources: Sequence[Path], number: int, stem: Path) -> None:
    """Site `number` of the sample: a copy of the files, or a symmetry of the image."""
    symmetry, source = divmod(number, len(sources))
    origin = sources[source]
    images = reader.read_site(origin.parent, origin.name)  # also for a copy: what is damaged has its own name here
    if symmetry == 0:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for channel in range(1, CHANNELS + 1):
            shutil.copyfile(*(reader.channel_path(path.parent, path.name, channel) for path in (origin, stem)))
        return
    mirrored = np.rot90(images[..., ::-1] if symmetry >= 4 else images, symmetry % 4, axes=(1, 2))
    _write(stem, iter(mirrored))


def _write(stem: Path, planes: Iterator[np.ndarray]) -> None:
    """As the competition's files are: zlib at its usual level, which OpenCV's own writer does not use."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for channel, plane in enumerate(planes, 1):
        Image.fromarray(np.ascontiguousarray(plane)).save(reader.channel_path(stem.parent, stem.name, channel), compress_level=6)

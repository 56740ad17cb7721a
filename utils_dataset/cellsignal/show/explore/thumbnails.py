"""Small colour composites of wells, a sheet of them for each plate."""

from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.wells import Tables
from cellsignal.errors import InputError
from cellsignal.show.eda.composites import composite, limits

SIZE = 64  # pixels of a side
COLUMNS = 16  # of a sheet
QUALITY = 80  # of WebP


@dataclass
class Sheets:
    """The sheet of each plate as a data URI by (experiment, plate), and the number of each well on it by id_code."""

    uris: dict[tuple[str, int], str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    plates_left_out: int = 0  # for which no room was left


def plate_sheets(wells: pd.DataFrame, tables: Tables, *, max_bytes: int) -> Sheets:
    """A sheet of composites for each plate, until they have `max_bytes` as text.

    The wells of a plate share one scale, so brightness can be compared on it. Test plates come first, and of each cell type one in
    turn. A well is shown by its first site that can be read; one without has no image.
    """
    stems = tables.sites[tables.sites["id_code"].isin(wells["id_code"])].sort_values("site").groupby("id_code")["stem"].agg(list)
    sheets, used = Sheets(), 0
    plates = _ordered_plates(wells)
    with ThreadPoolExecutor() as pool:
        for number, key in enumerate(plates):
            names = plates[key]
            images = {name: image for name, image in zip(names, pool.map(lambda name: _thumbnail(tables.root, stems.get(name, ())), names)) if image is not None}
            images = {name: image for name, image in images.items() if image.shape == next(iter(images.values())).shape}
            if not images:
                continue
            uri = _sheet(images)
            if used + len(uri) > max_bytes:
                sheets.plates_left_out = len(plates) - number
                break
            used += len(uri)
            sheets.uris[key] = uri
            sheets.numbers |= {name: position for position, name in enumerate(images)}
    return sheets


def _ordered_plates(wells: pd.DataFrame) -> Mapping[tuple[str, int], list[str]]:
    """The wells of each plate, those with test wells first, cell types in turn."""
    plates = wells.groupby(["experiment", "plate"]).agg(cell_type=("cell_type", "first"), tested=("split", lambda split: (split == "test").any()))
    plates = plates.sort_values("tested", ascending=False, kind="stable")
    turn = plates.groupby(["tested", "cell_type"]).cumcount()
    order = plates.assign(turn=turn).sort_values(["tested", "turn"], ascending=[False, True], kind="stable").index
    names = wells.groupby(["experiment", "plate"])["id_code"].agg(list)
    return {(str(experiment), int(plate)): names[experiment, plate] for experiment, plate in order}


def _thumbnail(root: Path, stems: list[str]) -> np.ndarray | None:
    """The first readable site as uint8[C,H,W] of at most SIZE pixels."""
    for stem in stems:
        try:
            image = read_site(root, stem)
        except InputError:
            continue
        height, width = image.shape[1:]
        factor = min(1, SIZE / max(height, width))
        shape = max(1, round(width * factor)), max(1, round(height * factor))
        return np.stack([cv2.resize(plane, shape, interpolation=cv2.INTER_AREA) for plane in image])
    return None


def _sheet(images: Mapping[str, np.ndarray]) -> str:
    """Composites side by side, SIZE pixels each, as WebP in a data URI."""
    grey_range = limits(np.stack(list(images.values())))
    sheet = np.zeros((-(-len(images) // COLUMNS) * SIZE, COLUMNS * SIZE, 3), np.uint8)
    for position, image in enumerate(images.values()):
        picture = cv2.resize((255 * composite(image, grey_range=grey_range)).round().astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        top, left = position // COLUMNS * SIZE, position % COLUMNS * SIZE
        sheet[top : top + SIZE, left : left + SIZE] = picture[..., ::-1]  # OpenCV wants BGR
    content = cv2.imencode(".webp", sheet, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])[1].tobytes()
    return f"data:image/webp;base64,{b64encode(content).decode()}"

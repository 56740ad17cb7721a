"""Simulated plates in the layout of RxRx1-WILDS: metadata.csv, and one RGB image a site of the first three channels."""

from pathlib import Path

import cv2
import pandas as pd

from cellsignal.data.images.reader import read_site
from cellsignal.data.tables.wells import read_tables
from cellsignal.tasks import RXRX1

VALIDATION = ("RPE-02",)  # of the preset tiny's training experiments
COLUMNS = ["site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site", "well_type", "sirna", "sirna_id"]


def write_wilds(plates: Path, out: Path) -> Path:
    """The plates of a simulated data set as the benchmark has them, in `out`."""
    tables = read_tables(plates)
    truth = tables.sites["sirna"].fillna(tables.sites["id_code"].map(tables.solution)).astype(int)
    sites = tables.sites.assign(sirna_id=truth, sirna="s" + truth.astype(str), well_id=tables.sites["id_code"])
    sites["site_id"] = sites["well_id"] + "_" + sites["site"].astype(str)
    sites["dataset"] = sites["dataset"].mask(sites["experiment"].isin(VALIDATION), "val")
    paths = write_metadata(out, sites)
    for stem, path in zip(sites["stem"], paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = read_site(plates, stem, channels=RXRX1.suffixes[:3])  # the one image that the preset leaves out is of the fifth channel
        cv2.imwrite(str(path), image[::-1].transpose(1, 2, 0))  # OpenCV's order is blue, green, red
    return out


def write_metadata(out: Path, sites: pd.DataFrame) -> list[Path]:
    """metadata.csv in `out`, in an order of its own, and the path of each site's image."""
    out.mkdir(parents=True, exist_ok=True)
    sites.sample(frac=1, random_state=0)[COLUMNS].to_csv(out / "metadata.csv", index=False)
    return [out / f"images/{row.experiment}/Plate{row.plate}/{row.well}_s{row.site}.png" for row in sites.itertuples()]

"""A screen of four experiments as its publishers pack it: the competition's bundle and the public release."""

from collections.abc import Iterator
from zlib import crc32

import cv2
import numpy as np
import pandas as pd
from hostile_archives import honest

EXPERIMENTS = {"RPE-01": "train", "U2OS-01": "train", "RPE-02": "test", "U2OS-02": "test"}
IMAGES = 72  # of each experiment


def wells() -> pd.DataFrame:
    """Three wells on each of two plates: a treatment, a positive control and an untreated one."""
    rows = [
        (name, kind, plate, well, sirna if sirna else plate)
        for name, kind in EXPERIMENTS.items()
        for plate in (1, 2)
        for well, sirna in (("B02", 1138), ("B03", 0), ("B04", 1108))
    ]
    table = pd.DataFrame(rows, columns=["experiment", "dataset", "plate", "well", "sirna"])
    table["id_code"] = table["experiment"] + "_" + table["plate"].astype(str) + "_" + table["well"]
    table["well_type"] = table["sirna"].map({1138: "negative_control", 1108: "positive_control"}).fillna("treatment")
    return table


def _stems(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Data set and path below it of each image."""
    for row in table.itertuples():
        for site in (1, 2):
            for channel in range(1, 7):
                yield row.dataset, f"{row.experiment}/Plate{row.plate}/{row.well}_s{site}_w{channel}.png"


def _png(name: str) -> bytes:
    noise = np.random.default_rng(crc32(name.encode())).integers(0, 256, (24, 24), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def tables() -> dict[str, bytes]:
    """The competition's tables by file name."""
    table, place = wells(), ["id_code", "experiment", "plate", "well"]
    treated = table["well_type"] == "treatment"
    files = {}
    for kind in ("train", "test"):
        ours = table["dataset"] == kind
        files[f"{kind}.csv"] = table[ours & treated][[*place, "sirna"] if kind == "train" else place]
        files[f"{kind}_controls.csv"] = table[ours & ~treated][[*place, "sirna", "well_type"]]
    files["sample_submission.csv"] = files["test.csv"][["id_code"]].assign(sirna=0)
    return {name: frame.to_csv(index=False).encode() for name, frame in files.items()}


def bundle(*, nested: bool = False) -> bytes:
    """The competition's archive; `nested` as it once was, an archive for each of the two data sets inside."""
    images = {f"{kind}/{path}": _png(path) for kind, path in _stems(wells())}
    if not nested:
        return honest({**tables(), "recursion_dataset_license.pdf": b"%PDF", **images})
    inner = {kind: {name.removeprefix(f"{kind}/"): png for name, png in images.items() if name.startswith(kind)} for kind in ("train", "test")}
    return honest({**tables(), **{f"{kind}.zip": honest(content) for kind, content in inner.items()}})


def metadata() -> bytes:
    """The public release's metadata.csv."""
    table = pd.concat([wells().assign(site=site) for site in (1, 2)])
    table = table.rename(columns={"id_code": "well_id", "sirna": "sirna_id"}).assign(sirna="s1")
    table["site_id"] = table["well_id"] + "_" + table["site"].astype(str)
    table["cell_type"] = table["experiment"].str.partition("-")[0]
    return table.to_csv(index=False).encode()


def release_images() -> bytes:
    """The public release's archive of images."""
    return honest({"rxrx1/README.md": b"read me", **{f"rxrx1/images/{path}": _png(path) for _, path in _stems(wells())}})


def release_tables() -> bytes:
    """The public release's archive of tables."""
    return honest({"rxrx1/README.md": b"read me", "rxrx1/metadata.csv": metadata()})

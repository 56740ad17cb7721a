"""A whole run from a store ends with the files of the run from the images; and what a store is for: time."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pytest

from cellsignal.data.images import packed_store
from cellsignal.data.packing import pack
from cellsignal.data.images.reader import channel_path, read_site
from cellsignal.data.tables.wells import read_tables
from cellsignal.files import sha256
from cellsignal.learn.batches.dataset import SiteImages

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def cellsignal(*arguments: object) -> None:
    ended = subprocess.run([sys.executable, "-m", "cellsignal.cli.main", *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def made(run: Path) -> dict[str, str]:
    """What a run is about, by name."""
    found = [run / "submission.csv", *run.glob("weights/*/*.safetensors"), *run.glob("scores/**/*.parquet")]
    return {path.relative_to(run).as_posix(): sha256(path) for path in found}


def test_a_run_from_a_store_ends_with_the_same_files(tmp_path: Path) -> None:
    cellsignal("simulate", tmp_path / "plates", "--preset", "tiny")
    cellsignal("pack", tmp_path / "plates", tmp_path / "store", "--codec", "zstd", "--verify")
    cellsignal("check", tmp_path / "store")
    for data in ("plates", "store"):
        given = ("-p", "preset=", "-p", f"data={tmp_path / data}")
        cellsignal("run", ROOT / "papermill_params/tiny.yaml", *given, "--out", tmp_path / f"run-{data}")
    first, second = made(tmp_path / "run-plates"), made(tmp_path / "run-store")
    assert first == second and len(first) > 5


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the processor, which others on the machine do not lengthen much; the median of five."""
    taken = []
    for _ in range(5):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return median(taken)


@pytest.fixture
def turned(shared: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """40 pictures of real size: the five whole sites beside the checkout in their eight symmetries."""
    real, root, stems = shared / "rxrx1/images", tmp_path / "plates", []
    for name in ("train.csv", "test.csv", "train_controls.csv", "test_controls.csv"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((shared / "rxrx1" / name).read_bytes())
    whole = [path for path in sorted(real.glob("*/*/*/*_w1.png")) if channel_path(real, str(path)[len(str(real)) + 1 : -7], 6).exists()]
    places = iter(read_tables(root).sites["stem"])
    for path, (turns, mirror) in itertools.product(whole, itertools.product(range(4), (False, True))):
        image = np.rot90(read_site(path.parent, path.name[:-7]), turns, (1, 2))
        stems.append(next(places))
        channel_path(root, stems[-1], 1).parent.mkdir(parents=True, exist_ok=True)
        for channel, plane in enumerate(image[..., ::-1] if mirror else image, 1):
            cv2.imwrite(str(channel_path(root, stems[-1], channel)), plane)
    return root, stems


@pytest.mark.parametrize("codec", ["raw", "lz4"])
def test_a_store_is_read_ten_times_faster_than_images(turned: tuple[Path, list[str]], tmp_path: Path, codec: str) -> None:
    root, stems = turned
    pack.pack(pack.plan_pack(root, codec=codec), tmp_path / "store", progress=False)
    opened, out = packed_store.open_store(tmp_path / "store"), np.empty((6, 512, 512), np.uint8)
    cv2.setNumThreads(1)

    def decode() -> None:
        for stem in stems:
            np.stack([cv2.imread(str(channel_path(root, stem, channel)), cv2.IMREAD_UNCHANGED) for channel in range(1, 7)])

    slow, fast = seconds(decode), seconds(lambda: [opened.read(stem, out) for stem in stems])
    print(f"{len(stems)} sites, {codec}: OpenCV {len(stems) / slow:.0f}/s, store {len(stems) / fast:.0f}/s, {slow / fast:.1f} times")
    assert slow > 10 * fast


def test_data_sets_of_all_rxrx1_are_made_in_a_second(shared: Path) -> None:
    def make() -> None:
        tables = read_tables(shared / "rxrx1")
        assert len(SiteImages(tables.root, tables.sites, class_numbers=range(1139))) == 125_510

    taken = seconds(make)
    print(f"125,510 sites: {taken:.2f} s")
    assert taken < 1

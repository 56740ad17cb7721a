"""Pictures come in order, whoever reads them; buffers are used again; threads end; faults come out as they are."""

import threading
import time

import numpy as np
import pytest
import torch

from cellsignal.errors import InputError
from cellsignal.learn.batches.dataset import SiteImages, read_batches
from cellsignal.learn.batches.dataset import PREFETCHED_BATCHES, prefetch
from trainings import CLASSES

BATCHES = [np.array(rows) for rows in ([3, 1, 2], [7], [0, 9, 8, 4], [5, 6])]


def put(row: int, out: np.ndarray) -> None:
    time.sleep(0.002 * (row % 3))  # some readers are overtaken by others
    out[...] = row


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_batches_come_in_order_and_buffers_come_again(workers: int) -> None:
    seen, places = [], set()
    for images, rows in prefetch(put, BATCHES * 3, shape=(2, 3, 3), workers=workers):
        assert images.dtype == torch.uint8 and images.shape == (len(rows), 2, 3, 3)
        assert torch.equal(images[:, 1, 2, 0].long(), rows)
        places.add(images.data_ptr())
        seen.append(rows.tolist())
    assert seen == [rows.tolist() for rows in BATCHES * 3]
    assert len(places) == (1 + PREFETCHED_BATCHES if workers else 1)


def test_nothing_is_read_that_was_not_asked_for_or_is_too_far_ahead() -> None:
    begun = []
    pictures = prefetch(lambda row, out: begun.append(row), [np.array([row]) for row in range(20)], shape=(1,), workers=2)
    assert begun == []
    next(pictures)
    time.sleep(0.05)
    assert sorted(begun) == list(range(1 + PREFETCHED_BATCHES))
    pictures.close()


def test_closing_early_leaves_no_thread() -> None:
    before = readers()
    pictures = prefetch(put, BATCHES * 50, shape=(2, 3, 3), workers=3)
    next(pictures)
    assert readers() - before
    pictures.close()
    assert not readers() - before
    del pictures
    next(iter(prefetch(put, BATCHES, shape=(2, 3, 3), workers=3)))  # nobody holds it any more
    assert not readers() - before


@pytest.mark.parametrize("workers", [0, 3])
def test_the_first_fault_of_a_reader_comes_out_as_it_is_in_its_turn(workers: int) -> None:
    before, seen = readers(), []
    def fault(row: int, out: np.ndarray) -> None:
        if row in (8, 4, 5):
            raise InputError(f"picture {row} is damaged", cure="copy it again")
        put(row, out)
    with pytest.raises(InputError, match="^picture (8|4) is damaged; copy it again$"):
        for _, rows in prefetch(fault, BATCHES, shape=(2, 3, 3), workers=workers):
            seen.append(rows.tolist())
    assert seen == [[3, 1, 2], [7]] and not readers() - before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_of_another_size_is_named(patches: tuple, workers: int) -> None:
    root, sites = patches
    data = SiteImages(root, sites, class_numbers=CLASSES, cache=True)
    data.cached[5] = np.zeros((6, 16, 48), np.uint8)
    with pytest.raises(InputError, match="B07_s1: its images have 48x16 pixels, those of .*B02_s1 32x32; give all images one size"):
        list(read_batches(data, [np.arange(8)], workers=workers))


def test_a_missing_file_is_one_line_from_any_thread(patches: tuple) -> None:
    root, sites = patches
    lost = sites.assign(stem=["train/none_s1" if row == 6 else stem for row, stem in enumerate(sites["stem"])])
    with pytest.raises(InputError, match="none_s1_w1.png: no such file; add the image"):
        list(read_batches(SiteImages(root, lost, class_numbers=CLASSES), [np.arange(8)], workers=2))

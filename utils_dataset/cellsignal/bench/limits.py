"""The limits of the machine: copying memory, multiplying matrices, reading a disk, decoding PNGs, transfer to the GPU."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from cellsignal import files
from cellsignal.bench.timer import CPU, Candidate

MEMORY_BYTES = 2**28  # far more than any cache of a CPU holds
DISK_BYTES = 2**28
CHUNK = 2**20
MATRIX_SIZES = {"cpu": 1024, "cuda": 8192}  # of the matrices


def memory_bandwidth(device: torch.device = CPU, *, size: int = MEMORY_BYTES) -> Candidate:
    """A copy from one buffer into another, bytes copied a second: each is read once and written once."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def work() -> float:
        target.copy_(source)
        return size / 1e9

    return Candidate(f"memory copy, {device.type}", "floor", work, "GB/s", f"{size / 2**20:.0f} MiB; on a CPU one thread")


def matrix_rate(device: torch.device = CPU, precision: torch.dtype = torch.float32, *, side: int = 0) -> Candidate:
    """The product of two square matrices; a multiplication and an addition are two operations."""
    side = side or MATRIX_SIZES[device.type]
    first, second = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    out = torch.empty_like(first)

    def work() -> float:
        torch.mm(first, second, out=out)
        return 2 * side**3 / 1e9

    name = str(precision).removeprefix("torch.")
    return Candidate(f"matrix product, {device.type} {name}", "floor", work, "GFLOP/s", f"{side} x {side}")


def disk_rate(folder: Path, *, size: int = DISK_BYTES) -> Candidate:
    """A file written anew and read once from end to end, after the kernel was asked to drop it from the page cache.

    The host of a virtual disk may keep a cache of its own that cannot be dropped.
    """
    path, block = Path(folder) / "disk.bin", np.random.default_rng(0).bytes(CHUNK)
    with open(path, "wb") as stream:
        stream.writelines([block] * max(1, size // CHUNK))
        stream.flush()
        files.sync_descriptor(stream.fileno())
    buffer, can_drop_cache = bytearray(CHUNK), hasattr(os, "posix_fadvise")

    def work() -> float:
        total = 0
        with open(path, "rb", buffering=0) as stream:
            if can_drop_cache:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := stream.readinto(buffer):
                total += count
        return total / 1e9

    note = "dropped from the page cache first (posix_fadvise)" if can_drop_cache else "from the page cache: it cannot be dropped here"
    return Candidate("disk read", "floor", work, "GB/s", note)


def decoding_rate(sites: Sequence[Sequence[Path]]) -> Candidate:
    """The PNGs of sites decoded from memory: the lower bound of every PNG reader."""
    contents = [[np.frombuffer(Path(path).read_bytes(), np.uint8) for path in paths] for paths in sites]

    def work() -> float:
        for site in contents:
            for content in site:
                cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        return len(contents)

    return Candidate("PNG decoding alone", "floor", work, note="files in memory, OpenCV")


def site_copy(images: np.ndarray) -> Candidate:
    """Sites, uint8[N, C, H, W], copied in memory one by one: the lower bound of every reader."""
    out = np.empty_like(images[0])

    def work() -> float:
        for image in images:
            np.copyto(out, image)
        return len(images)

    return Candidate("memory copy of a site", "floor", work)


def transfer_rate(device: torch.device, *, size: int = MEMORY_BYTES) -> Candidate:
    """The transfer of pinned memory to a GPU."""
    source = torch.ones(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def work() -> float:
        target.copy_(source, non_blocking=True)
        return size / 1e9

    return Candidate("host to GPU", "floor", work, "GB/s", "pinned memory")

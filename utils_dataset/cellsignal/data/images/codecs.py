"""Lossless codecs for the pixels of a site in a store: raw bytes, or one chunk of Blosc2."""

import importlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from cellsignal.errors import InputError

# Blosc's codec and level, as measured on real sites on one core (MB a site, times OpenCV's reading of six PNGs, sites packed a second):
# LZ4HC 5 0.88, 22, 10; LZ4HC 9 0.84, 23, 3; ZSTD 5 0.69, 10, 9; ZSTD 3 0.72, 7, 16; plain pixels 1.57, 85, 33; PNGs 0.55.
# Shuffled bits make chunks of microscope images larger or slower, with either.
CHUNKS = {"lz4": ("LZ4HC", 5), "zstd": ("ZSTD", 5)}
_SIZES = struct.Struct("<4xii")  # of a chunk's header: bytes of pixels, bytes in a block


@dataclass(frozen=True)
class Codec:
    """A codec: `encode` turns uint8[C, H, W] into bytes, `decode` fills such an array from them.

    `decode` raises ValueError for bytes that `encode` did not produce. `plain`: the bytes are the pixels themselves.
    """

    name: str
    suffix: str  # of the files
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, np.ndarray], None]
    plain: bool = False


@cache
def codec(name: str) -> Codec:
    """The codec of a name; InputError for an unknown one, or one whose library is not installed."""
    if name not in CODECS:
        raise InputError(f"no codec {name!r}", cure=f"choose one of {', '.join(CODECS)}")
    return CODECS[name]()


def _raw() -> Codec:
    return Codec("raw", ".npy", np.ndarray.tobytes, _copy, plain=True)


def _copy(content: bytes, out: np.ndarray) -> None:
    if len(content) != out.nbytes:
        raise ValueError(f"{len(content)} bytes, not {out.nbytes}")
    out[...] = np.frombuffer(content, np.uint8).reshape(out.shape)


def _blosc(name: str) -> Codec:
    """Chunks of Blosc2, without a filter."""
    blosc2, (kind, level) = _library(name), CHUNKS[name]
    options = {
        "codec": blosc2.Codec[kind], "clevel": level, "typesize": 1, "nthreads": 1, "filters": [blosc2.Filter.NOFILTER],
        "filters_meta": [0], "splitmode": blosc2.SplitMode.NEVER_SPLIT,
    }  # fmt: skip

    def encode(image: np.ndarray) -> bytes:
        return blosc2.compress2(np.ascontiguousarray(image), **options)

    def decode(content: bytes, out: np.ndarray) -> None:
        # The library trusts the size in the chunk's header.
        if len(content) < 16 or _SIZES.unpack_from(content)[0] != out.nbytes:
            raise ValueError("is no chunk of this many pixels")
        blosc2.decompress2(content, dst=out, nthreads=1)

    return Codec(name, ".blosc2", encode, decode)


def _library(name: str) -> Any:
    try:
        blosc2 = importlib.import_module("blosc2")
    except ImportError:
        raise InputError(f"the codec {name} needs blosc2", cure="pip install blosc2, or pack with --codec raw") from None
    blosc2.set_releasegil(True)  # so that threads work side by side
    return blosc2


# By name; the library is imported when a codec is used.
CODECS: dict[str, Callable[[], Codec]] = {
    "raw": _raw,
    "lz4": lambda: _blosc("lz4"),
    "zstd": lambda: _blosc("zstd"),
}

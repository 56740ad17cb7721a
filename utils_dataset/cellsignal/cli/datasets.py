"""The command `cellsignal pack`: a data set's images, many times faster to read."""

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cellsignal.errors import InputError

# Everything else is imported inside the command: `--help` must not wait for pandas.


class Codec(StrEnum):
    """How pixels are kept; none of them loses any."""

    raw = "raw"
    lz4 = "lz4"
    zstd = "zstd"


class Format(StrEnum):
    """Of the files."""

    plates = "plates"
    ome_zarr = "ome-zarr"


def pack(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the data set.")],
    out: Annotated[Path, typer.Argument(metavar="STORE", help="Folder to fill; a killed packing goes on.")],
    codec: Annotated[Codec, typer.Option(help="raw reads fastest, zstd is smallest; lz4 and zstd need blosc2.")] = Codec.raw,
    format: Annotated[Format, typer.Option(help="One file a plate; or OME-Zarr plates to share, slower, which need zarr.")] = Format.plates,
    sizes: Annotated[str, typer.Option(metavar="PX,...", help="Longer sides of the copies; else the images' own.")] = "",
    cell_type: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only its images; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=0, help="Sites read side by side; 0: one a core.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back and compare the sums.")] = False,
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help="Ray cluster that packs; its machines see both folders.")] = "",
) -> None:
    """Pack the images of a data set, one file a plate.

    STORE is a data set of its own, with the same tables and the same pixels: name it as `data`. Reduced copies are means
    over areas, rounded to whole numbers.
    """
    from cellsignal.data.packing import pack

    plan = pack.plan_pack(data, codec=codec.value, sizes=_sizes(sizes), cell_types=cell_type or (), format=format.value)
    print("\n".join(pack.size_lines(plan)))
    with _parallel_map(ray) as parallel_map:
        written = pack.pack(plan, out, jobs=jobs or None, parallel_map=parallel_map)
    if verify:
        from cellsignal.data.packing.verify import verify as compare

        print(f"compared {compare(out):,} copies of sites with their sums")
    print(f"wrote {out}" if written else f"{out} was whole already")


def _parallel_map(address: str) -> AbstractContextManager[Any]:
    """Who packs side by side on a cluster; nobody without one."""
    if not address:
        return nullcontext()
    from cellsignal.run.cluster import ray_cluster

    return ray_cluster.open_parallel_map(address)


def _sizes(text: str) -> list[int]:
    """The numbers in a text like `512,256`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise InputError(f"{text!r} is no list of sizes", where="--sizes", cure="write for example --sizes 512,256")
    return [int(part) for part in parts]

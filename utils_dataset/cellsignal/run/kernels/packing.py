"""The work of the notebook `pack`: the images of a run, reduced and packed once, so that no training decodes a PNG."""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
from matplotlib.figure import Figure

from cellsignal import files
from cellsignal.budget import TimeSpent
from cellsignal.code_identity import package_code
from cellsignal.data.images import packed_store
from cellsignal.data.images.reader import read_site
from cellsignal.data.packing.pack import pack, plan_pack
from cellsignal.data.packing.plate_file import PlateShard
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.inputs import discard, prepare
from cellsignal.run.mounts import PACKED, PACKED_RECEIPT
from cellsignal.run.record.session import Session
from cellsignal.show.eda.composites import show_wells

MARGIN = 1.1  # of the estimated size of the store, against Kaggle's working folder


class ImagePacking:
    """The packing of a run's images at `wells.packed_size` into the run folder's store `packed`.

    `packed.json` holds its identity: size, wells, tables and code. A store of another identity is removed; one of the same, here or
    in an attached run, is continued plate by plate. InputError without a size, and for what does not fit into Kaggle's working folder.
    """

    def __init__(self, session: Session) -> None:
        recipe = session.recipe
        size, cell_types, experiments = recipe.wells.packed_size, recipe.wells.cell_types, recipe.wells.experiments
        if not size:
            raise InputError("no size to pack the images at", where="wells.packed_size", cure="write for example 192")
        self.session, self.store = session, session.folder / PACKED
        self.root = prepare(recipe.data, run=session.folder, preset=recipe.preset, seed=recipe.seed)
        codec = "zstd" if find_spec("blosc2") else "raw"  # the same pixels, and Kaggle's image has blosc2
        self.plan = plan_pack(self.root, codec=codec, sizes=[size], cell_types=cell_types, experiments=experiments)
        if environment.platform() == "kaggle" and MARGIN * self.plan.bytes > environment.WORKING_BYTES:
            fits = int(size * (environment.WORKING_BYTES / MARGIN / self.plan.bytes) ** 0.5) // 16 * 16
            what = f"the images take about {files.gigabytes(self.plan.bytes)} at this size, and /kaggle/working holds {files.gigabytes(environment.WORKING_BYTES)}"
            raise InputError(what, where="wells.packed_size", cure=f"write {fits} or less, or choose fewer cell types")
        tables = {path.name: files.sha256(path) for path in sorted(self.root.glob("*.csv"))}
        identity = {"size": size, "codec": codec, "cell_types": cell_types, "experiments": experiments, "tables": tables, "code": package_code("data")}
        self.receipt = Receipt(session.folder / PACKED_RECEIPT, identity, complete=False)

    def sizes(self) -> pd.DataFrame:
        """Sites and estimated gigabytes of each cell type."""
        counts = self.plan.sites["cell_type"].value_counts()
        return pd.DataFrame({"sites": counts, "GB": counts * self.plan.site_bytes / 1e9}).rename_axis("cell type")

    def pack(self) -> str:
        """Pack what is not packed yet, and say so; raises TimeSpent when the session's time ends it, and the next session goes on."""
        earlier = Receipt.find(self.receipt.path)
        if not packed_store.is_store(self.store) or earlier is None or earlier.identity != self.receipt.identity:
            discard(self.store)
            self._reuse_attached()
        self.receipt.write()
        packed = pack(self.plan, self.store, parallel_map=self._in_time)
        store_file = f"{PACKED}/{packed_store.FILE}"
        replace(self.receipt, outputs={store_file: files.sha256(self.session.folder / store_file)}, complete=True).write()
        used = sum(path.stat().st_size for path in self.store.rglob("*") if path.is_file())
        return f"{len(self.plan.shards)} plates in {files.gigabytes(used)}, {len(packed)} of them packed now"

    def _reuse_attached(self) -> None:
        """Copy what an attached run has packed of the same."""
        for run in self.session.resume_folders():
            earlier = Receipt.find(run / PACKED_RECEIPT)
            if earlier is not None and earlier.identity == self.receipt.identity and packed_store.is_store(run / PACKED):
                temporary = files.temporary_path(self.store)
                shutil.copytree(run / PACKED, temporary, copy_function=shutil.copyfile)
                os.replace(temporary, self.store)
                print(f"reused the packed images of {run}")
                return

    def _in_time(self, write: Callable[[PlateShard], int], shards: Sequence[PlateShard]) -> Iterator[int]:
        """`write` of each plate, one a core at a time, as long as the session's time lasts."""
        budget, cores, waiting = self.session.time_budget, len(os.sched_getaffinity(0)), list(shards)
        running: set[Future[tuple[int, float]]] = set()
        with ThreadPoolExecutor(cores) as pool:
            while running or (waiting and budget.fits_part(1)):
                while waiting and len(running) < cores and budget.fits_part(1):
                    running.add(pool.submit(_timed, write, waiting.pop(0)))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for count, seconds in (future.result() for future in done):
                    budget.record_part(1, seconds)
                    yield count
        if waiting:
            raise TimeSpent(f"{len(self.plan.shards) - len(waiting)} of {len(self.plan.shards)} plates")

    def compare(self) -> Figure:
        """A site as it came, and as it is packed."""
        stem = self.plan.sites["stem"].iloc[0]
        images = [read_site(root, stem) for root in (self.root, self.store)]
        return show_wells(images, [f"{image.shape[-1]} px" for image in images])


def _timed(write: Callable[[PlateShard], int], shard: PlateShard) -> tuple[int, float]:
    start = time.monotonic()
    return write(shard), time.monotonic() - start

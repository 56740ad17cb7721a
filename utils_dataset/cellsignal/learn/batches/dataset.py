"""Which sites share a batch, and the data set that serves them.

Order and augmentation are functions of (seed, epoch, site): a run resumed at an epoch's start sees
exactly what the undisturbed run would have seen, with any number of reading threads.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from threading import local

import numpy as np
import pandas as pd
import torch

from cellsignal.data.images.packed_store import is_store
from cellsignal.data.images.reader import read_site, read_sites
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import Augment, CropFlipRotate
from cellsignal.learn.batches.loader import CPU, Batch, prefetch
from cellsignal.tasks import RXRX1

LABELS = "labels"  # the column of a table whose sites have several
CACHE_BYTES = 2**31  # pictures are kept in memory up to this size
_own = local()
SCOPES = {"plate": ["experiment", "plate"], "experiment": ["experiment"], "mixed": []}


class SiteImages:
    """Sites and what is known of them: pictures, uint8[C, H, W], and labels.

    `class_numbers`: what each column of the targets stands for. A table with a column `labels`, tuples
    of class numbers, is multi-label; else `sirna` has each site's one. `labels`: positions among the
    class numbers, int64[N] (-1: none of them), or of a multi-label set bool[N, K]. `channels`: how
    their file names end. Images are kept in memory when `cache` is set (small sets), else each is
    read when asked for. `root`: the folder that all stems start from. `augment`: what happens to a picture that is served.
    """

    def __init__(self, root: Path, sites: pd.DataFrame, *, class_numbers: Sequence[int], channels: Sequence[str] = RXRX1.suffixes,
                 augment: Augment | CropFlipRotate | None = None, cache: bool = False) -> None:
        self.root, self.sites, self.channels, self.augment = Path(root), sites.reset_index(drop=True), channels, augment
        self.class_numbers, self.stems = list(class_numbers), self.sites["stem"].tolist()
        self.multilabel = LABELS in self.sites
        self.labels = _class_matrix(self.sites[LABELS], self.class_numbers) if self.multilabel else _class_indices(self.sites["sirna"], self.class_numbers)
        self.cached = list(read_sites(self.root, self.sites, channels=channels)) if cache else None

    @property
    def metric(self) -> str:
        """What its predictions are measured by: "accuracy", or "macro_f1" of several labels a site."""
        return "macro_f1" if self.multilabel else "accuracy"

    def __len__(self) -> int:
        return len(self.stems)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture as stored."""
        return self.image(0).shape

    def image(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        """The picture of one site as stored, uint8[C, H, W]; `out` is where a packed store puts it, without a copy in between."""
        if self.cached is not None and self.cached[row] is not None:
            return self.cached[row]
        return read_site(self.root, self.stems[row], channels=self.channels, out=out if is_store(self.root) else None)

    def put(self, row: int, out: np.ndarray, *, epoch: int = 0, augment: Augment | CropFlipRotate | None = None) -> None:
        """Fill `out`, uint8[C, h, w], with the picture of one site; InputError when it has another size than the first site's."""
        image = self.image(row, out if augment is None else _scratch(self.shape))
        if image.shape != self.shape:
            what = f"its pictures have {image.shape[2]}x{image.shape[1]} pixels, those of {self.stems[0]} {self.shape[2]}x{self.shape[1]}"
            raise InputError(what, where=self.root / self.stems[row], cure="give all images one size")
        if augment is not None:
            augment(image, epoch=epoch, site=row, out=out)
        elif image is not out:
            out[...] = image

    def targets(self, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
        """What the network should answer for sites `rows`, float32[N, K]: 1 for each of a site's classes, else 0."""
        known = torch.as_tensor(self.labels[np.asarray(rows)])
        if self.multilabel:
            return known.float()
        return (known[:, None] == torch.arange(len(self.class_numbers))).float()


def _scratch(shape: tuple[int, ...]) -> np.ndarray:
    """Room for one picture, the same for as long as a thread asks for the same: fresh memory costs more than reading."""
    if getattr(_own, "room", np.empty(0)).shape != shape:
        _own.room = np.empty(shape, np.uint8)
    return _own.room


def _class_indices(sirna: pd.Series, class_numbers: list[int]) -> np.ndarray:
    return pd.Index(class_numbers).get_indexer(sirna.astype("Int64").fillna(-1))


def _class_matrix(labels: pd.Series, class_numbers: list[int]) -> np.ndarray:
    """Which classes each site has, bool[N, K]; numbers of other classes are left out."""
    rows, numbers = np.repeat(np.arange(len(labels)), labels.map(len)), [number for each in labels for number in each]
    columns = pd.Index(class_numbers).get_indexer(numbers) if numbers else np.empty(0, int)
    known = np.zeros((len(labels), len(class_numbers)), bool)
    known[rows[columns >= 0], columns[columns >= 0]] = True
    return known


def concat(first: SiteImages, second: SiteImages) -> SiteImages:
    """All sites of two sets of the same classes, augmented like the first; pictures in memory are shared, not copied."""
    both = SiteImages(first.root, pd.concat([first.sites, second.sites]), class_numbers=first.class_numbers,
                      channels=first.channels, augment=first.augment)
    both.labels = np.concatenate([first.labels, second.labels])
    if first.cached is not None or second.cached is not None:
        both.cached = [picture for part in (first, second) for picture in part.cached or [None] * len(part)]
    return both


def like(data: SiteImages, sites: pd.DataFrame, *, augment: Augment | CropFlipRotate | None = None) -> SiteImages:
    """Other sites of the data set that `data` comes from, read and kept as its own are."""
    return SiteImages(data.root, sites, class_numbers=data.class_numbers, channels=data.channels, augment=augment,
                      cache=data.cached is not None)


def make_train_validation(root: Path, sites: pd.DataFrame, *, augment: Augment | CropFlipRotate | None = None, channels: Sequence[str] = RXRX1.suffixes,
          class_numbers: Sequence[int] | None = None) -> tuple[SiteImages, SiteImages]:
    """The training and the held-out sites (column `split`) of labelled `sites`, with common classes.

    `class_numbers`: all classes, where those of `sites` are not what counts. Only training sites are
    augmented. Pictures stay in memory when all of them are small enough.
    """
    if sites.empty:
        raise InputError("no labelled wells of this kind to train on", where=root,
                         cure="look at wells.cell_types and wells.experiments; without controls set training.pretrain_epochs: 0")
    if class_numbers is None:
        class_numbers = sorted(set(sites[LABELS].explode().dropna()) if LABELS in sites else set(sites["sirna"].astype(int)))
    cache = len(sites) * read_site(root, sites["stem"].iloc[0], channels=channels).nbytes <= CACHE_BYTES
    train, held_out = (
        SiteImages(root, sites[sites["split"] == split], class_numbers=class_numbers, channels=channels,
                   augment=change, cache=cache)
        for split, change in (("train", augment), ("held_out", None))
    )
    return train, held_out


def epoch_batches(sites: pd.DataFrame, *, batch_size: int, scope: str, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of every batch of an epoch; no batch reaches over its scope.

    The rows of a scope (plate, experiment, or all when "mixed") are shuffled and cut into parts of
    nearly equal size: no last batch of one image, whose statistics would be nonsense. Raises
    InputError for a plate (or experiment) of one site.
    """
    generator = np.random.default_rng([seed, epoch])
    batches = []
    for rows in scope_rows(sites, scope):
        if len(rows) < 2:
            place = sites.iloc[rows[0]]
            raise InputError("one site alone has no batch statistics",
                             where=f"{place['experiment']}, plate {place['plate']}",
                             cure="set training.batch_scope: experiment or mixed, or leave the experiment out")
        batches += np.array_split(generator.permutation(rows), num_batches(len(rows), batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def virtual_batches(batches: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Group `batches`, in their order, for the steps of the optimiser: as many as fit into `size` sites.

    The last group holds what is left. A batch that is larger is a group alone, and so is each when
    `size` is 0.
    """
    groups, room = [], 0
    for rows in batches:
        if not groups or len(rows) > room:
            groups.append([])
            room = size
        groups[-1].append(rows)
        room -= len(rows)
    return groups


def group_batches(batches: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    """Group `batches`, in their order, for the steps of the optimiser: so many a step, the last takes what is left."""
    return [batches[first:first + count] for first in range(0, len(batches), count)]


def num_batches(count: int, batch_size: int) -> int:
    """Into how many batches `count` sites are cut: of `batch_size` at most, and never one site alone.

    The second wish wins where both cannot be had: three sites in batches of two become one of three.
    """
    return max(1, min(-(-count // batch_size), count // 2))


def scope_rows(sites: pd.DataFrame, scope: str) -> list[np.ndarray]:
    """Row numbers of `sites`, one array for each plate or experiment, or one in all for "mixed"."""
    keys = SCOPES[scope]
    if not keys:
        return [np.arange(len(sites))]
    return [np.sort(rows) for _, rows in sorted(sites.reset_index(drop=True).groupby(keys).indices.items())]


def iter_batches(data: SiteImages, batches: list[np.ndarray], *, epoch: int = 0, workers: int = 0, device: torch.device = CPU) -> Iterator[Batch]:
    """Yield (images uint8[B, C, H, W] on the device, rows int64[B]) for each batch of row numbers, read by so many threads (`feed`).

    The images are lent until the next batch is asked for. They are augmented: by a `Geometry` on the device, on a CPU while they are read.
    """
    augment, there = data.augment, device.type != "cpu" and isinstance(data.augment, CropFlipRotate)
    if not batches:
        return
    shape = data.shape if there or augment is None else augment(np.zeros(data.shape, np.uint8), epoch=0, site=0).shape
    put = data.put if there else partial(data.put, epoch=epoch, augment=augment)
    with closing(prefetch(put, batches, shape=shape, workers=workers, device=device)) as pictures:
        for images, rows in pictures:
            yield (augment.on_device(images, rows, epoch=epoch) if there else images), rows


def sites_fingerprint(sites: pd.DataFrame) -> str:
    """A short name for a set of labelled sites: it changes when a site or a label does."""
    text = sites[["stem", LABELS if LABELS in sites else "sirna"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

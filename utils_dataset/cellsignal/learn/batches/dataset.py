"""The data set of site images, and the batches of its sites.

Order and augmentation are functions of (seed, epoch, site): a run that resumes at the start of an epoch sees exactly what an
uninterrupted run would have seen, with any number of reading threads.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from threading import local

import numpy as np
import pandas as pd
import torch

from cellsignal.data.images.packed_store import is_store
from cellsignal.data.images.reader import folder_fingerprints, read_site, read_sites
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import Augmentation, CropFlipRotate, augmented
from cellsignal.tasks import RXRX1

# Images on their way to the device: threads fill reusable buffers a few batches ahead of the training step.

PREFETCHED_BATCHES = 2  # read ahead while one is in use
CPU = torch.device("cpu")
ReadImage = Callable[[int, np.ndarray], None]  # reads the image of one row into uint8[C, H, W]
Batch = tuple[torch.Tensor, torch.Tensor]


def prefetch(read: ReadImage, batches: Sequence[np.ndarray], *, shape: Sequence[int], workers: int = 0, device: torch.device = CPU) -> Iterator[Batch]:
    """Yield (images uint8[B, *shape] on `device`, rows int64[B]) for each batch of row numbers, in order.

    The images are valid until the next batch is requested, when their memory may be overwritten. `workers` threads read, and
    for a GPU one more copies from pinned memory, on a CUDA stream of its own; with 0 workers the caller's thread does both. An
    exception of `read` is raised unchanged, for the first failing image. Closing the iterator ends its threads.
    """
    remaining, largest = iter(batches), max(map(len, batches), default=0)
    num_buffers = 1 + PREFETCHED_BATCHES * (workers > 0) + (workers == 0 and device.type == "cuda")
    buffers = [_PinnedBuffer((largest, *shape), device) for _ in batches[:num_buffers]]
    readers, sender = (ThreadPoolExecutor(workers), ThreadPoolExecutor(1)) if workers else (_InlineExecutor(), _InlineExecutor())
    try:
        pending = deque(_submit_batch(read, rows, buffer, readers, sender, parts=workers or 1) for buffer, rows in zip(buffers, remaining))
        while pending:
            buffer, rows, copied = pending.popleft()
            yield buffer.synchronised(copied.result()), torch.from_numpy(np.asarray(rows, np.int64))
            if (rows := next(remaining, None)) is not None:
                pending.append(_submit_batch(read, rows, buffer, readers, sender, parts=workers or 1))
    finally:
        for pool in (readers, sender):
            pool.shutdown(cancel_futures=True)


def _submit_batch(read: ReadImage, rows: np.ndarray, buffer: "_PinnedBuffer", readers: Executor, sender: Executor, *,
                  parts: int) -> tuple["_PinnedBuffer", np.ndarray, Future]:
    """Start reading a batch into a buffer, in several parts at once, and then its copy to the device."""
    buffer.wait_for_copy()
    def read_part(positions: np.ndarray) -> None:
        for position in positions:
            read(int(rows[position]), buffer.images[position])
    reading = [readers.submit(read_part, positions) for positions in np.array_split(np.arange(len(rows)), min(parts, len(rows)))]
    return buffer, rows, sender.submit(buffer.copy_to_device, reading, len(rows))


class _InlineExecutor(Executor):
    """Runs every task at once, in the calling thread."""

    def submit(self, work: Callable, /, *arguments: object) -> Future:
        done: Future = Future()
        try:
            done.set_result(work(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class _PinnedBuffer:
    """Host memory for one batch, pinned for a GPU, and its copy to the device."""

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.device, self.is_cuda = device, device.type == "cuda"
        self.buffer = torch.empty(tuple(shape), dtype=torch.uint8, pin_memory=self.is_cuda)
        self.images = self.buffer.numpy()
        self.stream = torch.cuda.Stream(device) if self.is_cuda else None
        self.copy_event = torch.cuda.Event() if self.is_cuda else None

    def wait_for_copy(self) -> None:
        """Wait until the last copy from the buffer has ended."""
        if self.is_cuda:
            self.copy_event.synchronize()

    def copy_to_device(self, reading: Sequence[Future], count: int) -> torch.Tensor:
        """Wait for the readers, and start the copy to a GPU; on a CPU the batch is the buffer itself."""
        for part in reading:
            part.result()
        batch = self.buffer[:count]
        if not self.is_cuda:
            return batch
        with torch.cuda.stream(self.stream):
            batch = batch.to(self.device, non_blocking=True)
            self.copy_event.record()
        return batch

    def synchronised(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch, safe to use in the caller's CUDA stream."""
        if self.is_cuda:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(self.copy_event)
            batch.record_stream(stream)
        return batch


LABELS_COLUMN = "labels"  # only in tables of multi-label sites
MAX_CACHE_BYTES = 2**31  # larger sets of images are not cached in memory
_thread_local = local()
SCOPES = {"plate": ["experiment", "plate"], "experiment": ["experiment"], "mixed": []}


class SiteImages:
    """Images of sites, uint8[C, H, W], and their labels.

    `root`: the folder that the stems of `sites` are relative to. `class_numbers`: the class of each column of the targets. A
    table with a column `labels`, tuples of class numbers, is multi-label; otherwise `sirna` is each site's class. `labels`:
    positions among the class numbers, int64[N] (-1: none of them), or bool[N, K] if multi-label. `channels`: the file-name
    suffix of each channel. `augment`: applied to the images of batches. `cache`: keep all images in memory.
    """

    def __init__(self, root: Path, sites: pd.DataFrame, *, class_numbers: Sequence[int], channels: Sequence[str] = RXRX1.suffixes,
                 augment: Augmentation | None = None, cache: bool = False) -> None:
        self.root, self.sites, self.channels, self.augment = Path(root), sites.reset_index(drop=True), channels, augment
        self.class_numbers, self.stems = list(class_numbers), self.sites["stem"].tolist()
        self.multilabel = LABELS_COLUMN in self.sites
        self.labels = _class_matrix(self.sites[LABELS_COLUMN], self.class_numbers) if self.multilabel else _class_indices(self.sites["sirna"], self.class_numbers)
        self.cached = list(read_sites(self.root, self.sites, channels=channels)) if cache else None

    @property
    def metric(self) -> str:
        """The name of the metric: "accuracy", or "macro_f1" for multi-label sites."""
        return "macro_f1" if self.multilabel else "accuracy"

    def __len__(self) -> int:
        return len(self.stems)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as stored."""
        return self.image(0).shape

    def image(self, row: int, out: np.ndarray | None = None) -> np.ndarray:
        """The image of one site as stored, uint8[C, H, W]; a packed store decodes it directly into `out`."""
        if self.cached is not None and self.cached[row] is not None:
            return self.cached[row]
        return read_site(self.root, self.stems[row], channels=self.channels, out=out if is_store(self.root) else None)

    def read_into(self, row: int, out: np.ndarray, *, epoch: int = 0, augment: Augmentation | None = None) -> None:
        """Fill `out`, uint8[C, h, w], with the augmented image of one site; InputError if its size differs from the first site's."""
        image = self.image(row, out if augment is None else _scratch_image(self.shape))
        if image.shape != self.shape:
            what = f"its images have {image.shape[2]}x{image.shape[1]} pixels, those of {self.stems[0]} {self.shape[2]}x{self.shape[1]}"
            raise InputError(what, where=self.root / self.stems[row], cure="give all images one size")
        if augment is not None:
            augmented(augment, image, epoch=epoch, site=row, out=out)
        elif image is not out:
            out[...] = image

    def targets(self, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Targets of the sites `rows`, float32[N, K]: 1 for each class of a site, else 0."""
        labels = torch.as_tensor(self.labels[np.asarray(rows)])
        if self.multilabel:
            return labels.float()
        return (labels[:, None] == torch.arange(len(self.class_numbers))).float()


def _scratch_image(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for one image, reused by each thread: allocating it anew costs more than reading."""
    if getattr(_thread_local, "image", np.empty(0)).shape != shape:
        _thread_local.image = np.empty(shape, np.uint8)
    return _thread_local.image


def _class_indices(sirna: pd.Series, class_numbers: list[int]) -> np.ndarray:
    return pd.Index(class_numbers).get_indexer(sirna.astype("Int64").fillna(-1))


def _class_matrix(labels: pd.Series, class_numbers: list[int]) -> np.ndarray:
    """The classes of each site, bool[N, K]; other class numbers are ignored."""
    rows, numbers = np.repeat(np.arange(len(labels)), labels.map(len)), [number for site_labels in labels for number in site_labels]
    columns = pd.Index(class_numbers).get_indexer(numbers) if numbers else np.empty(0, int)
    matrix = np.zeros((len(labels), len(class_numbers)), bool)
    matrix[rows[columns >= 0], columns[columns >= 0]] = True
    return matrix


def concat_images(first: SiteImages, second: SiteImages) -> SiteImages:
    """The sites of two sets with the same classes, augmented like the first; cached images are shared, not copied."""
    both = SiteImages(first.root, pd.concat([first.sites, second.sites]), class_numbers=first.class_numbers,
                      channels=first.channels, augment=first.augment)
    both.labels = np.concatenate([first.labels, second.labels])
    if first.cached is not None or second.cached is not None:
        both.cached = [image for part in (first, second) for image in part.cached or [None] * len(part)]
    return both


def same_data_set(data: SiteImages, sites: pd.DataFrame, *, augment: Augmentation | None = None) -> SiteImages:
    """Other sites of the same data set as `data`, with its classes, channels and caching."""
    return SiteImages(data.root, sites, class_numbers=data.class_numbers, channels=data.channels, augment=augment,
                      cache=data.cached is not None)


def make_train_held_out(root: Path, sites: pd.DataFrame, *, augment: Augmentation | None = None, channels: Sequence[str] = RXRX1.suffixes,
                        class_numbers: Sequence[int] | None = None) -> tuple[SiteImages, SiteImages]:
    """The training and the held-out images (column `split`) of labelled `sites`, with the same classes.

    `class_numbers`: all classes, if not those that occur in `sites`. Only training images are augmented. Images are cached if
    all of them fit in MAX_CACHE_BYTES. Raises InputError without sites.
    """
    if sites.empty:
        raise InputError("no labelled wells of this kind to train on", where=root,
                         cure="look at wells.cell_types and wells.experiments; without controls set training.pretrain_epochs: 0")
    if class_numbers is None:
        class_numbers = sorted(set(sites[LABELS_COLUMN].explode().dropna()) if LABELS_COLUMN in sites else set(sites["sirna"].astype(int)))
    cache = len(sites) * read_site(root, sites["stem"].iloc[0], channels=channels).nbytes <= MAX_CACHE_BYTES
    train, held_out = (
        SiteImages(root, sites[sites["split"] == split], class_numbers=class_numbers, channels=channels,
                   augment=split_augment, cache=cache)
        for split, split_augment in (("train", augment), ("held_out", None))
    )
    return train, held_out


def epoch_batches(sites: pd.DataFrame, *, batch_size: int, scope: str, seed: int, epoch: int) -> list[np.ndarray]:
    """Row numbers of every batch of an epoch; the sites of a batch share one scope.

    The rows of a scope (plate, experiment, or all if "mixed") are shuffled and split into batches of nearly equal size, so that
    no batch has a single image, whose statistics would be meaningless. Raises InputError for a plate (or experiment) with a
    single site.
    """
    generator = np.random.default_rng([seed, epoch])
    batches = []
    for rows in scope_rows(sites, scope):
        if len(rows) < 2:
            site = sites.iloc[rows[0]]
            raise InputError("one site alone has no batch statistics",
                             where=f"{site['experiment']}, plate {site['plate']}",
                             cure="set training.batch_scope: experiment or mixed, or leave the experiment out")
        batches += np.array_split(generator.permutation(rows), num_batches(len(rows), batch_size))
    return [batches[i] for i in generator.permutation(len(batches))]


def virtual_batches(batches: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Group successive `batches` into steps of the optimiser, of at most `size` sites each.

    A batch larger than `size` is a step by itself; so is every batch if `size` is 0.
    """
    groups, remaining = [], 0
    for rows in batches:
        if not groups or len(rows) > remaining:
            groups.append([])
            remaining = size
        groups[-1].append(rows)
        remaining -= len(rows)
    return groups


def group_batches(batches: list[np.ndarray], count: int) -> list[list[np.ndarray]]:
    """Group successive `batches` into steps of the optimiser, of `count` batches each; the last may have fewer."""
    return [batches[first:first + count] for first in range(0, len(batches), count)]


def num_batches(count: int, batch_size: int) -> int:
    """The number of batches for `count` sites: of at most `batch_size` sites, and never of a single one.

    The second condition takes precedence: three sites in batches of two become one batch of three.
    """
    return max(1, min(-(-count // batch_size), count // 2))


def scope_rows(sites: pd.DataFrame, scope: str) -> list[np.ndarray]:
    """Row numbers of `sites`: one array per plate or per experiment, or a single one for "mixed"."""
    keys = SCOPES[scope]
    if not keys:
        return [np.arange(len(sites))]
    return [np.sort(rows) for _, rows in sorted(sites.reset_index(drop=True).groupby(keys).indices.items())]


def read_batches(data: SiteImages, batches: list[np.ndarray], *, epoch: int = 0, workers: int = 0, device: torch.device = CPU) -> Iterator[Batch]:
    """Yield (images uint8[B, C, H, W] on `device`, rows int64[B]) for each batch of row numbers, read by `workers` threads (`prefetch`).

    The images are valid until the next batch is requested. They are augmented: by CropFlipRotate on a GPU, otherwise on the CPU
    while they are read.
    """
    augment, on_device = data.augment, device.type != "cpu" and isinstance(data.augment, CropFlipRotate)
    if not batches:
        return
    shape = data.shape if on_device or augment is None else augmented(augment, np.zeros(data.shape, np.uint8), epoch=0, site=0).shape
    read = data.read_into if on_device else partial(data.read_into, epoch=epoch, augment=augment)
    with closing(prefetch(read, batches, shape=shape, workers=workers, device=device)) as reader:
        for images, rows in reader:
            yield (augment.on_device(images, rows, epoch=epoch) if on_device else images), rows


def images_fingerprint(data: SiteImages) -> str:
    """A short hash of sites and labels, of the images' shape and channels, and of the fingerprint of each folder of images."""
    images = folder_fingerprints(data.root, data.sites["stem"])
    return hashlib.sha256(json.dumps([sites_fingerprint(data.sites), data.shape, list(data.channels), images]).encode()).hexdigest()[:16]


def sites_fingerprint(sites: pd.DataFrame) -> str:
    """A short hash of labelled sites, which changes with every site and label."""
    text = sites[["stem", LABELS_COLUMN if LABELS_COLUMN in sites else "sirna"]].to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

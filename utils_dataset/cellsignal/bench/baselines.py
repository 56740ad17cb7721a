"""What our speed is compared with: the data paths and trainings of other solutions, reimplemented from their descriptions, and the machine's limits.

Brodt: six PNGs to one image, height and width first; random quarter flips and flips on the host, floats from there on; two
processes, batches of 8. Sypetkowski: the same reading; flips, zoom, z-scores of each image and jitter of its channels on
the host; batches of 24. The official loader: scikit-image, channel by channel. Both trained networks eagerly, in fp16 and
in the usual order of memory; Brodt averaged 97 passes, each of which decodes every image again.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from cellsignal import files
from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.timer import CPU, Candidate, now
from cellsignal.data.images.reader import channel_path
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings

with warnings.catch_warnings():  # in a notebook without Jupyter widgets, a module that it imports warns of these in red
    warnings.simplefilter("ignore")
    import albumentations

BRODT, SYPETKOWSKI = 8, 24  # sites a batch
WORKERS = 2
BATCH_SIZES = tuple(range(32, 129))  # batch sizes of the 97 passes
MIN_AREA = 0.5  # least share of an image's area
JITTER = 0.1


def official(root: Path, stem: str) -> np.ndarray:
    """A site as the official utilities read it: scikit-image, one file a channel; uint8[H, W, C]. ImportError without it."""
    from skimage.io import imread

    return np.stack([imread(channel_path(root, stem, channel)) for channel in range(1, CHANNELS + 1)], axis=-1)


def opencv(root: Path, stem: str) -> np.ndarray:
    """A site by OpenCV, one file a channel; uint8[H, W, C]."""
    files = (str(channel_path(root, stem, channel)) for channel in range(1, CHANNELS + 1))
    return np.stack([cv2.imread(file, cv2.IMREAD_GRAYSCALE) for file in files], axis=-1)


class Sites(Dataset):
    """Several epochs of sites as one data set; item i is (float[C, H, W], row of the site)."""

    def __init__(self, root: Path, stems: Sequence[str], *, epochs: int = 1) -> None:
        self.root, self.stems, self.epochs = Path(root), list(stems), epochs

    def __len__(self) -> int:
        return len(self.stems) * self.epochs

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = index % len(self.stems)
        return self.to_input(opencv(self.root, self.stems[row])), row

    def to_input(self, image: np.ndarray) -> torch.Tensor:
        """The network's input from uint8[H, W, C]: grey values / 255."""
        return to_tensor(image)


class Brodt(Sites):
    """Sites as Brodt trained on them."""

    flips = albumentations.Compose([albumentations.RandomRotate90(), albumentations.HorizontalFlip(), albumentations.VerticalFlip()])

    def to_input(self, image: np.ndarray) -> torch.Tensor:
        return to_tensor(self.flips(image=image)["image"])


class Sypetkowski(Sites):
    """Sites as Sypetkowski trained on them."""

    def to_input(self, image: np.ndarray) -> torch.Tensor:
        generator = np.random.default_rng()
        for axis in np.flatnonzero(generator.random(2) < 0.5):
            image = np.flip(image, axis)
        floats = to_tensor(np.ascontiguousarray(_random_zoom(image, generator)))
        deviation, mean = torch.std_mean(floats, dim=(1, 2), keepdim=True)
        scales, shifts = torch.from_numpy(generator.normal(scale=JITTER, size=(2, len(floats), 1, 1))).float()
        return (floats - mean) / (deviation + 1e-6) * (1 + scales) + shifts


def _random_zoom(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random crop, resized to the full size."""
    height, width = image.shape[:2]
    scale = np.sqrt(generator.uniform(MIN_AREA, 1))
    crop_height, crop_width = max(1, round(scale * height)), max(1, round(scale * width))
    top, left = generator.integers(height - crop_height + 1), generator.integers(width - crop_width + 1)
    return cv2.resize(np.ascontiguousarray(image[top:top + crop_height, left:left + crop_width]), (width, height))


def loader(sites: Sites, *, batch_size: int, workers: int = WORKERS, shuffle: bool = True) -> DataLoader:
    """Batches of floats [B, C, H, W], put together on the host by so many processes."""
    return DataLoader(sites, batch_size=batch_size, shuffle=shuffle, num_workers=workers, pin_memory=torch.cuda.is_available())


class Eager:
    """A network trained the usual way: eager, channels first, floats from the host, fp16 on a GPU and fp32 on a CPU."""

    def __init__(self, backbone: str, *, channels: int, classes: int, device: torch.device) -> None:
        self.model = Classifier(NetworkSettings(backbone=backbone), channels=channels, classes=classes).to(device, memory_format=torch.contiguous_format)
        self.device, self.half = device, device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.model.parameters(), amsgrad=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.half)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Of floats [N, C, H, W] from the host."""
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
            return self.model.classify(self.model.body(images.to(self.device, non_blocking=True)))

    def learn(self, images: torch.Tensor, targets: torch.Tensor, *, lap: Callable[[str], None] = lambda part: None) -> int:
        """One step on a batch: float[N, C, H, W] and float[N, classes], on the host; returns N. `lap` is called after each part."""
        self.model.train()
        loss = functional.binary_cross_entropy_with_logits(self.logits(images).float(), targets.to(self.device, non_blocking=True))
        lap("forward")
        self.scaler.scale(loss).backward()
        lap("backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        lap("step")
        return len(images)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> int:
        """Predict one batch and copy the result to the host; returns its size."""
        self.model.eval()
        self.logits(images).float().cpu()
        return len(images)


def bagging(network: Eager, sites: Sites, *, sizes: Sequence[int] = BATCH_SIZES, workers: int = WORKERS) -> tuple[np.ndarray, list[float]]:
    """Log-probabilities float32[N, classes], the mean over one pass for each batch size, and the seconds of each pass.

    Every pass decodes all images again; batches are normalised by themselves and follow the order of the sites.
    """
    total, seconds = 0.0, []
    network.model.train()
    for size in sizes:
        started = now(network.device)
        total = total + _pass(network, loader(sites, batch_size=size, workers=workers, shuffle=False))
        seconds.append(now(network.device) - started)
    return (total / len(sizes)).numpy(), seconds


@torch.no_grad()
def _pass(network: Eager, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([nn.functional.log_softmax(network.logits(images).float(), 1).cpu() for images, _ in batches])


# The limits of the machine: copying memory, multiplying matrices, reading a disk, decoding PNGs, transfer to the GPU.

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

"""The data paths and trainings of other solutions, reimplemented from their descriptions.

Brodt: six PNGs to one image, height and width first; random quarter flips and flips on the host, floats from there on; two
processes, batches of 8. Sypetkowski: the same reading; flips, zoom, z-scores of each image and jitter of its channels on
the host; batches of 24. The official loader: scikit-image, channel by channel. Both trained networks eagerly, in fp16 and
in the usual order of memory; Brodt averaged 97 passes, each of which decodes every image again.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import albumentations
import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from cellsignal.bench.sample import CHANNELS
from cellsignal.bench.timer import now
from cellsignal.data.images.reader import channel_path
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import NetworkSettings

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

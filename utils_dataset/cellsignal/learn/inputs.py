"""What happens to the images of a training batch on the device, on their way to the network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from cellsignal.learn.mixup import Mix
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase

CHANNELS = 5  # keeps the draws of channel scales and shifts apart from those of mixtures


class Room:
    """Memory in which the images of one batch after another are prepared: on a CPU, fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self.memory: torch.Tensor | None = None

    def take(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Room for images [N, C, H, W], channels last; what was taken before is overwritten."""
        count, channels, height, width = shape
        numbers = count * channels * height * width
        if self.memory is None or len(self.memory) < numbers or (self.memory.dtype, self.memory.device) != (dtype, device):
            self.memory = torch.empty(numbers, dtype=dtype, device=device)
        return self.memory[:numbers].view(count, height, width, channels).permute(0, 3, 1, 2)


def training_inputs(model: Classifier, images: torch.Tensor, moments: torch.Tensor | None, *, phase: Phase, epoch: int,
                    number: int, mix: Mix | None = None, room: Room | None = None) -> torch.Tensor:
    """Images [N, C, H, W] of batch `number` of an epoch as the body is to see them: prepared, jittered, mixed, resized.

    Random things depend on (phase.seed, epoch, number) alone. With a `room` the answer lasts until the next batch.
    """
    jitters = phase.channel_scale or phase.channel_shift
    if mix is not None and mix.window is not None and model.standardise == "none" and not jitters:
        # What is only divided by 255 may as well be cut before: bytes are less than floats.
        images, mix = mix.images(images), None
    prepared = model.prepare(images, moments, out=room and room.take(images.shape, dtype=model.dtype, device=images.device))
    if jitters:
        prepared = jittered(prepared, scale=phase.channel_scale, shift=phase.channel_shift, key=(phase.seed, epoch, number))
    if mix is not None:
        prepared = mix.images(prepared).contiguous(memory_format=torch.channels_last)
    return resized(prepared, phase.size(epoch))


def jittered(images: torch.Tensor, *, scale: float, shift: float, key: tuple[int, ...]) -> torch.Tensor:
    """Each channel of each image [N, C, H, W] times N(1, scale) and plus N(0, shift), in its own units, where it lies (Sypetkowski: 0.1 both)."""
    drawn = torch.from_numpy(np.random.default_rng((*key, CHANNELS)).normal(size=(2, *images.shape[:2], 1, 1)))
    factors, terms = drawn.to(images.device, images.dtype, non_blocking=True)
    return images.mul_(1 + scale * factors).add_(shift * terms)


def resized(images: torch.Tensor, size: int | None) -> torch.Tensor:
    """Images [N, C, H, W] whose longer side has `size` px; None leaves them as they are.

    Smaller ones are means over areas, without aliases; larger ones are bilinear.
    """
    longer = max(images.shape[-2:])
    if size is None or size == longer:
        return images
    sides = [max(1, round(side * size / longer)) for side in images.shape[-2:]]
    way = {"mode": "area"} if size < longer else {"mode": "bilinear", "align_corners": False}
    return functional.interpolate(images, sides, **way).contiguous(memory_format=torch.channels_last)

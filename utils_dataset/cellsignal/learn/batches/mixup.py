"""MixUp and CutMix: every sample of a batch becomes a mixture of two.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", with which Brodt finetunes on all data;
Yun et al. 2019, "CutMix", with which Sypetkowski trains.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cellsignal.learn.settings import AugmentationSettings

# Each keeps the draws of one purpose apart from those of augmentations, whose keys are (seed, epoch, site), and of
# hidden covariates, whose stream is 2.
MIXUP, CUTMIX, COIN = 1, 3, 4
Window = tuple[float, float, float, float]  # top, bottom, left, right, as shares of an image's sides


@dataclass(frozen=True)
class Mix:
    """One batch's mixture: each row with row `order` of it, of which it keeps `share`.

    `window`: the part of each image that comes from the other whole; None: the images are blended.
    """

    order: torch.Tensor
    share: float
    window: Window | None = None

    def blend(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of [N, ...] mixed as floats: share * x + (1 - share) * x[order]."""
        floats = tensor if tensor.is_floating_point() else tensor.float()
        return floats[self._order(tensor)].lerp_(floats, self.share)

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] blended, or with a window of the other in each."""
        if self.window is None:
            return self.blend(images)
        top, bottom, left, right = self.pixels(images)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][self._order(images)]
        return mixed

    def _order(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.order.to(tensor.device, non_blocking=True)  # a GPU does not wait for it

    def pixels(self, images: torch.Tensor) -> tuple[int, int, int, int]:
        """The window's edges in pixels of these images."""
        height, width = images.shape[-2:]
        return tuple(round(edge * side) for edge, side in zip(self.window, (height, height, width, width), strict=True))

    def exact(self, images: torch.Tensor) -> "Mix":
        """The same mixture, its share that of the whole pixels which images keep."""
        if self.window is None:
            return self
        top, bottom, left, right = self.pixels(images)
        height, width = images.shape[-2:]
        return Mix(self.order, 1 - (bottom - top) * (right - left) / (height * width), self.window)


def mixup(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A MixUp of so many sites; share and order depend on `key` (seed, epoch, number of the batch) alone.

    The share, one for the batch as in the authors' code, comes from Beta(alpha, alpha). A resumed
    training so mixes the same pairs on any device.
    """
    generator = np.random.default_rng((*key, MIXUP))
    share = float(generator.beta(alpha, alpha))
    return Mix(torch.from_numpy(generator.permutation(sites)), share)


def cutmix(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A CutMix of so many sites, by its key alone as `mixup`: one window for the batch, its centre anywhere.

    Its area is 1 - Beta(alpha, alpha) of the image; what reaches over the edge is cut off, and the
    share is what is left, as in the authors' code.
    """
    generator = np.random.default_rng((*key, CUTMIX))
    side = float(np.sqrt(1 - generator.beta(alpha, alpha)))
    order, middles = generator.permutation(sites), generator.random(2)
    low, high = np.clip(middles - side / 2, 0, 1), np.clip(middles + side / 2, 0, 1)
    return Mix(torch.from_numpy(order), float(1 - np.prod(high - low)), (low[0], high[0], low[1], high[1]))


def mixture(sites: int, settings: AugmentationSettings, *, key: tuple[int, ...]) -> Mix | None:
    """How a batch is mixed: with both kinds set a fair coin decides, also by the key alone; None without either."""
    mixup_alpha, cutmix_alpha = settings.mixup_alpha, settings.cutmix_alpha
    if mixup_alpha and cutmix_alpha:
        heads = np.random.default_rng((*key, COIN)).random() < 0.5
        return mixup(mixup_alpha, sites, key=key) if heads else cutmix(cutmix_alpha, sites, key=key)
    if mixup_alpha:
        return mixup(mixup_alpha, sites, key=key)
    return cutmix(cutmix_alpha, sites, key=key) if cutmix_alpha else None

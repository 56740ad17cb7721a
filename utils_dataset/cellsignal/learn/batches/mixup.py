"""MixUp and CutMix: every image of a batch is mixed with another one.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", with which Brodt finetunes on all data;
Yun et al. 2019, "CutMix", with which Sypetkowski trains.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cellsignal.learn.settings import AugmentationSettings

# Each separates the random numbers of one purpose from those of augmentations, whose keys are (seed, epoch, site), and of
# masked covariates, whose stream is 2.
MIXUP_STREAM, CUTMIX_STREAM, CHOICE_STREAM = 1, 3, 4
Window = tuple[float, float, float, float]  # top, bottom, left, right, as shares of height and width


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed: row i with row `order[i]`, where `share` is the weight of row i.

    `window`: the part of each image that is replaced by the other image (CutMix); None blends the images (MixUp).
    """

    order: torch.Tensor
    share: float
    window: Window | None = None

    def blend(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of [N, ...] mixed as floats: share * x + (1 - share) * x[order]."""
        floats = tensor if tensor.is_floating_point() else tensor.float()
        return floats[self._order(tensor)].lerp_(floats, self.share)

    def mix_images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W], blended or with a window of the other image."""
        if self.window is None:
            return self.blend(images)
        top, bottom, left, right = self.window_pixels(images)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][self._order(images)]
        return mixed

    def _order(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.order.to(tensor.device, non_blocking=True)  # does not wait for a GPU

    def window_pixels(self, images: torch.Tensor) -> tuple[int, int, int, int]:
        """The edges of the window in pixels of these images."""
        height, width = images.shape[-2:]
        return tuple(round(edge * side) for edge, side in zip(self.window, (height, height, width, width), strict=True))

    def with_pixel_share(self, images: torch.Tensor) -> "Mix":
        """The same mix, with the exact share of pixels that each image keeps."""
        if self.window is None:
            return self
        top, bottom, left, right = self.window_pixels(images)
        height, width = images.shape[-2:]
        return Mix(self.order, 1 - (bottom - top) * (right - left) / (height * width), self.window)


def mixup(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A MixUp of a number of sites; share and order depend on `key` (seed, epoch, number of the batch) alone.

    The share is drawn from Beta(alpha, alpha), once per batch as in the authors' code. A resumed training therefore mixes the
    same pairs on any device.
    """
    generator = np.random.default_rng((*key, MIXUP_STREAM))
    share = float(generator.beta(alpha, alpha))
    return Mix(torch.from_numpy(generator.permutation(sites)), share)


def cutmix(alpha: float, sites: int, *, key: tuple[int, ...]) -> Mix:
    """A CutMix of a number of sites, which like `mixup` depends on `key` alone: one window per batch, its centre anywhere.

    Its area is 1 - Beta(alpha, alpha) of the image; it is clipped at the edges, and the share is the remaining area, as in the
    authors' code.
    """
    generator = np.random.default_rng((*key, CUTMIX_STREAM))
    side = float(np.sqrt(1 - generator.beta(alpha, alpha)))
    order, centre = generator.permutation(sites), generator.random(2)
    low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
    return Mix(torch.from_numpy(order), float(1 - np.prod(high - low)), (low[0], high[0], low[1], high[1]))


def draw_mix(sites: int, settings: AugmentationSettings, *, key: tuple[int, ...]) -> Mix | None:
    """The mix of a batch, MixUp or CutMix with equal probability if both are set; it depends on `key` alone. None without either."""
    mixup_alpha, cutmix_alpha = settings.mixup_alpha, settings.cutmix_alpha
    if mixup_alpha and cutmix_alpha:
        use_mixup = np.random.default_rng((*key, CHOICE_STREAM)).random() < 0.5
        return mixup(mixup_alpha, sites, key=key) if use_mixup else cutmix(cutmix_alpha, sites, key=key)
    if mixup_alpha:
        return mixup(mixup_alpha, sites, key=key)
    return cutmix(cutmix_alpha, sites, key=key) if cutmix_alpha else None

"""Losses on the cosines between a site's features and its classes', with a margin that the right class has to win by."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional

SMALLEST_SINE = 1e-4  # below it the slope of the angle runs away


def arcface(cosines: torch.Tensor, labels: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Cosines [N, K] whose entry at `labels` int64[N] is that of an angle wider by `margin` (radians).

    Beyond pi - margin, where the cosine would rise again, it falls on in a straight line. Deng et
    al. 2019, "ArcFace: Additive Angular Margin Loss".
    """
    cosine = cosines.gather(1, labels[:, None])
    sine = (1 - cosine**2).clamp(min=SMALLEST_SINE**2).sqrt()
    wider = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)
    return cosines.scatter(1, labels[:, None], torch.where(cosine > -math.cos(margin), wider, beyond))


def cosface(cosines: torch.Tensor, labels: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Cosines [N, K] whose entry at `labels` int64[N] is less by `margin`. Wang et al. 2018, "CosFace"."""
    return cosines.scatter_add(1, labels[:, None], torch.full_like(cosines[:, :1], -margin))


MARGINS: dict[str, Callable[..., torch.Tensor]] = {"arcface": arcface, "cosface": cosface}


def margin_loss(name: str, cosines: torch.Tensor, targets: torch.Tensor, *, margin: float, scale: float) -> torch.Tensor:
    """Cross-entropy of the scaled cosines with the margin called `name`, mean over sites.

    A margin wants one class; a mixed site has two, and each weighs by its share in `targets`
    float[N, K] (Sypetkowski's CutMix does so).
    """
    shares, classes = targets.topk(min(2, targets.shape[1]), dim=1)
    losses = [share * functional.cross_entropy(scale * MARGINS[name](cosines, labels, margin=margin), labels, reduction="none")
              for share, labels in zip(shares.T, classes.T, strict=True)]
    return sum(losses).mean()

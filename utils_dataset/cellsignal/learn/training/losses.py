"""Losses by name, and weighted sums of them; each takes logits [N, K] and targets [N, K] in 0..1 and returns a scalar."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from cellsignal.learn import settings
from cellsignal.learn.settings import SINGLE_LABEL_LOSSES

# Losses on the cosines between the features of a site and the prototypes of the classes, with a margin for the true class.


SMALLEST_SINE = 1e-4  # below it the derivative of the angle diverges


def arcface(cosines: torch.Tensor, labels: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Cosines [N, K] whose angle at `labels` int64[N] is increased by `margin` (radians).

    Beyond pi - margin, where the cosine would rise again, it continues on a straight line downwards. Deng et al. 2019,
    "ArcFace: Additive Angular Margin Loss".
    """
    cosine = cosines.gather(1, labels[:, None])
    sine = (1 - cosine**2).clamp(min=SMALLEST_SINE**2).sqrt()
    with_margin = cosine * math.cos(margin) - sine * math.sin(margin)
    linear = cosine - margin * math.sin(margin)
    return cosines.scatter(1, labels[:, None], torch.where(cosine > -math.cos(margin), with_margin, linear))


def cosface(cosines: torch.Tensor, labels: torch.Tensor, *, margin: float) -> torch.Tensor:
    """Cosines [N, K] less `margin` at `labels` int64[N]. Wang et al. 2018, "CosFace"."""
    return cosines.scatter_add(1, labels[:, None], torch.full_like(cosines[:, :1], -margin))


MARGINS: dict[str, Callable[..., torch.Tensor]] = {"arcface": arcface, "cosface": cosface}


def margin_loss(name: str, cosines: torch.Tensor, targets: torch.Tensor, *, margin: float, scale: float) -> torch.Tensor:
    """Cross-entropy of the scaled cosines with the margin called `name`, mean over sites.

    A margin needs one class; a mixed site has two, each weighted by its share in `targets` float[N, K] (as in Sypetkowski's
    CutMix).
    """
    shares, classes = targets.topk(min(2, targets.shape[1]), dim=1)
    losses = [share * functional.cross_entropy(scale * MARGINS[name](cosines, labels, margin=margin), labels, reduction="none")
              for share, labels in zip(shares.T, classes.T, strict=True)]
    return sum(losses).mean()


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Focal loss, a BCE that weighs down easy labels: gamma 2, no class weights (Lin et al. 2017)."""
    return sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction="mean")


def lovasz(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean of the Lovasz hinge losses of the labels that a site has and of those that it lacks, averaged over sites.

    A convex surrogate of the Jaccard index of the predicted labels (Berman et al. 2018), made symmetric as in the winning
    solution of the Protein Atlas competition.
    """
    return (_lovasz_hinge(logits, targets) + _lovasz_hinge(-logits, 1 - targets)).mean() / 2


def _lovasz_hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One loss per site, [N]: hinge errors in descending order, each weighted by its increment of the Jaccard loss."""
    errors, order = (1 - logits * (2 * targets - 1)).sort(dim=1, descending=True)
    positive = targets.gather(1, order)
    total = positive.sum(1, keepdim=True)
    jaccard = 1 - (total - positive.cumsum(1)) / (total + (1 - positive).cumsum(1))
    increments = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return (functional.relu(errors) * increments).sum(1)


# Brodt trains with BCE over all classes ("yes, not xEntropy"): each class is a binary question of its own.
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": functional.binary_cross_entropy_with_logits,
    "cross-entropy": functional.cross_entropy,
    "focal": focal,
    "lovasz": lovasz,
}


@dataclass(frozen=True)
class Loss:
    """A weighted sum of losses: `terms` of (weight, name)."""

    terms: tuple[tuple[float, str], ...]

    @property
    def uses_cosines(self) -> bool:
        """Whether a term needs cosines, and so a network with a cosine head."""
        return any(name in MARGINS for _, name in self.terms)

    @property
    def single_label(self) -> bool:
        """Whether a term is defined only for sites with a single label."""
        return any(name in SINGLE_LABEL_LOSSES for _, name in self.terms)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, cosines: torch.Tensor | None = None, *,
                 smoothed: torch.Tensor | None = None, margin: float = 0.5, scale: float = 30.0) -> torch.Tensor:
        """The loss of a batch, a scalar; terms on logits use the `smoothed` targets if there are any."""
        logit_targets = targets if smoothed is None else smoothed
        values = [weight * (margin_loss(name, cosines, targets, margin=margin, scale=scale) if name in MARGINS
                            else LOSSES[name](logits, logit_targets)) for weight, name in self.terms]
        return sum(values)


@cache
def parse_loss(text: str) -> Loss:
    """The loss of an expression such as "0.8 cross-entropy + 0.1 arcface" (`settings.loss_terms`)."""
    return Loss(settings.loss_terms(text))


def smooth_targets(targets: torch.Tensor, smoothing: float, *, uniform: float) -> torch.Tensor:
    """Label smoothing: targets blended with a `uniform` target, 1/K for one of K classes, or 0.5 for independent labels.

    Szegedy et al. 2016; He et al. 2018, "Bag of Tricks", followed by Surin.
    """
    return targets * (1 - smoothing) + smoothing * uniform

"""Losses by name, and sums of them; each takes logits [N, K] and targets [N, K] in 0..1 and returns a scalar."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from cellsignal.learn import settings
from cellsignal.learn.settings import ONE_LABEL

# Losses on the cosines between a site's features and its classes', with a margin that the right class has to win by.


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


def focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """BCE in which what is right already counts little: gamma 2, no class weights (Lin et al. 2017)."""
    return sigmoid_focal_loss(logits, targets, alpha=-1, gamma=2, reduction="mean")


def lovasz(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The Lovasz hinge of a site's labels and of those it lacks, halved; mean over sites.

    A convex surrogate of the Jaccard index of the labels named (Berman et al. 2018); symmetric, as
    the first of the Protein Atlas made it.
    """
    return (_lovasz_hinge(logits, targets) + _lovasz_hinge(-logits, 1 - targets)).mean() / 2


def _lovasz_hinge(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One loss a site, [N]: hinge errors, the worst first, weighed by what each adds to the Jaccard loss."""
    errors, order = (1 - logits * (2 * targets - 1)).sort(dim=1, descending=True)
    told = targets.gather(1, order)
    wanted = told.sum(1, keepdim=True)
    jaccard = 1 - (wanted - told.cumsum(1)) / (wanted + (1 - told).cumsum(1))
    steps = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return (functional.relu(errors) * steps).sum(1)


# Brodt trains with BCE over all classes ("yes, not xEntropy"): every class is its own question.
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
    def cosines(self) -> bool:
        """Whether a term looks at cosines, which a network must have a head for."""
        return any(name in MARGINS for _, name in self.terms)

    @property
    def one_label(self) -> bool:
        """Whether a term makes sense only where a site has one label."""
        return any(name in ONE_LABEL for _, name in self.terms)

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor, cosines: torch.Tensor | None = None, *,
                 smooth: torch.Tensor | None = None, margin: float = 0.5, scale: float = 30.0) -> torch.Tensor:
        """The loss of a batch, a scalar; terms on logits look at the `smooth` targets, where there are some."""
        soft = targets if smooth is None else smooth
        values = [weight * (margin_loss(name, cosines, targets, margin=margin, scale=scale) if name in MARGINS
                            else LOSSES[name](logits, soft)) for weight, name in self.terms]
        return sum(values)


@cache
def parse_loss(text: str) -> Loss:
    """The loss that an expression such as "0.8 cross-entropy + 0.1 arcface" means (`settings.parse_loss`)."""
    return Loss(settings.parse_loss(text))


def smooth_targets(targets: torch.Tensor, share: float, *, towards: float) -> torch.Tensor:
    """Targets that give up a share for as much of `towards`: 1/K of K classes, or 0.5 where each label is a question.

    Szegedy et al. 2016; He et al. 2018, "Bag of Tricks", whom Surin follows.
    """
    return targets * (1 - share) + share * towards

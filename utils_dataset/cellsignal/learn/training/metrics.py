"""What an epoch is measured by, from counts that batches and processes can add up."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Metric:
    """`counts(logits, targets)` of a batch, and the `value` of their sum over so many sites."""

    kinds: int  # of counts
    each_class: bool  # whether each class has its own
    counts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor, int], float]

    def none(self, classes: int) -> torch.Tensor:
        """The counts of no site, float64[M]."""
        return torch.zeros(self.kinds * (classes if self.each_class else 1), dtype=torch.float64)


def _hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many sites are named rightly; a mixed site counts as the one that dominates it."""
    return (logits.argmax(1) == targets.argmax(1)).sum().double()[None]


def _class_hits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Three counts a class, one after the other: labels named rightly, named, and true."""
    named, true = logits > 0, targets > 0.5
    return torch.cat([(named & true).sum(0), named.sum(0), true.sum(0)]).double()


def _macro_f1(counts: torch.Tensor) -> float:
    right, named, true = counts.reshape(3, -1)
    return (2 * right / (named + true).clamp(min=1)).mean().item()


# A class that no site has and that nobody named counts 0, as in scikit-learn and on Kaggle.
METRICS = {
    "accuracy": Metric(1, False, _hits, lambda counts, sites: counts.item() / sites),
    "macro_f1": Metric(3, True, _class_hits, lambda counts, sites: _macro_f1(counts)),
}

"""Metrics of an epoch, computed from counts that are summed over batches and processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Metric:
    """`counts(logits, targets)` of a batch, and `value(summed counts, number of sites)`."""

    num_counts: int
    per_class: bool  # whether each class has counts of its own
    counts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    value: Callable[[torch.Tensor, int], float]

    def zero_counts(self, classes: int) -> torch.Tensor:
        """The counts before the first site, float64[M]."""
        return torch.zeros(self.num_counts * (classes if self.per_class else 1), dtype=torch.float64)


def _correct_sites(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The number of sites classified correctly; a mixed site counts as its larger part."""
    return (logits.argmax(1) == targets.argmax(1)).sum().double()[None]


def _class_counts(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """For each class the true positives; then the predicted and the actual positives."""
    predicted, actual = logits > 0, targets > 0.5
    return torch.cat([(predicted & actual).sum(0), predicted.sum(0), actual.sum(0)]).double()


def _macro_f1(counts: torch.Tensor) -> float:
    correct, predicted, actual = counts.reshape(3, -1)
    return (2 * correct / (predicted + actual).clamp(min=1)).mean().item()


# A class that no site has and that is predicted for none counts 0, as in scikit-learn and on Kaggle.
METRICS = {
    "accuracy": Metric(1, False, _correct_sites, lambda counts, sites: counts.item() / sites),
    "macro_f1": Metric(3, True, _class_counts, lambda counts, sites: _macro_f1(counts)),
}

"""Losses by name; each takes logits [N, K] and targets [N, K] in 0..1 and returns a scalar."""

from collections.abc import Callable

import torch
from torch.nn import functional

# Brodt trains with BCE over all classes ("yes, not xEntropy"): every class is its own question.
LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "bce": functional.binary_cross_entropy_with_logits,
}

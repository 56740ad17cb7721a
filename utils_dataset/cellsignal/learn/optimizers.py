"""Optimisers by name."""

from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter

# What torch takes for granted stays as it is, but for Adam's AMSGrad (Reddi et al. 2018), which Brodt's
# solution uses. Fused steps are fast; RAdam (Liu et al. 2020) has none.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights, momentum, **options: torch.optim.Adam(weights, amsgrad=True, fused=True, **options),
    "adamw": lambda weights, momentum, **options: torch.optim.AdamW(weights, fused=True, **options),
    "sgd": lambda weights, momentum, **options: torch.optim.SGD(weights, momentum=momentum, fused=True, **options),
    "radam": lambda weights, momentum, **options: torch.optim.RAdam(weights, **options),
}


def optimizer(name: str, weights: Iterable[Parameter], *, learning_rate: float, weight_decay: float = 0.0,
              momentum: float = 0.9) -> torch.optim.Optimizer:
    """The optimiser called `name` for these weights; only "sgd" has a `momentum` of its own, without Nesterov's look ahead."""
    return OPTIMIZERS[name](weights, momentum, lr=learning_rate, weight_decay=weight_decay)


def set_learning_rate(chosen: torch.optim.Optimizer, rate: float) -> float:
    """Set the rate of every parameter group, and return it."""
    for group in chosen.param_groups:
        group["lr"] = rate
    return rate

"""Optimisers by name."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import TrainingSettings

# What torch takes for granted stays as it is, but for Adam's AMSGrad (Reddi et al. 2018), which Brodt's
# solution uses. Fused steps are fast; RAdam (Liu et al. 2020) has none.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights, momentum, **options: torch.optim.Adam(weights, amsgrad=True, fused=True, **options),
    "adamw": lambda weights, momentum, **options: torch.optim.AdamW(weights, fused=True, **options),
    "sgd": lambda weights, momentum, **options: torch.optim.SGD(weights, momentum=momentum, fused=True, **options),
    "radam": lambda weights, momentum, **options: torch.optim.RAdam(weights, **options),
}


def optimizer(settings: TrainingSettings, weights: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimiser for these weights; only "sgd" has a `momentum` of its own, without Nesterov's look ahead."""
    return OPTIMIZERS[settings.optimizer](weights, settings.momentum, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def set_learning_rate(chosen: torch.optim.Optimizer, rate: float) -> float:
    """Set the rate of every parameter group, and return it."""
    for group in chosen.param_groups:
        group["lr"] = rate
    return rate


# The average of a network's weights over the steps of its training.


class WeightAverage:
    """A copy of a network whose weights follow those of the original slowly: exponential moving averages.

    Polyak and Juditsky 1992; the second of RxRx1 called it mean teacher (Tarvainen and Valpola 2017).
    Running statistics are averaged too, and what does not train stays as it is. After `steps` steps the
    decay is (1 + steps) / (10 + steps), until that reaches `decay`: a short training would else keep
    much of the weights that it began with (as TensorFlow's ExponentialMovingAverage does).
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: Classifier) -> None:
        """Take in the weights after a step of the optimiser."""
        own, new = _floats(self.network), _floats(model)
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)([own[name] for name in new], list(new.values()), None)
        self.steps += 1

    @torch.no_grad()
    def settle(self, model: Classifier) -> None:
        """Take over what counts, which has no average: the batches that running statistics have seen."""
        own = dict(self.network.named_buffers())
        for name, count in model.named_buffers():
            if not count.is_floating_point():
                own[name].copy_(count)


def _floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and running statistics; those that are put aside (`batch_statistics`) are not among them."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()}

"""Optimisers by name, and the moving average of the weights."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch.nn import Parameter
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import TrainingSettings

# PyTorch's defaults, except for Adam's AMSGrad (Reddi et al. 2018), which Brodt's solution uses. Fused steps are fast;
# RAdam (Liu et al. 2020) has none.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda weights, momentum, **options: torch.optim.Adam(weights, amsgrad=True, fused=True, **options),
    "adamw": lambda weights, momentum, **options: torch.optim.AdamW(weights, fused=True, **options),
    "sgd": lambda weights, momentum, **options: torch.optim.SGD(weights, momentum=momentum, fused=True, **options),
    "radam": lambda weights, momentum, **options: torch.optim.RAdam(weights, **options),
}


def build_optimizer(settings: TrainingSettings, weights: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimiser for these weights; only "sgd" uses `momentum`, without Nesterov's variant."""
    return OPTIMIZERS[settings.optimizer](weights, settings.momentum, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Set the rate of every parameter group, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


# The moving average of a network's weights over the steps of its training.


class WeightAverage:
    """A copy of a network with the exponential moving average of its weights.

    Polyak and Juditsky 1992; the second place of RxRx1 called it mean teacher (Tarvainen and Valpola 2017). Running
    statistics are averaged too. After `steps` steps the decay is (1 + steps) / (10 + steps), until that reaches `decay`;
    otherwise the average of a short training would keep much of the initial weights (as in TensorFlow's
    ExponentialMovingAverage).
    """

    def __init__(self, model: Classifier, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.network = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Classifier) -> None:
        """Add the weights after a step of the optimiser to the average."""
        averaged, new = _float_tensors(self.network), _float_tensors(model)
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)([averaged[name] for name in new], list(new.values()), None)
        self.steps += 1

    @torch.no_grad()
    def copy_counters(self, model: Classifier) -> None:
        """Copy the integer buffers, which have no average: the number of batches behind the running statistics."""
        averaged = dict(self.network.named_buffers())
        for name, buffer in model.named_buffers():
            if not buffer.is_floating_point():
                averaged[name].copy_(buffer)


def _float_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and running statistics, except statistics that `batch_statistics` has set aside."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()}

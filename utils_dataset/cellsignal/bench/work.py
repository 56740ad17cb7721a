"""How much work a network is: operations and memory traffic of a site, counted without doing them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cellsignal.learn.models import Classifier
from cellsignal.tasks import RXRX1

BATCH = 4  # of the sites that are counted; a batch's constant part, the weights, is divided by it as in training by small ones


@dataclass(frozen=True)
class Work:
    """Of one site: each operator's floating-point operations and the numbers that it reads and writes, as they come."""

    operators: tuple[tuple[float, float], ...]

    @property
    def flops(self) -> float:
        """Floating-point operations; a multiplication and an addition are two."""
        return sum(flops for flops, _ in self.operators)

    @property
    def numbers(self) -> float:
        """Numbers read and written, were each operator to begin and end in memory, as eager ones do."""
        return sum(numbers for _, numbers in self.operators)

    def seconds(self, flops: float, bandwidth: float, *, width: int) -> float:
        """The least time on a machine of so many operations and bytes a second, in numbers of `width` bytes.

        Every operator takes what its arithmetic or its traffic takes, whichever is more: the roofline (Williams et al. 2009).
        """
        return sum(max(each / flops, width * numbers / bandwidth) for each, numbers in self.operators)


@cache
def work(backbone: str, image_size: int, *, channels: int = len(RXRX1.channels), classes: int = 1108) -> tuple[Work, Work]:
    """What a site costs that is looked at, and what a site costs that is learnt from, forwards and backwards; without the optimiser."""
    with torch.device("meta"):
        model = Classifier(backbone, channels=channels, classes=classes)
        images = torch.empty(BATCH, channels, image_size, image_size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _Count() as seen:
        model.eval().classify(model.embed(images))
    with _Count() as learnt:
        model.train().classify(model.embed(images)).sum().backward()
    return seen.work(), learnt.work()


def weights(backbone: str, *, channels: int = len(RXRX1.channels), classes: int = 1108) -> int:
    """How many weights a network has."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in Classifier(backbone, channels=channels, classes=classes).parameters())


class _Count(TorchDispatchMode):
    """Notes every operator that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, operator: Any, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        out = operator(*args, **kwargs)
        if not _is_view(operator):
            count: Callable | None = flop_registry.get(operator._overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            self.found.append((flops / BATCH, (_numbers(args) + _numbers(kwargs.values()) + _numbers([out])) / BATCH))
        return out

    def work(self) -> Work:
        """All that was noted."""
        return Work(tuple(self.found))


def _is_view(operator: Any) -> bool:
    """Whether it only looks at its input in another way."""
    returns = operator._schema.returns
    return any(each.alias_info is not None and not each.alias_info.is_write for each in returns)


def _numbers(values: Any) -> int:
    """Numbers in all tensors among some values."""
    leaves = torch.utils._pytree.tree_leaves(list(values))
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))

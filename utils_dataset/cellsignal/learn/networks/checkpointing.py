"""Gradient checkpointing: the blocks of a network store their inputs only, and are computed again in the backward pass, in parts if need be.

In parts, the forward pass is that of the whole batch; the backward pass computes a block for a few sites at a time, normalised by
the statistics of the whole batch. These couple all sites: the gradient of the loss by each statistic is summed over all parts
first, and then goes on through the statistic to every site. The sums are those of the whole batch, in another order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, get_args

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from cellsignal.errors import InputError
from cellsignal.learn.networks.batchnorm import Norm, batchnorm_layers

_WEIGHTS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class Checkpointing:
    """How the body of a network is trained: `parts` 0 plainly, 1 with gradient checkpointing, more in so many parts of a batch.

    `setting`: machine.gradient_checkpointing; only "auto" and True may save more when memory runs out, and not of a `compiled` body.
    """

    def __init__(self, body: nn.Module, setting: bool | str = "auto", *, parts: int = 0, compiled: bool = False) -> None:
        self.body, self.setting, self.parts, self.compiled = body, setting, parts, compiled
        checkpoint_blocks(body, parts=parts)

    def save_memory(self, batch_size: int) -> None:
        """Train with less memory from now on: with checkpointing, then in 2, 4, ... parts of a batch; one line says so.

        Raises InputError when nothing is left to save.
        """
        if self.compiled:
            raise InputError("the memory does not hold a training batch", where="machine.compile", cure="set it to false, or lower training.batch_size")
        if self.setting is False:
            raise InputError("the memory does not hold a training batch", where="machine.gradient_checkpointing", cure="set it to auto, or lower training.batch_size")
        if self.parts >= batch_size:
            raise InputError("the memory does not hold a training batch, even in parts of one site", where="training.batch_size",
                             cure="lower it, or train on smaller images (augmentation.progressive_sizes)")
        self.parts = min(2 * self.parts, batch_size) if self.parts else 1
        checkpoint_blocks(self.body, parts=self.parts)
        how = "with gradient checkpointing" if self.parts == 1 else f"with gradient checkpointing, in {self.parts} parts"
        print(f"memory ran out: batches of {batch_size} are computed {how} from now on, with the same statistics and gradients", flush=True)


def checkpoint_blocks(body: nn.Module, *, parts: int = 1) -> int:
    """Have the blocks of a body checkpointed in so many parts of a batch, or for 0 no longer; returns their number.

    Gradients and running statistics stay the same, with one part bit for bit. A block is the smallest module with two layers of
    weights and a norm: a layer of a DenseNet, a block of a ResNet; a sequence of layers (VGG) is split after its pooling layers.
    A body without batch normalisation, whose sites have nothing to do with each other, is one block if there are several parts.
    """
    for module in body.modules():
        if isinstance(forward := vars(module).get("forward"), partial) and forward.func in (_checkpointed_forward, _checkpointed_sequence):
            del module.forward
    blocks = [body] if parts > 1 and not batchnorm_layers(body) else checkpointed_blocks(body, parts=parts) if parts else []
    for block in blocks:
        block.forward = partial(_checkpointed_sequence if type(block) is nn.Sequential else _checkpointed_forward, block, block.forward, parts)
    return len(blocks)


def checkpointed_blocks(body: nn.Module, *, parts: int = 1) -> list[nn.Module]:
    """The smallest modules of a body that have two layers of weights and a norm; with several parts also others with one (DenseNet's transitions)."""
    blocks = _smallest(body, weights=2)
    inside = {module for block in blocks for module in block.modules()}
    return blocks + [module for module in _smallest(body, weights=1) if module not in inside] * (parts > 1)


def _smallest(body: nn.Module, *, weights: int) -> list[nn.Module]:
    if inner := [block for child in body.children() for block in _smallest(child, weights=weights)]:
        return inner
    modules = list(body.modules())
    is_block = sum(isinstance(module, _WEIGHTS) for module in modules) >= weights and any(isinstance(module, _NORMS) for module in modules)
    return [body] * is_block


def _checkpointed_forward(block: nn.Module, forward: Callable, parts: int, inputs: Any, *arguments: Any) -> torch.Tensor:
    """The output of `forward` for a tensor or a list of tensors, which are all that is stored for the backward pass."""
    if not (block.training and torch.is_grad_enabled()):
        return forward(inputs, *arguments)
    is_list = isinstance(inputs, list)
    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return forward(list(tensors) if is_list else tensors[0], *arguments)
    tensors = inputs if is_list else [inputs]
    parts = min(parts, len(tensors[0]))
    if parts > 1 and _is_divisible(block) and not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(arguments)):
        weights = [weight for weight in block.parameters() if weight.requires_grad]
        return _InParts.apply(run, batchnorm_layers(block), parts, len(tensors), *tensors, *weights)
    tracking = {norm: norm.track_running_stats for norm in batchnorm_layers(block)}
    return checkpoint(run, *tensors, use_reentrant=False, context_fn=lambda: (nullcontext(), _second_pass(tracking)))


def _is_divisible(block: nn.Module) -> bool:
    """Whether a block gives the same in parts: it drops nothing at random, which parts would draw otherwise, and its norms are known."""
    is_random = any(getattr(module, "p", 0) or getattr(module, "drop_prob", 0) for module in block.modules() if "Drop" in type(module).__name__)
    return not is_random and all(type(norm) in get_args(Norm) or _activates(norm) for norm in batchnorm_layers(block))


def _activates(norm: Norm) -> bool:
    """Whether a norm is one of timm's with an activation behind it."""
    return type(norm).__name__ == "BatchNormAct2d"


@contextmanager
def _second_pass(tracking: Mapping[Norm, bool]) -> Iterator[None]:
    """Inside, norms update copies of their running statistics, which have seen the batch already, if they updated them in the first pass.

    With statistics in one pass alone they would save other tensors than in the other, which PyTorch refuses.
    """
    saved = [(norm, name, value) for norm in tracking for name, value in (*norm.named_buffers(), ("track_running_stats", norm.track_running_stats))]
    for norm, name, value in saved:
        setattr(norm, name, value.clone() if isinstance(value, torch.Tensor) else tracking[norm])
    try:
        yield
    finally:
        for norm, name, value in saved:
            setattr(norm, name, value)


def checkpointed_segments(body: nn.Module, *, parts: int = 1) -> list[tuple[nn.Module, nn.Module]]:
    """The first and the last module of whatever part of a body is computed again as one: a block, or a segment of a sequence."""
    return [pair for block in checkpointed_blocks(body, parts=parts)
            for pair in ([(segment[0], segment[-1]) for segment in _segments(block)] if type(block) is nn.Sequential else [(block, block)])]


def _segments(sequence: nn.Sequential) -> Iterator[nn.Sequential]:
    """A sequence of layers, split after its pooling layers."""
    segment: list[nn.Module] = []
    for number, layer in enumerate(sequence, 1):
        segment.append(layer)
        if isinstance(layer, _POOLS) or number == len(sequence):
            yield nn.Sequential(*segment)
            segment = []


def _checkpointed_sequence(sequence: nn.Sequential, forward: Callable, parts: int, inputs: torch.Tensor) -> torch.Tensor:
    """The same for a sequence of layers, segment by segment."""
    if not (sequence.training and torch.is_grad_enabled()):
        return forward(inputs)
    for segment in _segments(sequence):
        inputs = _checkpointed_forward(segment, segment.forward, parts, inputs)
    return inputs


# A block in parts of the batch.


class _InParts(torch.autograd.Function):
    """`run(*inputs)`, computed for the whole batch in the forward pass, and again in parts of it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable, norms: list[Norm], parts: int, count: int, *tensors: torch.Tensor) -> torch.Tensor:
        device = tensors[0].device.type
        autocast = {"device_type": "cpu", "enabled": False}
        if device != "meta":
            autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        norms = [norm for norm in norms if norm.training or norm.running_mean is None]
        # Without its cache, which would keep weights that were cast where no gradients are recorded.
        with torch.autocast(**autocast, cache_enabled=False), _Recorder(norms) as recorder:
            output = run(*tensors[:count])
        ctx.run, ctx.norms, ctx.parts, ctx.count, ctx.autocast, ctx.statistics = run, norms, parts, count, autocast, recorder.statistics
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        tensors, statistics = ctx.saved_tensors, ctx.statistics
        inputs, needed = tensors[:ctx.count], ctx.needs_input_grad[4:]
        sums = {id(tensor): torch.zeros_like(tensor) for tensor, need in zip(tensors, needed, strict=True) if need}
        affine = {id(weight) for norm in ctx.norms for weight in norm.parameters()}  # of which each pass has copies
        weights = [tensor for tensor in tensors[ctx.count:] if id(tensor) in sums and id(tensor) not in affine]
        by_statistics = [(torch.zeros_like(each.mean), torch.zeros_like(each.mean)) for each in statistics]
        ends = torch.arange(len(gradient)).tensor_split(ctx.parts)
        # First from the output; then, when the statistics of a layer have the gradients of all parts, from these, the last layer first.
        for layer in range(len(statistics), -1, -1):
            for part in (slice(int(rows[0]), int(rows[-1]) + 1) for rows in ends):
                leaves = [tensor[part].detach().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=False)]
                with torch.enable_grad(), torch.autocast(**ctx.autocast, cache_enabled=False), _Normaliser(ctx.norms, statistics, layer) as normaliser:
                    output = normaliser.reach(ctx.run, leaves)
                if not output.requires_grad:
                    break
                from_output = gradient[part] if layer == len(statistics) else statistics[layer].gradient(output.detach(), *by_statistics[layer])
                sources = [*(leaf for leaf in leaves if leaf.requires_grad), *weights, *(leaf for pair in normaliser.affine for leaf in pair)]
                found = iter(torch.autograd.grad(output, sources, from_output, allow_unused=True))
                for tensor, leaf in zip(inputs, leaves, strict=True):
                    if leaf.requires_grad and (value := next(found)) is not None:
                        sums[id(tensor)][part] += value
                for weight in weights:
                    if (value := next(found)) is not None:
                        sums[id(weight)] += value
                for each, (by_mean, by_variance) in zip(statistics, by_statistics, strict=False):
                    by_weight, by_bias = next(found, None), next(found, None)
                    if by_weight is None:
                        continue
                    for weight, value in ((each.norm.weight, by_weight), (each.norm.bias, by_bias)):
                        if id(weight) in sums:
                            sums[id(weight)] += value
                    # What moves the mean moves the values the other way, and what scales the deviation scales them.
                    factor = each.inverse_deviation * (1 if each.norm.weight is None else each.norm.weight.detach())
                    by_mean -= factor * by_bias
                    by_variance -= 0.5 * factor * each.inverse_deviation * by_weight
        return None, None, None, None, *(sums.get(id(tensor)) for tensor in tensors)


@dataclass(frozen=True)
class _Statistics:
    """The statistics of a whole batch in one layer: mean[C], 1 / standard deviation[C], and the number of values in a channel."""

    norm: Norm
    mean: torch.Tensor
    inverse_deviation: torch.Tensor
    count: int

    def gradient(self, values: torch.Tensor, by_mean: torch.Tensor, by_variance: torch.Tensor) -> torch.Tensor:
        """The gradient by some of the layer's inputs, from those by mean and variance."""
        mean, by_mean, by_variance = (_by_channel(each, values) for each in (self.mean, by_mean, by_variance))
        return ((by_mean + 2 * by_variance * (values - mean)) / self.count).to(values.dtype)


def _by_channel(numbers: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return numbers.view(1, -1, *[1] * (values.ndim - 2))


class _Replaced:
    """Inside, `norms` normalise as a subclass does."""

    def __init__(self, norms: list[Norm]) -> None:
        self.norms = norms

    def __enter__(self) -> Self:
        for norm in self.norms:
            norm.forward = partial(self._forward, norm)
        return self

    def _forward(self, norm: Norm, values: torch.Tensor) -> torch.Tensor:
        output = self.normalise(norm, values)
        return norm.act(output) if _activates(norm) else output

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            del norm.forward


class _Recorder(_Replaced):
    """Inside, norms do what they do, and their `statistics` are recorded in the order in which they are called."""

    def __init__(self, norms: list[Norm]) -> None:
        super().__init__(norms)
        self.statistics: list[_Statistics] = []

    def normalise(self, norm: Norm, values: torch.Tensor) -> torch.Tensor:
        tracks = norm.training and norm.track_running_stats
        if tracks:
            norm.num_batches_tracked += 1
        running = (norm.running_mean, norm.running_var) if tracks else (None, None)
        momentum = norm.momentum if norm.momentum is not None else 1 / int(norm.num_batches_tracked) if tracks else 0.0
        output, mean, inverse_deviation = torch.native_batch_norm(values, norm.weight, norm.bias, *running, True, momentum, norm.eps)
        self.statistics.append(_Statistics(norm, mean, inverse_deviation, values.numel() // len(mean)))
        return output


class _Reached(Exception):
    """A pass has reached the layer whose input is wanted."""


class _Normaliser(_Replaced):
    """Inside, norms normalise by given statistics, in the order of calls; `reach` ends at the input of the layer number `last`.

    `affine`: copies of weight and bias of each layer that was passed, from whose gradients those of the statistics follow.
    """

    def __init__(self, norms: list[Norm], statistics: list[_Statistics], last: int) -> None:
        super().__init__(norms)
        self.statistics, self.last = statistics, last
        self.affine: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.reached: torch.Tensor | None = None

    def reach(self, run: Callable, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The input of the layer, or the output of `run(*inputs)` if it has fewer."""
        try:
            return run(*inputs)
        except _Reached:
            return self.reached

    def normalise(self, norm: Norm, values: torch.Tensor) -> torch.Tensor:
        if len(self.affine) == self.last:
            self.reached = values
            raise _Reached
        each = self.statistics[len(self.affine)]
        weight = torch.ones_like(each.mean) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros_like(each.mean) if norm.bias is None else norm.bias.detach()
        self.affine.append((weight.requires_grad_(), bias.requires_grad_()))
        return nn.functional.batch_norm(values, each.mean, each.inverse_deviation**-2 - norm.eps, *self.affine[-1], training=False, eps=norm.eps)

"""Gradient checkpointing: the blocks of a network store their inputs only, and are computed again in the backward pass, in parts if need be.

In parts, the forward pass is that of the whole batch; the backward pass computes a block for a few sites at a time, normalised by
the statistics of the whole batch. These couple all sites: the gradient of the loss by each statistic is summed over all parts
first, and then goes on through the statistic to every site. The sums are those of the whole batch, in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cellsignal.errors import InputError
from cellsignal.learn.networks.batchnorm import Norm, batchnorm_layers

_WEIGHTS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)


class Checkpointing:
    """How the body of a network is trained: `parts` 0 plainly, 1 with gradient checkpointing, more in so many parts of a batch.

    `setting`: machine.gradient_checkpointing; only "auto" and True may save more when memory runs out.
    """

    def __init__(self, body: nn.Module, setting: bool | str = "auto", *, parts: int = 0) -> None:
        self.body, self.setting, self.parts = body, setting, parts
        checkpoint_blocks(body, parts=parts)

    def save_memory(self, batch_size: int) -> None:
        """Train with less memory from now on: with checkpointing, then in 2, 4, ... parts of a batch; one line says so.

        Raises InputError when nothing is left to save.
        """
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
    blocks = [body] if parts > 1 and not batchnorm_layers(body) else checkpointed_blocks(body) if parts else []
    for block in blocks:
        block.forward = partial(_checkpointed_sequence if type(block) is nn.Sequential else _checkpointed_forward, block, block.forward, parts)
    return len(blocks)


def checkpointed_blocks(body: nn.Module) -> list[nn.Module]:
    """The smallest modules of a body that have two layers of weights and a norm."""
    if inner := [block for child in body.children() for block in checkpointed_blocks(child)]:
        return inner
    modules = list(body.modules())
    is_block = sum(isinstance(module, _WEIGHTS) for module in modules) > 1 and any(isinstance(module, _NORMS) for module in modules)
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
    if parts > 1 and not _is_random(block):
        weights = [weight for weight in block.parameters() if weight.requires_grad]
        return _InParts.apply(run, batchnorm_layers(block), parts, len(tensors), *tensors, *weights)
    # In the second forward pass, running statistics have seen the batch already.
    return checkpoint(run, *tensors, use_reentrant=False, context_fn=lambda: (nullcontext(), _copied_running_statistics(block)))


def _is_random(block: nn.Module) -> bool:
    """Whether a block drops features or paths at random, which parts would draw otherwise than the whole batch."""
    return any(getattr(module, "p", 0) or getattr(module, "drop_prob", 0) for module in block.modules() if "Drop" in type(module).__name__)


@contextmanager
def _copied_running_statistics(block: nn.Module) -> Iterator[None]:
    """Inside, norms update copies of their running statistics. Without statistics they would save fewer tensors, which PyTorch refuses."""
    saved = [(norm, name, tensor) for norm in batchnorm_layers(block) for name, tensor in norm.named_buffers()]
    for norm, name, tensor in saved:
        setattr(norm, name, tensor.clone())
    try:
        yield
    finally:
        for norm, name, tensor in saved:
            setattr(norm, name, tensor)


def checkpointed_segments(body: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """The first and the last module of whatever part of a body is computed again as one: a block, or a segment of a sequence."""
    return [pair for block in checkpointed_blocks(body)
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


Moments = tuple[torch.Tensor, torch.Tensor]  # mean[C] and biased variance[C]


class _InParts(torch.autograd.Function):
    """`run(*inputs)`, computed for the whole batch in the forward pass and again in parts of it in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable, norms: list[Norm], parts: int, count: int, *tensors: torch.Tensor) -> torch.Tensor:
        device = tensors[0].device.type
        autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        # Without its cache, which would keep weights that were cast where no gradients are recorded.
        with torch.autocast(**autocast, cache_enabled=False), _GivenStatistics(norms) as statistics:
            output = run(*tensors[:count])
        ctx.run, ctx.norms, ctx.parts, ctx.count, ctx.autocast, ctx.moments = run, norms, parts, count, autocast, statistics.moments
        ctx.save_for_backward(*tensors)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        inputs, weights = ctx.saved_tensors[:ctx.count], ctx.saved_tensors[ctx.count:]
        needed = ctx.needs_input_grad[4:]
        sums = [torch.zeros_like(tensor) if need else None for tensor, need in zip(ctx.saved_tensors, needed, strict=True)]
        moments = [tensor for pair in ctx.moments for tensor in pair]
        moment_sums = [torch.zeros_like(tensor) for tensor in moments]
        rows = torch.arange(len(gradient)).tensor_split(ctx.parts)
        # First from the output; then, when a layer's statistics have the gradients of all parts, from these, the last layer first.
        for layer in range(len(ctx.moments), -1, -1):
            for part in (slice(int(each[0]), int(each[-1]) + 1) for each in rows):
                leaves = [tensor[part].detach().requires_grad_(need) for tensor, need in zip(inputs, needed, strict=False)]
                given = [tensor.detach().requires_grad_() for tensor in moments[:2 * layer]]
                with torch.enable_grad(), torch.autocast(**ctx.autocast, cache_enabled=False), _GivenStatistics(ctx.norms, given, layer) as statistics:
                    output = ctx.run(*leaves) if layer == len(ctx.moments) else statistics.moments_of(ctx.run, leaves)
                if isinstance(output, torch.Tensor):
                    outputs, gradients = [output], [gradient[part]]
                else:
                    outputs, gradients = list(output), _moment_gradients(output, moments[2 * layer], moment_sums[2 * layer:2 * layer + 2],
                                                                         share=len(leaves[0]) / len(gradient))
                if not outputs[0].requires_grad:
                    break
                sources = [*leaves, *weights, *given]
                wanted = [number for number, source in enumerate(sources) if source.requires_grad]
                found = torch.autograd.grad(outputs, [sources[number] for number in wanted], gradients, allow_unused=True)
                for number, value in zip(wanted, found, strict=True):
                    if value is None:
                        continue
                    if number < ctx.count:
                        sums[number][part] += value
                    elif number < len(sums):
                        sums[number] += value
                    else:
                        moment_sums[number - len(sums)] += value
        return None, None, None, None, *sums


def _moment_gradients(part: Moments, mean: torch.Tensor, gradients: Sequence[torch.Tensor], *, share: float) -> list[torch.Tensor]:
    """The gradients by mean and variance of a part, which has a `share` of the values, from those by the whole's (Chan et al. 1979)."""
    by_mean, by_variance = gradients
    return [share * (by_mean + 2 * (part[0].detach() - mean) * by_variance), share * by_variance]


class _Reached(Exception):
    """The pass has reached the layer whose moments are wanted."""


class _GivenStatistics:
    """Inside, norms that normalise by the batch record its moments, or normalise by `given` ones, up to the layer number `last`.

    Layers are counted as they are called.
    """

    def __init__(self, norms: list[Norm], given: Sequence[torch.Tensor] | None = None, last: int = 0) -> None:
        self.norms = [norm for norm in norms if norm.training or norm.running_mean is None]
        self.given, self.last, self.calls, self.moments = given, last, 0, []

    def __enter__(self) -> "_GivenStatistics":
        for norm in self.norms:
            norm.forward = partial(self._record if self.given is None else self._normalise, norm)
        return self

    def __exit__(self, *error: object) -> None:
        for norm in self.norms:
            del norm.forward

    def moments_of(self, run: Callable, inputs: Sequence[torch.Tensor]) -> Moments:
        """The moments of the inputs of layer `last`, for the block's `inputs`."""
        try:
            run(*inputs)
        except _Reached:
            pass
        return self.moments.pop()

    def _record(self, norm: Norm, values: torch.Tensor) -> torch.Tensor:
        self.moments.append(_moments(values))
        return type(norm).forward(norm, values)

    def _normalise(self, norm: Norm, values: torch.Tensor) -> torch.Tensor:
        if self.calls == self.last:
            self.moments.append(_moments(values))
            raise _Reached
        mean, variance = self.given[2 * self.calls:2 * self.calls + 2]
        self.calls += 1
        factor = torch.rsqrt(variance + norm.eps) * (1 if norm.weight is None else norm.weight)
        term = (0 if norm.bias is None else norm.bias) - mean * factor
        shape = (1, -1, *[1] * (values.ndim - 2))
        return (values * factor.view(shape) + term.view(shape)).to(values.dtype)


def _moments(values: torch.Tensor) -> Moments:
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
    return mean, variance

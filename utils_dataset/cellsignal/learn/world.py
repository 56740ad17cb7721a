"""The processes that train one network together, each with a copy of it, through Hugging Face Accelerate."""

import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.batchnorm import norms
from cellsignal.learn.devices import pick


class Lost(StepFailed):
    """Another process of the training is gone."""


class World:
    """`size` processes, of which this is number `rank`; `total` adds a tensor over all of them."""

    def __init__(self, rank: int = 0, size: int = 1, *, device: torch.device | None = None,
                 total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> None:
        self.rank, self.size, self.device, self._total = rank, size, device, total

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all processes, added; the same bits in each. Raises Lost when one is gone."""
        try:
            return self._total(tensor)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what gloo and NCCL raise when a connection breaks
            raise Lost(f"a process of the training is gone ({str(error).splitlines()[0]})") from None

    def any(self, yes: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.sum(torch.tensor([float(yes)], device=self.device)).item()) if self.size > 1 else yes

    def meet(self) -> None:
        """Go on when all have come here."""
        self.any(False)

    def agree(self, number: int) -> bool:
        """Whether all processes say the same whole number."""
        sums = self.sum(torch.tensor([number, number**2], dtype=torch.float64, device=self.device))
        return bool((sums[0] ** 2 == self.size * sums[1]).item())

    def mine(self, items: Sequence) -> Sequence:
        """This process's share of a row of items, dealt like cards."""
        return items[self.rank::self.size]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], *, late: bool = False) -> bool:
        """Give every process the sum of all gradients, in one flat message; tells whether any process was `late`.

        A process without a batch in this step adds zeros.
        """
        if self.size == 1:
            return late
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
        flat = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor([float(late)])])
        *sums, late_ones = self.sum(flat).split([*(part.numel() for part in parts), 1])
        for weight, part in zip(parameters, sums, strict=True):
            # In the parameter's order of memory, because fused steps read both side by side.
            weight.grad = torch.empty_like(weight.detach()).copy_(part.view(weight.shape))
        return bool(late_ones.item())


ALONE = World()


def join(device: str) -> World:
    """The world that a launcher put this process into, on its own device: RANK and WORLD_SIZE say which."""
    from accelerate import PartialState
    from accelerate.utils import reduce

    # The first process may work alone for long, on pseudo-labels; that another is gone is noticed by its connection.
    with warnings.catch_warnings():  # it recommends what we have done
        warnings.simplefilter("ignore", UserWarning)
        state = PartialState(cpu=pick(device).type == "cpu", timeout=timedelta(hours=2))
    return World(state.process_index, state.num_processes, device=state.device,
                 total=lambda tensor: reduce(tensor, reduction="sum"))


def around(device: str) -> World | None:
    """The world of `accelerate launch` or torchrun, where this process came from one; else None, and no GPU is touched."""
    return join(device) if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched() else None


def wanted(device: str, processes: int) -> int:
    """How many processes train: as many as asked for; for 0 one per GPU, and one where there is none.

    Raises InputError for more processes than GPUs.
    """
    if device == "cpu":
        return processes or 1
    gpus = torch.cuda.device_count()  # asks the driver's library only: a fork can still use the GPUs
    if 0 < gpus < processes:
        raise InputError(f"{processes} processes want a GPU each, and there are {gpus}", where="processes",
                         cure="use processes: 0 for one per GPU")
    if not gpus:
        pick(device)  # says so where a GPU was asked for
    return processes or max(1, gpus)


class SharedStatistics:
    """Keeps running statistics as one process would have gathered them, while several share the batches of an epoch.

    A running statistic is a sum over batches, each weighted by its age. So every process sums its own
    batches and ages the sum for those of the others, the first carries on the past, and at the end
    the sums are added. So are those of the `average` of the network, which follows these sums.
    """

    def __init__(self, model: torch.nn.Module, world: World, *, average: torch.nn.Module | None = None) -> None:
        self.world, self.next = world, 0  # the number of the batch that comes next
        self.layers = norms(model) if world.size > 1 else []
        self.averaged = norms(average) if world.size > 1 and average is not None else []
        if not world.first:
            for norm in (*self.layers, *self.averaged):
                norm.reset_running_stats()
                norm.running_var.zero_()

    def age(self, number: int) -> None:
        """Batch `number` comes next here; those between it and the last went through other processes."""
        self.catch_up(number)
        self.next = number + 1

    def catch_up(self, number: int) -> None:
        """All batches before `number` are through."""
        for norm in self.layers if number > self.next else ():
            weight = (1 - norm.momentum) ** (number - self.next)
            norm.running_mean *= weight
            norm.running_var *= weight
        self.next = max(self.next, number)

    def gather(self, batches: int) -> None:
        """All `batches` of the epoch are through: add up the sums of all processes."""
        self.catch_up(batches)
        kept = [tensor for norm in (*self.layers, *self.averaged)
                for tensor in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
        if kept:
            flat = self.world.sum(torch.cat([tensor.double().flatten() for tensor in kept]))
            for tensor, part in zip(kept, flat.split([tensor.numel() for tensor in kept]), strict=True):
                tensor.copy_(part.view(tensor.shape))

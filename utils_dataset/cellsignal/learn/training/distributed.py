"""The processes that train one network together, each with a copy of it, through Hugging Face Accelerate."""

import gc
import json
import logging
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Thread
from typing import Any

import torch

from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.devices import pick_device
from cellsignal.learn.networks.batchnorm import batchnorm_layers


class ProcessLost(StepFailed):
    """Another process of the training is gone."""


class ProcessGroup:
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
            raise ProcessLost(f"a process of the training is gone ({str(error).splitlines()[0]})") from None

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


ALONE = ProcessGroup()


def join_group(device: str) -> ProcessGroup:
    """The world that a launcher put this process into, on its own device: RANK and WORLD_SIZE say which."""
    from accelerate import PartialState
    from accelerate.utils import reduce

    # The first process may work alone for long, on pseudo-labels; that another is gone is noticed by its connection.
    with warnings.catch_warnings():  # it recommends what we have done
        warnings.simplefilter("ignore", UserWarning)
        state = PartialState(cpu=pick_device(device).type == "cpu", timeout=timedelta(hours=2))
    return ProcessGroup(state.process_index, state.num_processes, device=state.device,
                 total=lambda tensor: reduce(tensor, reduction="sum"))


def current_group(device: str) -> ProcessGroup | None:
    """The world of `accelerate launch` or torchrun, where this process came from one; else None, and no GPU is touched."""
    return join_group(device) if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched() else None


def process_count(device: str, processes: int) -> int:
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
        pick_device(device)  # says so where a GPU was asked for
    return processes or max(1, gpus)


class SharedStatistics:
    """Keeps running statistics as one process would have gathered them, while several share the batches of an epoch.

    A running statistic is a sum over batches, each weighted by its age. So every process sums its own
    batches and ages the sum for those of the others, the first carries on the past, and at the end
    the sums are added. So are those of the `average` of the network, which follows these sums.
    """

    def __init__(self, model: torch.nn.Module, world: ProcessGroup, *, average: torch.nn.Module | None = None) -> None:
        self.world, self.next = world, 0  # the number of the batch that comes next
        self.layers = batchnorm_layers(model) if world.size > 1 else []
        self.averaged = batchnorm_layers(average) if world.size > 1 and average is not None else []
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


# A training in several processes, started from a notebook or from plain Python.


Tell = Callable[[dict[str, Any]], None]
LONGEST = 1000  # characters of an error: one message is written to a pipe in one piece up to 4,096 bytes
END = b"end\n"


def launch(work: Callable[[ProcessGroup, Tell], None], *, device: str, processes: int, told: Tell) -> None:
    """Run `work(world, tell)` in so many forked processes; what they tell, small dicts, comes to `told` here.

    No GPU may have been touched before, because a fork cannot use it any more. Raises the InputError
    that a process raised, the error of `told`, or StepFailed when a process fails or dies; all
    processes have ended then.
    """
    if _colab() and torch.cuda.device_count() < 2:  # Accelerate would run it in this very process
        raise InputError("a notebook on Colab trains in several processes only where it has several GPUs", where="processes",
                         cure="set processes: 0")
    if torch.cuda.is_initialized():
        raise InputError("this process already uses a GPU, so it cannot share out the training", where="processes",
                         cure="start the notebook anew and run its cells in order, or set processes: 1")
    reading, writing = os.pipe()
    listener = _Listener(reading, told)
    listener.start()
    try:
        with _quiet():
            _launch(work, device, processes=processes, pipe=(reading, writing))
    except Exception as error:
        failure = error
    else:
        failure = None
    finally:
        with suppress(BrokenPipeError):
            os.write(writing, END)
        os.close(writing)
        listener.join()
    listener.complain()
    if failure is not None:
        raise StepFailed(f"training in {processes} processes ended: {_last_line(failure)}; "
                         "the same command goes on at the last whole epoch") from failure


def _colab() -> bool:
    """Whether this process is a notebook on Colab, as Accelerate sees it."""
    return "IPython" in sys.modules and "google.colab" in str(sys.modules["IPython"].get_ipython())


def _launch(work: Callable[[ProcessGroup, Tell], None], device: str, *, processes: int, pipe: tuple[int, int]) -> None:
    from accelerate import notebook_launcher
    from accelerate.utils import patch_environment

    # All processes are on this machine: its loopback is there even where no network is.
    place = {"gloo_socket_ifname": "lo"} if sys.platform == "linux" else {}
    gc.collect()  # the store of an earlier launch: a fork that came to collect it would wait for a thread that it has not
    with patch_environment(**place):
        notebook_launcher(_process, (work, device, pipe), num_processes=processes, use_port=str(_free_port()))


def _process(work: Callable[[ProcessGroup, Tell], None], device: str, pipe: tuple[int, int]) -> None:
    """The life of one process of the training."""
    gc.freeze()  # what came with the fork ends with the process that made it
    reading, writing = pipe
    os.close(reading)  # else nobody would notice that the listener has gone
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's handlers came with the fork
    torch.set_num_threads(1)  # OpenMP's other threads did not
    def tell(message: dict[str, Any]) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")
    try:
        work(join_group(device), tell)
    except InputError as error:
        tell({"input_error": str(error)[:LONGEST]})
        raise
    except (ProcessLost, BrokenPipeError):  # not to blame: whoever is says so, or died
        raise
    except Exception as error:
        traceback.print_exc()
        tell({"error": f"{type(error).__name__}: {error}"[:LONGEST]})
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _Listener(Thread):
    """Hands on what the processes tell, one JSON a line, and remembers what went wrong."""

    def __init__(self, reading: int, told: Tell) -> None:
        super().__init__(daemon=True)
        self.reading, self.told = reading, told
        self.input_error, self.error, self.raised = "", "", None

    def run(self) -> None:
        with os.fdopen(self.reading, "rb") as lines:
            for line in lines:
                if line == END:
                    return
                try:
                    self._take(json.loads(line))
                except Exception as error:  # of whoever listens; closing the pipe ends the training
                    self.raised = error
                    return

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"input_error": text}:
                self.input_error = self.input_error or text
            case {"error": text}:
                self.error = self.error or text
            case _:
                self.told(message)

    def complain(self) -> None:
        """Raise what is to be raised, the cause before its consequences."""
        if self.raised is not None:
            raise self.raised
        if self.input_error:
            raise InputError(self.input_error)
        if self.error:
            raise StepFailed(self.error)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the launcher's log of what we say in one line out of the way."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _last_line(failure: Exception) -> str:
    """Which process ended first, and how, in a few words."""
    ended = next(iter(getattr(failure, "failures", {}).items()), None)
    if ended is None:
        return " ".join(str(failure).split())[:LONGEST]
    rank, code = ended[0], ended[1].exitcode
    if code >= 0:
        return "one of them is gone"
    killed = f"process {rank + 1} was killed by {signal.Signals(-code).name}"
    return f"{killed}, perhaps for want of memory" if -code == signal.SIGKILL else killed


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]

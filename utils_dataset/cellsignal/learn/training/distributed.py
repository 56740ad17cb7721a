"""Training of one network in several processes, through Hugging Face Accelerate."""

import gc
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from random import SystemRandom
from threading import Thread
from typing import Any

import torch

from cellsignal.errors import OF_THE_MACHINE, InputError, StepFailed
from cellsignal.learn.devices import pick_device
from cellsignal.learn.networks.batchnorm import batchnorm_layers


class ProcessLost(StepFailed):
    """Another process of the training has died."""


class ProcessGroup:
    """`size` processes, of which this one has the number `rank`; `all_reduce` sums a tensor over all of them."""

    def __init__(self, rank: int = 0, size: int = 1, *, device: torch.device | None = None,
                 all_reduce: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> None:
        self.rank, self.size, self.device, self._all_reduce = rank, size, device, all_reduce

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the tensors of all processes, the same bits in each; ProcessLost when a process has died."""
        try:
            return self._all_reduce(tensor)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what gloo and NCCL raise when a connection breaks
            raise ProcessLost(f"a process of the training has died ({str(error).splitlines()[0]})") from None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item()) if self.size > 1 else flag

    def barrier(self) -> None:
        """Wait until all processes have arrived here."""
        self.any(False)

    def all_equal(self, number: int) -> bool:
        """Whether all processes pass the same integer."""
        sums = self.sum(torch.tensor([number, number**2], dtype=torch.float64, device=self.device))
        return bool((sums[0] ** 2 == self.size * sums[1]).item())

    def shard(self, items: Sequence) -> Sequence:
        """Every `size`-th item, starting with number `rank`."""
        return items[self.rank::self.size]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter], *, late: bool = False) -> bool:
        """Sum the gradients over all processes, in one flat tensor; returns whether any process is `late`.

        A process without a batch in this step contributes zeros.
        """
        if self.size == 1:
            return late
        parts = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in parameters]
        flat = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor([float(late)])])
        *sums, num_late = self.sum(flat).split([*(part.numel() for part in parts), 1])
        for weight, part in zip(parameters, sums, strict=True):
            # In the memory format of the parameter, because fused steps read both in parallel.
            weight.grad = torch.empty_like(weight.detach()).copy_(part.view(weight.shape))
        return bool(num_late.item())


SINGLE_PROCESS = ProcessGroup()


def join_group(device: str) -> ProcessGroup:
    """The process group of this launched process, which RANK and WORLD_SIZE describe, on its own device."""
    from accelerate import PartialState
    from accelerate.utils import reduce

    # The main process may compute pseudo-labels for long, alone; a dead process is noticed by its broken connection.
    with warnings.catch_warnings():  # Accelerate recommends what is done here
        warnings.simplefilter("ignore", UserWarning)
        state = PartialState(cpu=pick_device(device).type == "cpu", timeout=timedelta(hours=2))
    return ProcessGroup(state.process_index, state.num_processes, device=state.device,
                        all_reduce=lambda tensor: reduce(tensor, reduction="sum"))


def current_group(device: str) -> ProcessGroup | None:
    """The process group of `accelerate launch` or torchrun, or None if neither launched this process; then no GPU is touched."""
    return join_group(device) if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched() else None


def process_count(device: str, processes: int) -> int:
    """The number of training processes: `processes`, or for 0 one per GPU, and one without a GPU.

    Raises InputError for more processes than GPUs.
    """
    if device == "cpu":
        return processes or 1
    gpus = torch.cuda.device_count()  # queries the driver only: a forked process can still use the GPUs
    if 0 < gpus < processes:
        raise InputError(f"{processes} processes need a GPU each, and there are {gpus}", where="processes",
                         cure="set machine.num_processes: 0, for one per GPU")
    if not gpus:
        pick_device(device)  # raises if a GPU was asked for
    return processes or max(1, gpus)


class RunningStatistics:
    """Keeps running statistics as one process would compute them, while several share the batches of an epoch.

    A running statistic is a sum over batches with exponentially decaying weights. Every process therefore sums its own
    batches, decays the sum for the batches of the others, and the main process also carries the earlier statistics; at the end
    of the epoch the sums are added. The statistics of `average`, the moving average of the network, are treated alike.
    """

    def __init__(self, model: torch.nn.Module, process_group: ProcessGroup, *, average: torch.nn.Module | None = None) -> None:
        self.process_group, self.next_batch = process_group, 0
        self.model_layers = batchnorm_layers(model)
        self.layers = self.model_layers if process_group.size > 1 else []
        self.average_layers = batchnorm_layers(average) if process_group.size > 1 and average is not None else []
        if not process_group.is_main_process:
            for norm in (*self.layers, *self.average_layers):
                norm.reset_running_stats()
                norm.running_var.zero_()

    def start_batch(self, number: int) -> None:
        """Call before batch `number` of the epoch; the batches since the previous one were processed elsewhere."""
        self.decay_to(number)
        self.next_batch = number + 1

    def decay_to(self, number: int) -> None:
        """Decay the statistics for all batches before `number` that other processes processed."""
        for norm in self.layers if number > self.next_batch else ():
            weight = (1 - norm.momentum) ** (number - self.next_batch)
            norm.running_mean *= weight
            norm.running_var *= weight
        self.next_batch = max(self.next_batch, number)

    def copy(self) -> tuple[int, list[torch.Tensor]]:
        """The statistics of the network as they are, for `restore`."""
        return self.next_batch, [torch.cat([tensor.flatten() for tensor in tensors]) for tensors in self._tensors() if tensors]

    def restore(self, saved: tuple[int, list[torch.Tensor]]) -> None:
        """Undo the batches since a `copy`."""
        self.next_batch, flat = saved
        for tensors, values in zip(filter(None, self._tensors()), flat, strict=True):
            for tensor, value in zip(tensors, values.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(value.view(tensor.shape))

    def _tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Statistics, and counters of batches, which are integers."""
        layers = [norm for norm in self.model_layers if norm.track_running_stats]
        return [tensor for norm in layers for tensor in (norm.running_mean, norm.running_var)], [norm.num_batches_tracked for norm in layers]

    def reduce(self, batches: int) -> None:
        """Add up the statistics of all processes after the last of the epoch's `batches`."""
        self.decay_to(batches)
        statistics = [tensor for norm in (*self.layers, *self.average_layers)
                      for tensor in (norm.running_mean, norm.running_var, norm.num_batches_tracked)]
        if statistics:
            flat = self.process_group.sum(torch.cat([tensor.double().flatten() for tensor in statistics]))
            for tensor, part in zip(statistics, flat.split([tensor.numel() for tensor in statistics]), strict=True):
                tensor.copy_(part.view(tensor.shape))


# A training in several processes, started from a notebook or from plain Python.


SendMessage = Callable[[dict[str, Any]], None]
MAX_MESSAGE = 1000  # characters of an error: a pipe takes up to 4,096 bytes in one piece
END_OF_MESSAGES = b"end\n"
PORTS = range(20000, 32768)


def launch(work: Callable[[ProcessGroup, SendMessage], None], *, device: str, processes: int, on_message: SendMessage) -> None:
    """Run `work(process_group, send_message)` in several forked processes; `on_message` receives their messages, small dicts, here.

    No GPU may have been used before, because a forked process could not use it. Raises the InputError of a process, the error
    of `on_message`, an OSError that the machine is the reason of, or StepFailed when a process fails or dies; then all have ended.
    """
    if _on_colab() and torch.cuda.device_count() < 2:  # Accelerate would run it in this very process
        raise InputError("a notebook on Colab trains in several processes only with several GPUs", where="processes",
                         cure="set machine.num_processes: 0")
    if torch.cuda.is_initialized():
        raise InputError("this process already uses a GPU, so it cannot start training processes", where="processes",
                         cure="restart the notebook and run its cells in order, or set machine.num_processes: 1")
    read_end, write_end = os.pipe()
    listener = _MessageListener(read_end, on_message)
    listener.start()
    try:
        with _silence_launcher():
            _launch_processes(work, device, processes=processes, pipe=(read_end, write_end))
    except Exception as error:
        failure = error
    else:
        failure = None
    finally:
        with suppress(BrokenPipeError):
            os.write(write_end, END_OF_MESSAGES)
        os.close(write_end)
        listener.join()
    listener.raise_error()
    if isinstance(failure, OSError) and failure.errno in OF_THE_MACHINE:  # such as a full /dev/shm: the same command again is no cure
        raise failure
    if failure is not None:
        raise StepFailed(f"training in {processes} processes ended: {_failure_summary(failure)}; "
                         "give the same command again to continue after the last complete epoch") from failure


def _on_colab() -> bool:
    """Whether this process is a notebook on Colab, as Accelerate sees it."""
    return "IPython" in sys.modules and "google.colab" in str(sys.modules["IPython"].get_ipython())


def _launch_processes(work: Callable[[ProcessGroup, SendMessage], None], device: str, *, processes: int, pipe: tuple[int, int]) -> None:
    from accelerate import notebook_launcher
    from accelerate.utils import patch_environment

    # All processes are on this machine, and its loopback interface exists without a network.
    interface = {"gloo_socket_ifname": "lo"} if sys.platform == "linux" else {}
    gc.collect()  # the store of an earlier launch: a forked process that collected it would wait for a thread that it does not have
    with patch_environment(**interface), _temporary_files_removed():
        notebook_launcher(_process_main, (work, device, pipe), num_processes=processes, use_port=str(_free_port()))


@contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """Inside, temporary files of this process and its children lie in a folder that is removed: the launcher leaves its own behind."""
    previous = tempfile.tempdir
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        try:
            yield
        finally:
            tempfile.tempdir = previous


def _process_main(work: Callable[[ProcessGroup, SendMessage], None], device: str, pipe: tuple[int, int]) -> None:
    """The main function of a training process."""
    gc.freeze()  # inherited objects belong to the parent process
    read_end, write_end = pipe
    os.close(read_end)  # otherwise a process would not notice that the listener has ended
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # the launcher's handlers are inherited
    torch.set_num_threads(1)  # OpenMP's other threads are not
    def send_message(message: dict[str, Any]) -> None:
        os.write(write_end, json.dumps(message).encode() + b"\n")
    try:
        work(join_group(device), send_message)
    except InputError as error:
        send_message({"input_error": str(error)[:MAX_MESSAGE]})
        raise
    except (ProcessLost, BrokenPipeError):  # a consequence: the cause is reported by another process, or it died
        raise
    except Exception as error:
        traceback.print_exc()
        send_message({"error": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]})
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class _MessageListener(Thread):
    """Receives the messages of the processes, one line of JSON each, and remembers errors."""

    def __init__(self, read_end: int, on_message: SendMessage) -> None:
        super().__init__(daemon=True)
        self.read_end, self.on_message = read_end, on_message
        self.input_error, self.error, self.callback_error = "", "", None

    def run(self) -> None:
        with os.fdopen(self.read_end, "rb") as lines:
            for line in lines:
                if line == END_OF_MESSAGES:
                    return
                try:
                    self._receive(json.loads(line))
                except Exception as error:  # of the callback; closing the pipe ends the training
                    self.callback_error = error
                    return

    def _receive(self, message: dict[str, Any]) -> None:
        match message:
            case {"input_error": text}:
                self.input_error = self.input_error or text
            case {"error": text}:
                self.error = self.error or text
            case _:
                self.on_message(message)

    def raise_error(self) -> None:
        """Raise the error that ended the training, if any: a cause before its consequences."""
        if self.callback_error is not None:
            raise self.callback_error
        if self.input_error:
            raise InputError(self.input_error)
        if self.error:
            raise StepFailed(self.error)


@contextmanager
def _silence_launcher() -> Iterator[None]:
    """Inside, the launcher does not log failures that are reported in one line here."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _failure_summary(failure: Exception) -> str:
    """The first process that ended, and how, in a few words."""
    first = next(iter(getattr(failure, "failures", {}).items()), None)
    if first is None:
        return " ".join(str(failure).split())[:MAX_MESSAGE]
    rank, code = first[0], first[1].exitcode
    if code >= 0:
        return "one of them has ended"
    killed = f"process {rank + 1} was killed by {signal.Signals(-code).name}"
    return f"{killed}, perhaps because memory ran out" if -code == signal.SIGKILL else killed


def _free_port() -> int:
    """A free port that no other program is given before the first training process listens there.

    The system hands out ports above these for connections and servers without a port of their own: with one of those a training
    process could connect to another program and wait for hours.
    """
    for port in SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise StepFailed("no port is free for the training processes")

"""A training in several processes, started from a notebook or from plain Python."""

import gc
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import Any

import torch

from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.world import Lost, World, join

Tell = Callable[[dict[str, Any]], None]
LONGEST = 1000  # characters of an error: one message is written to a pipe in one piece up to 4,096 bytes
END = b"end\n"


def launch(work: Callable[[World, Tell], None], *, device: str, processes: int, told: Tell) -> None:
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
        raise StepFailed(f"training in {processes} processes ended: {_last_words(failure)}; "
                         "the same command goes on at the last whole epoch") from failure


def _colab() -> bool:
    """Whether this process is a notebook on Colab, as Accelerate sees it."""
    return "IPython" in sys.modules and "google.colab" in str(sys.modules["IPython"].get_ipython())


def _launch(work: Callable[[World, Tell], None], device: str, *, processes: int, pipe: tuple[int, int]) -> None:
    from accelerate import notebook_launcher
    from accelerate.utils import patch_environment

    # All processes are on this machine: its loopback is there even where no network is.
    place = {"gloo_socket_ifname": "lo"} if sys.platform == "linux" else {}
    gc.collect()  # the store of an earlier launch: a fork that came to collect it would wait for a thread that it has not
    with patch_environment(**place):
        notebook_launcher(_process, (work, device, pipe), num_processes=processes, use_port=str(_free_port()))


def _process(work: Callable[[World, Tell], None], device: str, pipe: tuple[int, int]) -> None:
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
        work(join(device), tell)
    except InputError as error:
        tell({"input_error": str(error)[:LONGEST]})
        raise
    except (Lost, BrokenPipeError):  # not to blame: whoever is says so, or died
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


def _last_words(failure: Exception) -> str:
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

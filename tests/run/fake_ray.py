"""A Ray of two machines that are threads: what run.cluster asks of the real one, which takes ten seconds to start."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import SimpleNamespace
from typing import Any


class RayError(Exception):
    """A task gave nothing."""


class RayTaskError(RayError):
    """It raised something."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class Machines:
    """Two machines of four cores; `lost` tasks have no machine, `asked` lists the resources of those that were sent."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.pool, self.asked, self.lost = ThreadPoolExecutor(4), [], False
        self.alive = [{"Alive": alive, "Resources": {"CPU": 4.0} if alive else {}} for alive in (True, True, False)]

    def init(self, *, address: str, **_: Any) -> None:
        if address == "nobody":
            raise ConnectionError("Could not find any running Ray instance.\nmore")

    def shutdown(self) -> None:
        """Nothing stays."""

    def nodes(self) -> list[dict[str, Any]]:
        return self.alive

    def remote(self, **resources: Any) -> Callable[..., Any]:
        def send(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future:
            self.asked.append(resources)
            return self.pool.submit(function, *arguments, **named)

        return lambda function: SimpleNamespace(remote=lambda *arguments, **named: send(function, *arguments, **named))

    def wait(self, tasks: list[Future], *, timeout: float) -> tuple[list[Future], list[Future]]:
        done = wait(tasks, timeout=timeout).done
        return [task for task in tasks if task in done], [task for task in tasks if task not in done]

    def get(self, task: Future) -> Any:
        if self.lost:
            raise RayError("the node died")
        try:
            return task.result()
        except Exception as error:
            raise RayTaskError(error) from None

    def cancel(self, task: Future, *, force: bool) -> None:
        task.cancel()

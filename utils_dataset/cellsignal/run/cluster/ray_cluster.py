"""A run on many machines: trainings and predictions as Ray's tasks, everything else here."""

import hashlib
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from cellsignal import files
from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import split_prediction, steps
from cellsignal.run.chain.engine import Job, LocalExecutor
from cellsignal.run.chain.notebooks import Stopped
from cellsignal.run.chain.steps import Step
from cellsignal.run.cluster import shared_storage, worker
from cellsignal.run.cluster.shared_storage import Storage
from cellsignal.run.record import manifest, provenance

LOCAL = "local"  # the address of a cluster of this machine alone, which lives as long as the run
RETRIES = 3  # for a task whose machine dies; what fails by itself is not tried again
PATIENCE = 5.0  # seconds for a cluster to answer at all
_START = "start one with `ray start --head`, or use --ray local"
LOOK = 0.5  # seconds between two looks at what runs
ERRORS = {"InputError": InputError, "StepFailed": StepFailed}


class Cluster(LocalExecutor):
    """An engine of the machines that a Ray cluster has at `address`.

    They share the run folder, or, where `storage` is given, what lies at that URL: then the files that a notebook
    needs are fetched, and those it made are stored. Raises InputError when Ray is not installed or no cluster answers.
    """

    divides = True

    def __init__(self, address: str, storage: str = "") -> None:
        self.ray, self.address = _ray(), address
        self.storage = Storage(storage) if storage else None
        self.stored: dict[str, str] = {}  # SHA-256 of what the storage holds, as far as we know
        self.merging, self.depositing = threading.Lock(), threading.Lock()

    @contextmanager
    def opened(self, run: Path, *, deadline: float | None) -> Iterator[None]:
        """Connect; with a storage, fetch what an earlier run left there and is not here."""
        with super().opened(run, deadline=deadline), _connected(self.ray, self.address):
            if self.storage and self.storage.holds(run) and Path(self.storage.root) == run:
                self.storage = None
            self.code = provenance.code_digest()  # of the package as it was sent: it may change here meanwhile
            shutil.rmtree(run / worker.ROOM, ignore_errors=True)
            if self.storage:
                self._catch_up()
            yield
            shutil.rmtree(run / worker.ROOM, ignore_errors=True)

    def slots(self, parallel: int) -> int:
        """So many notebooks at once on each machine of the cluster."""
        return parallel * max(1, len(self._machines()))

    def parallel_map(self, function: Callable[[Any], Any], parts: Any, *, processes: int | None = None) -> Iterator[Any]:
        """`function` of each part of a simulation or a packing, in whatever order they end, one core each."""
        task = self.ray.remote(num_cpus=1, max_retries=RETRIES)(worker.draw)
        waiting = {task.remote(function, part, send=self.storage is not None): part for part in parts}
        try:
            while waiting:
                for ready in self.ray.wait(list(waiting), timeout=LOOK)[0]:
                    (made, pictures), part = self._got(ready), waiting.pop(ready)
                    for name, content in pictures.items():
                        (part[-1] / name).parent.mkdir(parents=True, exist_ok=True)
                        (part[-1] / name).write_bytes(content)
                    yield made
        finally:
            for left in waiting:
                self.ray.cancel(left, force=True)

    def execute(self, errand: Job) -> Receipt | None:
        """Execute a notebook on some machine, this one if it neither trains nor predicts."""
        step = errand.step
        if not step.apart:
            return super().execute(errand)
        told = {"run": str(self.run), "parameters": dict(errand.parameters), "deadline": self.deadline, "page": errand.page,
                "code": self.code, "storage": "", "data": str(errand.data)}  # fmt: skip
        if self.storage:
            told |= self._deposit(errand)
        answer = self._sent(worker.describe_job(step, **told), self._resources(step, errand.parameters), errand)
        if "error" in answer:
            if answer["notebook"]:
                files.write_text(self.run / f"notebooks/{step.name}.ipynb", answer["notebook"])
            raise ERRORS[answer["error"]](answer["text"])
        self._take(step, answer)
        return answer["receipt"]

    def whole(self, step: Step, receipt: Receipt) -> None:
        """Store the receipt of a step that is whole, after its files."""
        if self.storage is None or step.part or step.plates:
            return
        self.stored |= self.storage.put_all(self.run, [name for name, digest in receipt.outputs.items() if self.stored.get(name) != digest])
        self.storage.put_receipt(receipt.path.relative_to(self.run).as_posix(), receipt)

    def _sent(self, told: worker.Told, resources: Mapping[str, int], errand: Job) -> dict[str, Any]:
        """The answer to an errand; Stopped when it shall end before."""
        task = self.ray.remote(max_retries=RETRIES, **resources)(worker.run_job).remote(told)
        while not self.ray.wait([task], timeout=LOOK)[0]:
            if errand.stop.is_set():
                self.ray.cancel(task, force=True)
                raise Stopped
        return self._got(task)

    def _got(self, task: Any) -> Any:
        """What a task gave; its own error in a line, StepFailed when it gave nothing."""
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise StepFailed(f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}") from None
        except self.ray.exceptions.RayError as error:
            raise StepFailed(f"its machine was lost {RETRIES + 1} times ({type(error).__name__})") from None

    def _resources(self, step: Step, parameters: Mapping[str, Any]) -> dict[str, int]:
        """Cores and GPUs of a notebook, a GPU for each process where there are any; InputError when no machine has them."""
        machines = [machine["Resources"] for machine in self._machines()]
        settings = MachineSettings(**parameters.get("machine", {}))
        processes = max(1, settings.num_processes)
        wanted = {"CPU": processes + settings.num_workers, "GPU": 0}
        if settings.device != "cpu" and any(machine.get("GPU", 0) for machine in machines):
            wanted["GPU"] = processes
        if not any(all(machine.get(kind, 0) >= count for kind, count in wanted.items()) for machine in machines):
            what = f"no machine of the cluster has {wanted['CPU']} cores" + (f" and {wanted['GPU']} GPUs" if wanted["GPU"] else "")
            raise InputError(what, where=step.name, cure="set machine.num_workers and machine.num_processes lower")
        return {"num_cpus": wanted["CPU"], "num_gpus": wanted["GPU"]}

    def _machines(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    def _take(self, step: Step, answer: Mapping[str, Any]) -> None:
        """Bring what a notebook made into the run folder, if it is not there already."""
        came = Path(answer["came"])
        if self.storage and step.part:
            came = self.run / worker.ROOM / step.part
            self.storage.get_all(came, answer["files"], under=f"parts/{step.part}/")
        elif self.storage:
            self.storage.get_all(self.run, answer["files"])
            self.stored |= answer["files"]
            shared_storage.download(self.storage, self.run, step.checkpoints)
        if step.part:
            with self.merging:
                split_prediction.merge_scores(self.run, came, step.part)
            shutil.rmtree(came, ignore_errors=True)

    def _deposit(self, errand: Job) -> dict[str, Any]:
        """Store what a notebook needs, and tell where."""
        step = errand.step
        taken = {name: digest for need in step.needs if need != "simulate" for name, digest in steps.products(errand.done[need]).items()}
        with self.depositing:
            self.stored |= self.storage.put_all(self.run, [name for name in taken if self.stored.get(name) != taken[name]])
        shared_storage.upload(self.storage, self.run, step.checkpoints)
        told = {"storage": self.storage.url, "taken": taken}
        if self.storage.holds(errand.data):
            return told
        return {**told, "data": "", "plates": self._plates(errand), "place": step.part or step.cell_type}

    def _plates(self, errand: Job) -> str:
        """Store the plates, once; gives the name under which they lie there."""
        outputs = errand.done["simulate"].outputs
        digest = hashlib.sha256("\n".join(sorted(outputs.values())).encode()).hexdigest()[:16]
        with self.depositing:
            if self.storage.read_receipt(f"data/{digest}.json") is None:
                found = {path.relative_to(errand.data).as_posix(): path for path in errand.data.rglob("*") if path.is_file()}
                sizes = {name: path.stat().st_size for name, path in found.items() if not name.startswith(".")}
                for name in progress_bar(sizes, desc="store the plates", unit="file"):
                    self.storage.put(errand.data / name, f"data/{digest}/{name}")
                self.storage.put_receipt(f"data/{digest}.json", Receipt(errand.data, details=sizes))
        return digest

    def _catch_up(self) -> None:
        """Fetch what the storage holds of steps that are whole there and were never here, and their checkpoints."""
        for name in self.storage.names(manifest.FOLDER):
            ours, theirs = files.inside(self.run, name, source=self.storage.url), self.storage.read_receipt(name)
            if theirs is None or not theirs.complete or (ours.exists() and Receipt.find(ours) != theirs):
                continue  # one of the two is damaged, or of another time: the step runs again
            try:
                self.storage.get_all(self.run, theirs.outputs)
            except StepFailed:
                continue  # it is not whole: the step runs again
            replace(theirs, path=ours).write()
            self.stored |= theirs.outputs
        shared_storage.download(self.storage, self.run, [name for name in self.storage.names("weights") if name.endswith(".checkpoint.json")])


@contextmanager
def helpers(address: str) -> Iterator[Callable[..., Iterator[Any]]]:
    """Who does parts of a work side by side on the machines of a cluster, which see the same folders as this one."""
    engine = Cluster(address)
    with _connected(engine.ray, address):
        yield engine.parallel_map


def _ray() -> ModuleType:
    environment.configure_libraries()
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", where="--ray", cure="pip install ray, on every machine") from None
    return ray


def _reach(address: str) -> None:
    """Raise InputError where nobody listens at HOST:PORT: Ray itself tries for minutes and says nothing."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        what = f"no Ray cluster answers ({getattr(error, 'strerror', None) or error})"
        raise InputError(what, where=f"--ray {address}", cure=_START) from None


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    """A connection to a cluster whose tasks have this package, quiet, and with our signals left as they are."""
    _reach(address)
    own = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    more = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, runtime_env={"py_modules": [str(environment.PACKAGE)]}, **quiet, **more)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"no Ray cluster answers ({next(iter(str(error).splitlines()), '')})"
        raise InputError(what, where=f"--ray {address}", cure=_START) from None
    except Exception as error:  # a class of its own Ray has not made for it
        raise StepFailed(f"Ray did not start: {error}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in own.items():
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()

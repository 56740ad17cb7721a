"""A run on the machines of a Ray cluster: trainings and predictions are Ray tasks, everything else runs here."""

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

from cellsignal import files, provenance
from cellsignal.errors import InputError, StepFailed
from cellsignal.learn.settings import MachineSettings
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.chain import plans, steps
from cellsignal.run.chain.chain import Job, LocalExecutor
from cellsignal.run.chain.notebooks import Stopped
from cellsignal.run.chain.steps import Step
from cellsignal.run.cluster import shared_storage, worker
from cellsignal.run.cluster.shared_storage import Storage
from cellsignal.run.record import step_receipts

LOCAL = "local"  # the address of a cluster of this machine alone, which lives as long as the run
RETRIES = 3  # of a task whose machine is lost; a task that fails is not repeated
CONNECT_SECONDS = 5.0  # for a cluster to answer at all
_START_CURE = "start one with `ray start --head`, or use --ray local"
POLL_SECONDS = 0.5  # between two checks of running tasks
ERRORS = {"InputError": InputError, "StepFailed": StepFailed}


class Cluster(LocalExecutor):
    """Executes notebooks on the machines of the Ray cluster at `address`.

    The machines share the run folder, or else the files at the URL `storage`: then those that a notebook needs are
    fetched from there, and those that it made are stored there. Raises InputError when Ray is not installed or no cluster answers.
    """

    splits_prediction = True

    def __init__(self, address: str, storage: str = "") -> None:
        self.ray, self.address = _import_ray(), address
        self.storage = Storage(storage) if storage else None
        self.stored: dict[str, str] = {}  # SHA-256 by name of files that are known to be in the storage
        self.merge_lock, self.storage_lock = threading.Lock(), threading.Lock()

    @contextmanager
    def open(self, run: Path, *, deadline: float | None) -> Iterator[None]:
        """Connect to the cluster, and fetch the steps of an earlier run from the storage."""
        with super().open(run, deadline=deadline), _connected(self.ray, self.address):
            if self.storage and self.storage.holds(run) and Path(self.storage.root) == run:
                self.storage = None
            self.code = provenance.code_digest()  # of the package as it was sent; its files may change here meanwhile
            shutil.rmtree(run / worker.EXPERIMENT_RUNS, ignore_errors=True)
            if self.storage:
                self._fetch_completed_steps()
            yield
            shutil.rmtree(run / worker.EXPERIMENT_RUNS, ignore_errors=True)

    def num_slots(self, parallel_notebooks: int) -> int:
        """How many notebooks may run at once, with so many on each machine."""
        return parallel_notebooks * max(1, len(self._machines()))

    def parallel_map(self, function: Callable[[Any], Any], parts: Any) -> Iterator[Any]:
        """The results of `function` for the parts of a simulation or a packing, one core each, in the order in which they end."""
        remote = self.ray.remote(num_cpus=1, max_retries=RETRIES)(worker.run_part)
        waiting = {remote.remote(function, part, send_files=self.storage is not None): part for part in parts}
        try:
            while waiting:
                for ready in self.ray.wait(list(waiting), timeout=POLL_SECONDS)[0]:
                    (result, contents), part = self._result(ready), waiting.pop(ready)
                    for name, content in contents.items():
                        (part[-1] / name).parent.mkdir(parents=True, exist_ok=True)
                        (part[-1] / name).write_bytes(content)
                    yield result
        finally:
            for task in waiting:
                self.ray.cancel(task, force=True)

    def execute(self, job: Job) -> Receipt | None:
        """Execute a notebook on a machine of the cluster, or on this one if it neither trains nor predicts."""
        step = job.step
        if not step.runs_remotely:
            return super().execute(job)
        values = {"run": str(self.run), "parameters": dict(job.parameters), "deadline": self.deadline, "write_page": job.write_page,
                  "code": self.code, "storage": "", "data": str(job.data)}  # fmt: skip
        if self.storage:
            values |= self._store_inputs(job)
        answer = self._run_remotely(worker.describe_job(step, **values), self._resources(step, job.parameters), job)
        if "error" in answer:
            if answer["notebook"]:
                files.write_text(self.run / f"notebooks/{step.name}.ipynb", answer["notebook"])
            raise ERRORS[answer["error"]](answer["text"])
        self._fetch_outputs(step, answer)
        return answer["receipt"]

    def step_completed(self, step: Step, receipt: Receipt) -> None:
        """Store the files of a complete step, and then its receipt."""
        if self.storage is None or step.experiment or step.image_root:
            return
        self.stored |= self.storage.put_all(self.run, [name for name, digest in receipt.outputs.items() if self.stored.get(name) != digest])
        self.storage.put_receipt(receipt.path.relative_to(self.run).as_posix(), receipt)

    def _run_remotely(self, description: worker.JobDescription, resources: Mapping[str, int], job: Job) -> dict[str, Any]:
        """The result of `worker.run_job` on a machine with these resources; Stopped when the job must end before."""
        task = self.ray.remote(max_retries=RETRIES, **resources)(worker.run_job).remote(description)
        while not self.ray.wait([task], timeout=POLL_SECONDS)[0]:
            if job.stop.is_set():
                self.ray.cancel(task, force=True)
                raise Stopped
        return self._result(task)

    def _result(self, task: Any) -> Any:
        """The result of a task; raises its error in one line, and StepFailed when its machine was lost."""
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise StepFailed(f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}") from None
        except self.ray.exceptions.RayError as error:
            raise StepFailed(f"its machine was lost {RETRIES + 1} times ({type(error).__name__})") from None

    def _resources(self, step: Step, parameters: Mapping[str, Any]) -> dict[str, int]:
        """Cores and GPUs of a notebook, one GPU per process if there are any; InputError when no machine has enough."""
        machines = [machine["Resources"] for machine in self._machines()]
        settings = MachineSettings(**parameters.get("machine", {}))
        processes = max(1, settings.num_processes)
        needed = {"CPU": processes + settings.num_workers, "GPU": 0}
        if settings.device != "cpu" and any(machine.get("GPU", 0) for machine in machines):
            needed["GPU"] = processes
        if not any(all(machine.get(kind, 0) >= count for kind, count in needed.items()) for machine in machines):
            what = f"no machine of the cluster has {needed['CPU']} cores" + (f" and {needed['GPU']} GPUs" if needed["GPU"] else "")
            raise InputError(what, where=step.name, cure="set machine.num_workers and machine.num_processes lower")
        return {"num_cpus": needed["CPU"], "num_gpus": needed["GPU"]}

    def _machines(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]

    def _fetch_outputs(self, step: Step, answer: Mapping[str, Any]) -> None:
        """Bring the files that a notebook made into the run folder, unless they are there already."""
        experiment_run = Path(answer["run"])
        if self.storage and step.experiment:
            experiment_run = self.run / worker.EXPERIMENT_RUNS / step.experiment
            self.storage.get_all(experiment_run, answer["files"], under=f"parts/{step.experiment}/")
        elif self.storage:
            self.storage.get_all(self.run, answer["files"])
            self.stored |= answer["files"]
            shared_storage.download_checkpoints(self.storage, self.run, step.checkpoints)
        if step.experiment:
            with self.merge_lock:
                plans.merge_scores(self.run, experiment_run, step.experiment)
            shutil.rmtree(experiment_run, ignore_errors=True)

    def _store_inputs(self, job: Job) -> dict[str, Any]:
        """Store the files that a notebook needs; returns the values by which the worker finds them."""
        step = job.step
        input_digests = {
            name: digest for need in step.needs if need != "plates" for name, digest in steps.product_digests(job.receipts[need]).items()
        }
        with self.storage_lock:
            self.stored |= self.storage.put_all(self.run, [name for name, digest in input_digests.items() if self.stored.get(name) != digest])
        shared_storage.upload_checkpoints(self.storage, self.run, step.checkpoints)
        values = {"storage": self.storage.url, "inputs": input_digests}
        if self.storage.holds(job.data):
            return values
        return {**values, "data": "", "plates": self._store_plates(job), "images_of": step.experiment or step.cell_type}

    def _store_plates(self, job: Job) -> str:
        """Store the plates, once; returns the name of their folder in the storage."""
        known = steps.placed_digests(job.receipts["plates"])
        digest = hashlib.sha256("\n".join(f"{known[name]} {name}" for name in sorted(known)).encode()).hexdigest()[:16]
        with self.storage_lock:
            if self.storage.read_receipt(f"data/{digest}.json") is None:
                paths = {path.relative_to(job.data).as_posix(): path for path in job.data.rglob("*") if path.is_file()}
                sizes = {name: path.stat().st_size for name, path in paths.items() if not name.startswith(".")}
                for name in progress_bar(sizes, desc="store the plates", unit="file"):
                    self.storage.put(job.data / name, f"data/{digest}/{name}")
                digests = {name: files.sha256(job.data / name) for name in sizes}
                self.storage.put_receipt(f"data/{digest}.json", Receipt(job.data, outputs=digests, details=sizes))
        return digest

    def _fetch_completed_steps(self) -> None:
        """Fetch from the storage the files of complete steps that have no receipt here, and all checkpoints."""
        for name in self.storage.names(step_receipts.RECEIPTS_FOLDER):
            path, stored = files.inside(self.run, name, source=self.storage.url), self.storage.read_receipt(name)
            if stored is None or not stored.complete or (path.exists() and Receipt.find(path) != stored):
                continue  # one of the two is damaged, or of another time: the step runs again
            try:
                self.storage.get_all(self.run, stored.outputs)
            except StepFailed:
                continue  # a file is missing: the step runs again
            replace(stored, path=path).write()
            self.stored |= stored.outputs
        shared_storage.download_checkpoints(self.storage, self.run, [name for name in self.storage.names("weights") if name.endswith(".checkpoint.json")])


@contextmanager
def open_parallel_map(address: str) -> Iterator[Callable[..., Iterator[Any]]]:
    """The function `Cluster.parallel_map` of a cluster whose machines see the same folders as this one."""
    cluster = Cluster(address)
    with _connected(cluster.ray, address):
        yield cluster.parallel_map


def _import_ray() -> ModuleType:
    environment.configure_libraries()
    try:
        import ray
    except ImportError:
        raise InputError("Ray is not installed", where="--ray", cure="pip install ray, on every machine") from None
    return ray


def _check_address(address: str) -> None:
    """Raise InputError when no process listens at HOST:PORT, for which Ray would wait several minutes without a message."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        what = f"no Ray cluster answers ({getattr(error, 'strerror', None) or error})"
        raise InputError(what, where=f"--ray {address}", cure=_START_CURE) from None


@contextmanager
def _connected(ray: ModuleType, address: str) -> Iterator[None]:
    """A connection to a cluster whose tasks import this package; quiet, and without a change of the signal handlers."""
    _check_address(address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    local_options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, runtime_env={"py_modules": [str(environment.PACKAGE)]}, **quiet, **local_options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        what = f"no Ray cluster answers ({next(iter(str(error).splitlines()), '')})"
        raise InputError(what, where=f"--ray {address}", cure=_START_CURE) from None
    except Exception as error:  # Ray has no class for this error
        raise StepFailed(f"Ray did not start: {error}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield
    finally:
        ray.shutdown()

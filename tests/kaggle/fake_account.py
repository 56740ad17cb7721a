"""What a Kaggle account holds, and the rules by which Kaggle takes in kernels and data sets, as far as they are known.

No HTTP here: fake_kaggle.py speaks it. Each method answers one API call, or raises Refusal.
"""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, RLock, Thread
from typing import Any

COMPETITION = "recursion-cellular-image-classification"
PLACEHOLDER = "INSERT_KAGGLE_USERNAME"
FINISHED = {"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"}
Body = dict[str, Any]


class Refusal(Exception):
    """An HTTP status and a message instead of an answer."""

    def __init__(self, code: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.headers = code, message, headers or {}


@dataclass
class Outcome:
    """How a session ended: its status, the folder that it left, its log, and what Kaggle says of a failure."""

    status: str = "COMPLETE"
    folder: Path | None = None
    log: str = ""
    failure: str = ""


@dataclass
class Pushed:
    """One version of a kernel, as it was pushed."""

    slug: str  # owner/slug
    version: int
    body: Body  # of SaveKernel
    mounts: dict[str, dict[str, Path | None]]  # kind ("datasets", "notebooks", "competitions") -> slug -> folder
    status: str = "QUEUED"
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def notebook(self) -> Body:
        """The pushed notebook."""
        return json.loads(self.body["text"])

    @property
    def gpu(self) -> bool:
        """Whether the session takes a GPU."""
        return bool(self.body.get("enableGpu")) or "Nvidia" in self.body.get("machineShape", "")


@dataclass
class Dataset:
    """A data set: the folder of each version, and the status polls until the newest is ready."""

    title: str
    versions: list[Path]
    polls_left: int = 0

    @property
    def current(self) -> int:
        """The number of the newest version that can be attached, 0 for none."""
        return len(self.versions) - (self.polls_left > 0)


class Holdings:
    """One user's kernels, data sets, competitions and submissions, in `folder`.

    Switches for failures: `busy` pushes are refused as if all sessions were taken; what is in `invalid` is no source;
    a new data set version needs `dataset_polls` more polls; `refuse_self` forbids a kernel as its own source, as a text
    in these words; so many listings of outputs as `listings_late` are of the session before; sessions wait for `machines`.
    """

    def __init__(self, folder: Path, *, user: str, runner: Callable[[Pushed], Outcome] | None) -> None:
        self.folder, self.user, self.runner = folder, user, runner
        self.kernels: dict[str, list[Pushed]] = {}
        self.datasets: dict[str, Dataset] = {}
        self.competitions: dict[str, Path | None] = {COMPETITION: None}
        self.blobs: dict[str, tuple[str, Path]] = {}  # upload token -> file name, content
        self.submissions: list[Body] = []
        self.sessions = {True: 2, False: 5}  # with and without a GPU
        self.most_running = {True: 0, False: 0}
        self.busy = 0
        self.gpu_hours: float | None = 30.0  # left of this week's; None: Kaggle does not tell
        self.invalid: set[str] = set()
        self.dataset_polls = 0
        self.refuse_self: bool | str = False
        self.listings_late = 0
        self.machines = Event()
        self.machines.set()
        self.threads: list[Thread] = []
        self.lock = RLock()

    # Kernels

    def save_kernel(self, body: Body) -> Body:
        with self.lock:
            slug = self._place(body)
            refused = self._no_session(body)
            if refused:
                return {"error": refused}
            if isinstance(self.refuse_self, str) and slug in body.get("kernelDataSources", []):
                return {"error": self.refuse_self}
            dropped = self._dropped(slug, body)
            versions = self.kernels.setdefault(slug, [])
            pushed = Pushed(slug, len(versions) + 1, body, self._mounts(body, dropped))
            versions.append(pushed)
            running = self._running(pushed.gpu)
            self.most_running[pushed.gpu] = max(self.most_running[pushed.gpu], running)
            self._start(pushed)
        url = f"https://www.kaggle.com/code/{slug}"
        return {"ref": f"/code/{slug}", "url": url, "versionNumber": pushed.version, **dropped}

    def _place(self, body: Body) -> str:
        """The slug under which a push is kept: for a new kernel, what its title makes."""
        owner, slug = body["slug"].split("/")
        if owner != self.user:
            raise Refusal(403, "Permission 'kernels.update' was denied")
        if f"{owner}/{slug}" in self.kernels:
            return f"{owner}/{slug}"
        by_title = re.sub("[^a-z0-9]+", "-", body.get("newTitle", "").lower()).strip("-")
        if len(by_title) < 5:
            raise Refusal(400, "Title must be at least five characters")
        if f"{owner}/{by_title}" in self.kernels:
            raise Refusal(409, "A notebook with this title already exists")
        return f"{owner}/{by_title}"

    def _no_session(self, body: Body) -> str:
        gpu = Pushed("", 0, body, {}).gpu
        full = self._running(gpu) >= self.sessions[gpu]
        if not full and self.busy == 0:
            return ""
        self.busy -= not full
        return f"Maximum batch {'GPU' if gpu else 'CPU'} session count of {self.sessions[gpu]} reached."

    def _running(self, gpu: bool) -> int:
        pushed = [version for versions in self.kernels.values() for version in versions]
        return sum(version.gpu == gpu and version.status not in FINISHED for version in pushed)

    def _dropped(self, slug: str, body: Body) -> Body:
        def unknown(kind: str, known: Any) -> list[str]:
            return [source for source in body.get(kind, []) if source in self.invalid or source not in known]

        kernels = [name for name in self.kernels if not (self.refuse_self and name == slug)]
        found = {
            "invalidDatasetSources": unknown("datasetDataSources", self.datasets),
            "invalidKernelSources": unknown("kernelDataSources", kernels),
            "invalidCompetitionSources": unknown("competitionDataSources", self.competitions),
        }
        return {kind: names for kind, names in found.items() if names}

    def _mounts(self, body: Body, dropped: Body) -> dict[str, dict[str, Path | None]]:
        """What the session will see: ready data sets, and of kernels the last complete version, whatever runs now."""
        out = {source for names in dropped.values() for source in names}
        datasets = [slug for slug in body.get("datasetDataSources", []) if slug not in out]
        kernels = [slug for slug in body.get("kernelDataSources", []) if slug not in out]
        competitions = [name for name in body.get("competitionDataSources", []) if name not in out]
        return {
            "datasets": {slug: self._attached(slug) for slug in datasets},
            "notebooks": {slug: self._last_complete(slug) for slug in kernels},
            "competitions": {name: self.competitions[name] for name in competitions},
        }

    def _attached(self, slug: str) -> Path | None:
        held = self.datasets[slug]
        return held.versions[held.current - 1] if held.current else None

    def _last_complete(self, slug: str) -> Path | None:
        complete = [version for version in self.kernels[slug] if version.status == "COMPLETE"]
        return complete[-1].outcome.folder if complete else None

    def _start(self, pushed: Pushed) -> None:
        if self.runner is None:
            pushed.status = "COMPLETE"
            return
        thread = Thread(target=self._work, args=(pushed,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _work(self, pushed: Pushed) -> None:
        self.machines.wait(60)
        pushed.status = "RUNNING"
        try:
            outcome = self.runner(pushed) if self.runner else Outcome()
        except Exception as error:  # a runner that fails is a failed session, which the test then sees
            outcome = Outcome("ERROR", failure=f"{type(error).__name__}: {error}")
        with self.lock:
            pushed.outcome, pushed.status = outcome, outcome.status

    def session(self, body: Body, *, finished: bool = False) -> Pushed:
        """The session that is asked for: the version named, else the last one, or the last that has `finished`."""
        slug = f"{body['userName']}/{body['kernelSlug']}"
        versions = self.kernels.get(slug)
        if not versions:
            raise Refusal(403, "Permission 'kernels.get' was denied")
        if finished and self.listings_late and len(versions) > 1:
            self.listings_late -= 1
            return versions[-2]
        if body.get("versionLabel"):
            return versions[int(body["versionLabel"].removeprefix("v")) - 1]
        if finished:
            return next((version for version in reversed(versions) if version.status in FINISHED), versions[-1])
        return versions[-1]

    def quota(self) -> Body:
        if self.gpu_hours is None:
            raise Refusal(404, "Not found")
        gpu = {"timeUsed": "7200s", "totalTimeAllowed": f"{7200 + 3600 * self.gpu_hours:g}s"}
        return {"gpuQuota": gpu, "quotaRefreshTime": "2026-11-28T00:00:00Z"}

    # Data sets

    def create_dataset(self, body: Body) -> Body:
        slug = f"{body['ownerSlug']}/{body['slug']}"
        if body["ownerSlug"] != self.user:
            raise Refusal(403, "Permission 'datasets.create' was denied")
        if slug in self.datasets:
            return {"status": "Error", "error": f'The requested slug "{body["slug"]}" is already in use by a dataset.'}
        self.datasets[slug] = Dataset(body["title"], [self._unpack(slug, 1, body.get("files", []))], self.dataset_polls)
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{slug}", "ref": slug}

    def create_version(self, body: Body) -> Body:
        slug = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if body["ownerSlug"] != self.user or slug not in self.datasets:
            raise Refusal(403, "Permission 'datasets.update' was denied")
        held = self.datasets[slug]
        if held.polls_left:  # seen of a first version that is not ready
            raise Refusal(403, "The dataset is still being processed")
        held.versions.append(self._unpack(slug, len(held.versions) + 1, body["body"].get("files", [])))
        held.polls_left = self.dataset_polls
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{slug}", "ref": slug}

    def _unpack(self, slug: str, version: int, tokens: list[Body]) -> Path:
        """Lay the uploaded files down as Kaggle does: X.zip becomes the folder X."""
        target = self.folder / "datasets" / slug / str(version)
        shutil.rmtree(target, ignore_errors=True)  # of a data set that was deleted
        target.mkdir(parents=True)
        for token in tokens:
            name, content = self.blobs[token["token"]]
            if name.endswith(".zip"):
                with zipfile.ZipFile(content) as archive:
                    archive.extractall(target / name.removesuffix(".zip"))
            else:
                shutil.copy(content, target / name)
        return target

    def dataset_status(self, body: Body) -> Body:
        """A new version does not show in the status: the one before stays ready."""
        held = self._dataset(body)
        ready = held.current > 0
        held.polls_left = max(0, held.polls_left - 1)
        return {"status": "READY" if ready else "BLOBS_RECEIVED"}

    def dataset(self, body: Body) -> Body:
        held = self._dataset(body)
        return {"ref": f"{body['ownerSlug']}/{body['datasetSlug']}", "currentVersionNumber": held.current}

    def _dataset(self, body: Body) -> Dataset:
        slug = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if slug not in self.datasets:
            raise Refusal(403, "Permission 'datasets.get' was denied")
        return self.datasets[slug]

    # Competitions

    def submit(self, body: Body) -> Body:
        name = body["competitionName"]
        if name not in self.competitions:
            raise Refusal(404, "Not found")
        file, content = self.blobs[body["blobFileTokens"]]
        self.submissions.append({**body, "file": file, "bytes": content.read_bytes()})
        return {"message": f"Successfully submitted to {name}", "ref": len(self.submissions)}

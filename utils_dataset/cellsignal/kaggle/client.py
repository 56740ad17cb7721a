"""The Kaggle client, one function per verb: the only caller of `kaggle`, which judges by what it prints.

Its exit codes do not tell: a refused push, an ignored source and a failed upload can all end with 0. Credentials are
the client's business alone; nothing here reads them.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata as installed
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import IO, Any

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.kaggle.errors import Conflict, Denied, InvalidSource, LoginFailed, Missing, Refused, Unreachable, refusal

# The metadata files that the Kaggle client reads: names, placeholders, and what Kaggle would take amiss.


KERNEL = "kernel-metadata.json"
DATASET = "dataset-metadata.json"
PLACEHOLDER = "INSERT_KAGGLE_USERNAME"
FIRST_RUN = "first run: cellsignal kaggle init --user YOUR_NAME"  # stands where the client looks for a file, so that it stops and shows it
_OWNER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,48}[A-Za-z0-9])?")


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title in plain letters and digits."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def check_owner(name: str) -> str:
    """The name itself; InputError when it cannot be a Kaggle user's."""
    if not _OWNER.fullmatch(name) or name.upper() in {PLACEHOLDER, "YOUR_NAME"}:
        cure = "give the name in the address of your profile, https://www.kaggle.com/NAME"
        raise InputError(f"{name!r} is no Kaggle user name", cure=cure)
    return name


def check_kernel(folder: Path) -> dict[str, Any]:
    """A kernel's metadata; InputError when a placeholder remains, title and slug are apart, or its code is not there."""
    path = Path(folder) / KERNEL
    metadata = _read_metadata(path)
    slug = _slug(path, metadata, shortest=5)
    _refuse_placeholders(path, metadata)
    title = str(metadata.get("title", ""))
    if slugify(title) != slug.lower():
        mismatch = f"the title {title!r} makes the slug {slugify(title)!r}, and id says {slug!r}"
        raise InputError(mismatch, where=path, cure="give both the same words: Kaggle goes by the title")
    if not (path.parent / str(metadata.get("code_file", ""))).is_file():
        raise InputError(f"no file {metadata.get('code_file')!r} beside it", where=path, cure="name the notebook in code_file")
    return metadata


def check_dataset(folder: Path) -> dict[str, Any]:
    """A dataset's metadata; InputError when a placeholder remains or the slug is not one that Kaggle takes."""
    path = Path(folder) / DATASET
    metadata = _read_metadata(path)
    _slug(path, metadata, shortest=6)
    _refuse_placeholders(path, metadata)
    return metadata


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata = files.read_json(path)
    if not isinstance(metadata, dict):
        raise InputError("not a JSON object", where=path, cure="restore the file")
    return metadata


def _slug(path: Path, metadata: Mapping[str, Any], *, shortest: int) -> str:
    owner, slash, slug = str(metadata.get("id", "")).partition("/")
    if not (owner and slash and re.fullmatch(rf"[a-z0-9][a-z0-9-]{{{shortest - 1},49}}", slug)):
        cure = f"write OWNER/SLUG, the slug of {shortest} to 50 small letters, digits and hyphens"
        raise InputError(f"id is {metadata.get('id')!r}", where=path, cure=cure)
    return slug


def _refuse_placeholders(path: Path, metadata: Mapping[str, Any]) -> None:
    text = repr(metadata)
    if PLACEHOLDER in text or FIRST_RUN in text:
        raise InputError("it still holds a placeholder for your name", where=path, cure="run `cellsignal kaggle init --user YOUR_NAME`")


MIN_VERSION = (2, 2, 4)  # older ones drop sub-folders' exclusions and the version of a dataset
FINISHED_STATES = frozenset({"COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED"})
DATASET_MISSING = "missing"  # the status of a dataset that is not there
_INSTALL = "pip install 'kaggle>=2.2.4,<3' six"
_TIMEOUT = 300.0  # seconds that a verb without large files may take: the client itself waits for ever


@dataclass(frozen=True)
class CliResult:
    """What one call of the client printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, one after the other."""
        return f"{self.out}\n{self.err}"

    def refusal(self, doing: str, *, about: str = "", cure: str = "") -> Refused | InputError:
        """The error that this output stands for."""
        return refusal(self.out, self.err, doing=doing, about=about, cure=cure)


def command() -> list[str]:
    """How to start the client: the module of this Python, else the `kaggle` on the path; InputError without one."""
    version = _version()
    if version:
        if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < MIN_VERSION:
            raise InputError(f"the Kaggle client is version {version}", cure=_INSTALL)
        return [sys.executable, "-P", "-m", "kaggle"]  # -P: a folder `kaggle` where the user stands is not the client
    executable = shutil.which("kaggle")
    if executable is None:
        raise InputError("the Kaggle client is not installed", cure=_INSTALL)
    return [executable]


def _version() -> str:
    """The version of this Python's client; "" without one: any folder named `kaggle` can be imported."""
    try:
        return installed.version("kaggle") if find_spec("kaggle") is not None else ""
    except installed.PackageNotFoundError:
        return ""


def push(folder: Path, *, seconds: int = 0) -> int:
    """Push the kernel in `folder` and start it; gives its version number. `seconds` ends the session early.

    InputError for metadata that Kaggle would take amiss, a login or another's slug; InvalidSource when a source was
    dropped; Busy, QuotaSpent and other Refused for what the platform said.
    """
    metadata = check_kernel(folder)
    slug = metadata["id"]
    limit = ["-t", str(seconds)] if seconds else []
    result = _call("kernels", "push", "-p", str(folder), *limit)
    dropped_sources = _dropped_sources(result.out)
    if dropped_sources:
        raise _invalid_source(slug, dropped_sources)
    match = re.search(r"Kernel version (\d+) successfully pushed\.\s+Please check progress at (\S+)", result.out)
    if result.code or match is None:
        raise result.refusal(f"push of {slug}", about=slug)
    if not match[2].rstrip("/").lower().endswith(slug.lower()):
        raise Conflict(f"push of {slug}: Kaggle saved it as {match[2]}; give title and id the same words")
    return int(match[1])


def _dropped_sources(out: str) -> list[str]:
    """What was left out of a push that "succeeded": "dataset source 'a/b'", …"""
    lines = re.findall(r"not valid (dataset|competition|kernel) sources and could not.*?: \[(.*?)\]", out)
    return [f"{kind} source {name}" for kind, names in lines for name in re.findall(r"[\w./-]+", names)]


def _invalid_source(slug: str, dropped: list[str]) -> InvalidSource:
    """The error for sources that were left out; of a competition this says most often that its rules were not accepted."""
    sources = [text.rsplit(" ", 1) for text in dropped]
    cures = [_accept_rules(name) for kind, name in sources if kind == "competition source"]
    line = f"push of {slug}: Kaggle does not know the {' and the '.join(dropped)}"
    return InvalidSource("; ".join([line, *cures]), tuple(name for _, name in sources))


def kernel_status(slug: str) -> str:
    """The state of a kernel's last session: QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED.

    Missing when there is no such kernel.
    """
    return _status(slug)[0]


def kernel_failure(slug: str) -> str:
    """What Kaggle says of a session that failed, "" when it says nothing."""
    return _status(slug)[1]


def _status(slug: str) -> tuple[str, str]:
    result = _call("kernels", "status", slug)
    match = re.search(r'has status "(?:KernelWorkerStatus\.)?([A-Za-z_]+)"', result.out)
    if result.code or match is None:
        raise result.refusal(f"status of {slug}", about=slug)
    failure = re.search(r'Failure message: "(.*)"', result.out, re.DOTALL)
    return match[1].upper(), " ".join(failure[1].split()) if failure else ""


def output(slug: str, folder: Path, pattern: str = "", *, resume: bool = False) -> list[Path]:
    """Fetch what a kernel's last session left, and its log, into `folder`; gives the files.

    `pattern`: only paths in which this regular expression is found. `resume` keeps what is there and not older; the
    default fetches again, because a file of an earlier version can have the same size. Compare hashes: while a version
    runs Kaggle gives the files of the one before, and client 2.2.4 stores the page of a failed download as the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pattern_options = ["--file-pattern", pattern] if pattern else []
    force_options = [] if resume else ["--force"]
    result = _call("kernels", "output", slug, "-p", str(folder), "--page-size", "200", *pattern_options, *force_options, no_timeout=True)
    if result.code:
        raise result.refusal(f"output of {slug}", about=slug)
    fetched = re.findall(r"(?:Output file|Kernel log) downloaded to (.*?) ?$", result.out, re.MULTILINE)
    return [Path(name) for name in fetched]


def dataset_status(slug: str) -> tuple[str, int]:
    """A dataset's status ("ready" when it can be attached, DATASET_MISSING when it is not there) and its version, 0 for none."""
    for options in (["--format", "json"], []):  # a dataset that is being made has a status before it has a version
        result = _call("datasets", "status", slug, *options)
        if result.code == 0 and result.out.strip():
            break
        error = result.refusal(f"status of {slug}", about=slug)
        if not isinstance(error, Missing | Denied):  # of a dataset that is not there Kaggle says 403 as well
            raise error
    else:
        return DATASET_MISSING, 0
    if not options:
        return result.out.split()[-1].lower(), 0
    status = json.loads(result.out.strip().splitlines()[-1])
    return str(status["status"]).lower(), int(status.get("current_version_number") or 0)


def create_dataset(folder: Path) -> None:
    """Make the dataset that `folder` describes, private, with its sub-folders."""
    slug = check_dataset(folder)["id"]
    result = _upload("create", "-p", str(folder))
    if result.code or "Dataset is being created" not in result.out:
        raise result.refusal(f"creation of {slug}", about=slug)


def version_dataset(folder: Path, message: str) -> None:
    """Make the next version of the dataset that `folder` describes."""
    slug = check_dataset(folder)["id"]
    result = _upload("version", "-p", str(folder), "-m", message)
    if result.code or "Dataset version is being created" not in result.out:
        raise result.refusal(f"new version of {slug}", about=slug)


def _upload(verb: str, *arguments: str) -> CliResult:
    ignore_options = [part for pattern in ("__pycache__/", "*/__pycache__/") for part in ("--ignore-patterns", pattern)]
    result = _call("datasets", verb, *arguments, "-r", "zip", *ignore_options, no_timeout=True)
    if re.search(r"Upload unsuccessful|Skipping folder", result.text):  # 2.2.4 goes on without the file
        raise result.refusal(f"upload of {arguments[1]}")
    return result


def username() -> str:
    """The account that the client's credentials belong to; LoginFailed without any."""
    result = _call("config", "view")
    match = re.search(r"^- username: (\S+)", result.out, re.MULTILINE)
    if result.code or match is None:
        raise result.refusal("login") if result.code else LoginFailed("the Kaggle client has no user name")
    if match[1] == "None":
        raise LoginFailed("the Kaggle client has no user name")
    return match[1]


def gpu_hours() -> float | None:
    """The hours of a GPU that the account has left this week; None where Kaggle does not tell."""
    result = _call("quota", "--format", "json")
    match = re.search(r'"resource":\s*"GPU"[^}]*"remaining":\s*"([\d.]+)h"', result.out)
    return float(match[1]) if match and not result.code else None


def submit(competition: str, file: Path, message: str) -> str:
    """Send a submission; gives what Kaggle answers."""
    result = _call("competitions", "submit", "-c", competition, "-f", str(file), "-m", message, no_timeout=True)
    if result.code or not re.search(r"success", result.out, re.IGNORECASE):
        raise result.refusal(f"submission to {competition}", about=competition, cure=_accept_rules(competition))
    return next(line.strip() for line in result.out.splitlines() if "success" in line.lower())


def download(competition: str, folder: Path, file: str = "") -> Path:
    """Fetch a competition's files as one zip, or one `file` (zipped when Kaggle stores it so); gives what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    file_options = ["-f", file] if file else []
    result = _call("competitions", "download", "-c", competition, "-p", str(folder), *file_options, no_timeout=True)
    if result.code:
        raise result.refusal(f"download of {file or competition}", about=competition, cure=_accept_rules(competition))
    names = (file, f"{file}.zip", Path(file).name, f"{Path(file).name}.zip") if file else (f"{competition}.zip",)
    downloaded = [folder / name for name in names if (folder / name).is_file()]
    if not downloaded:
        raise Refused(f"download of {file or competition}: the client ended without a file")
    return downloaded[0]


def _accept_rules(competition: str) -> str:
    return f"accept the rules at https://www.kaggle.com/competitions/{competition}/rules"


def _call(*arguments: str, no_timeout: bool = False) -> CliResult:
    """Run the client to its end; `no_timeout` for verbs that move files: they take as long as they need, and a terminal shows their progress bars."""
    process = subprocess.Popen(
        [*command(), "--no-warn", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    texts: list[list[bytes]] = [[], []]
    readers = [
        Thread(target=_read, args=(process.stdout, texts[0], False), daemon=True),
        Thread(target=_read, args=(process.stderr, texts[1], no_timeout and sys.stderr.isatty()), daemon=True),
    ]
    try:
        for reader in readers:
            reader.start()
        process.wait(timeout=None if no_timeout else _TIMEOUT)
    except subprocess.TimeoutExpired:
        raise Unreachable(f"kaggle {' '.join(arguments[:2])}: no answer in {_TIMEOUT:.0f} s; look at the network") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join(timeout=5)
    out, err = (b"".join(text).decode(errors="replace") for text in texts)
    return CliResult(process.returncode, out, err)


def _read(stream: IO[bytes], into: list[bytes], show: bool) -> None:
    while block := stream.read1(1 << 16):  # type: ignore[attr-defined]
        into.append(block)
        if show:
            sys.stderr.buffer.write(block)
            sys.stderr.flush()

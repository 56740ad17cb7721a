"""A Kaggle session in a box: what was pushed runs exactly as pushed, in a file tree like Kaggle's, without network.

Private mount and network namespaces (unshare) give each session its own /kaggle; papermill runs the
notebook, as it does on Kaggle. The interpreter sees every library but not this package.
"""

import json
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from fake_kaggle import Outcome, Pushed

CANARIES = {  # stand for the secrets that a session's environment holds
    "KAGGLE_USER_SECRETS_TOKEN": "canary-user-secrets",
    "KAGGLE_API_V1_TOKEN": "/canary/api-token-file",
    "KAGGLE_DATA_PROXY_TOKEN": "canary-data-proxy",
    "HF_TOKEN": "canary-hub",
}
# A root of its own, so that nothing is made in the real one: every folder of / by rbind, and /kaggle beside them.
ENTER = """set -e
ip link set lo up
mount -t tmpfs tmpfs "$ROOT"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$ROOT$entry"
  elif [ -d "$entry" ]; then mkdir "$ROOT$entry"; mount --rbind "$entry" "$ROOT$entry"; fi
done
mkdir -p "$ROOT/kaggle"
mount --rbind "$TREE" "$ROOT/kaggle"
while IFS="$(printf '\\t')" read -r source target; do
  mkdir -p "$ROOT/kaggle/input/$target"
  mount --bind "$source" "$ROOT/kaggle/input/$target"
  mount -o remount,bind,ro "$ROOT/kaggle/input/$target"
done < "$TREE/mounts.tsv"
exec chroot "$ROOT" sh -c 'cd /kaggle/working && exec "$@"' sh "$@"
"""


def can_run() -> bool:
    """Whether this system lets a test have namespaces of its own."""
    probe = ["unshare", "-rmn", "sh", "-c", "ip link set lo up && mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def bare_python(folder: Path, *, of: Path = Path(sys.executable)) -> Path:
    """An interpreter with all libraries of the one `of`, but without what is installed there for editing.

    A path in a .pth file is added as it is: the .pth files that lie in it, which activate editable
    installations, are not read.
    """
    program = "import sys, sysconfig; print(sysconfig.get_path('purelib'), sys.prefix)"
    libraries, prefix = subprocess.run([of, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    venv.EnvBuilder(with_pip=False, symlinks=True, clear=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "lib" / version / "site-packages" / "libraries.pth").write_text(f"{libraries}\n")
    (folder / "share").symlink_to(f"{prefix}/share")  # Jupyter's kernels and nbconvert's templates
    return folder / "bin/python"


@dataclass
class Machine:
    """Runs notebooks as Kaggle does; `layout` is "new" or "legacy", for where inputs are mounted."""

    python: Path
    folder: Path
    layout: str = "new"
    environment: Mapping[str, str] = field(default_factory=dict)
    number: Iterator[int] = field(default_factory=count)

    def mount(self, kind: str, ref: str) -> str:
        """Where below /kaggle/input an input lies: kind is competitions, datasets or notebooks."""
        return f"{kind}/{ref}" if self.layout == "new" else ref.split("/")[-1]

    def __call__(self, pushed: Pushed) -> Outcome:
        """Work through what was pushed, with the inputs that Kaggle mounted for it."""
        inputs = {self.mount(kind, slug): folder for kind, held in pushed.mounts.items() for slug, folder in held.items()}
        return self.run(pushed.body["text"], inputs={place: folder for place, folder in inputs.items() if folder})

    def run(self, text: str, *, inputs: Mapping[str, Path], seconds: float = 900) -> Outcome:
        """Execute a notebook's text; `inputs` are folders by their place below /kaggle/input."""
        session = self.folder / f"session-{next(self.number)}"
        for name in ("kaggle/working", "kaggle/input", "kaggle/temp", "kaggle/home", "kaggle/src", "root"):
            (session / name).mkdir(parents=True)
        tree = session / "kaggle"
        (tree / "mounts.tsv").write_text("".join(f"{folder.resolve()}\t{place}\n" for place, folder in inputs.items()))
        (tree / "src/notebook.ipynb").write_text(text)
        shell = ["unshare", "-rmn", "sh", "-c", ENTER, "enter"]
        notebooks = ["/kaggle/src/notebook.ipynb", "/kaggle/working/__notebook__.ipynb"]
        command = [str(self.python), "-m", "papermill", *notebooks, "--no-progress-bar", "--log-output"]
        variables = {**self._variables(), "ROOT": str(session / "root"), "TREE": str(tree)}
        ended = subprocess.run([*shell, *command], env=variables, capture_output=True, text=True, timeout=seconds)
        return self._leave(tree / "working", ended)

    def _variables(self) -> dict[str, str]:
        """The environment of a session: Kaggle's marks, Colab's mark (its image is built on Colab's), secrets."""
        marks = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "KAGGLE_URL_BASE": "https://www.kaggle.com", "COLAB_RELEASE_TAG": "release"}
        few = {"PATH": f"{self.python.parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/kaggle/home"}
        return {**few, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **marks, **CANARIES, **self.environment}

    def _leave(self, working: Path, ended: subprocess.CompletedProcess[str]) -> Outcome:
        """What the session left, with what Kaggle adds to it."""
        (working / "__results__.html").write_text("<html></html>")
        (working / "custom.css").write_text("")
        rows = [("stdout", ended.stdout), ("stderr", ended.stderr)]
        log = json.dumps([{"stream_name": name, "time": 1.0, "data": data} for name, data in rows if data])
        return Outcome("COMPLETE" if ended.returncode == 0 else "ERROR", working, log)

"""One flipped bit in any file of a finished run: it is made again, or refused in one line, or no result hangs on it.

Every command runs whole, but in this process: notebooks cell by cell, with stubs for the pages, and archives without the
package. Plates that are drawn again come from the first drawing, because what a simulation draws twice is tested elsewhere.
"""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest

from building import recipe_of
from cellsignal import code_identity, files
from cellsignal.data.microscope import simulate
from cellsignal.decide.evaluate.compare import compare
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run.bundle import bundle
from cellsignal.run.chain import chain, rebuild, script
from cellsignal import provenance
from cellsignal.run.record import step_receipts
from cellsignal.run.chain.chain import Job, LocalExecutor
from cellsignal.run.kernels.embed import embed_run
from cellsignal.run.record.results import read_results
from cellsignal.show import report

pytestmark = pytest.mark.slow

PLATES = simulate.Preset(cell_types=("HUVEC",), classes=4, train=2, test=1, image_size=32, pixel_size=3.0, missing=0)
VALUES = {"preset": "flips", "backbone": "densenet-small", "batch_size": 16, "pretrain_epochs": 1, "epochs": 1, "parallel_notebooks": 1}
TEXT = {"header": rb"\S", "key": rb"(?<=[\"',<])[a-z_]", "number": rb"\d(?=[\d.,]*)", "text": rb"[A-Za-z]{4}", "end": rb"\S(?=\s*\Z)"}
OUTCOMES = ("made again", "refused", "no result hangs on it", "changed unseen")
IMAGES = 5  # of thousands


class InThisProcess(LocalExecutor):
    """Executes notebooks cell by cell, and takes plates from their first drawing."""

    drawn: dict[Path, str] = {}  # the statistics of each plate

    def __init__(self, shelf: Path) -> None:
        self.shelf = shelf

    def parallel_map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        for plate, folder in parts:
            place = self.shelf / f"{plate.experiment}-{plate.plate}"
            if place not in self.drawn:
                self.drawn[place] = function((plate, folder))[2]
                shutil.move(folder, place)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(place)
            yield plate.plate, folder, self.drawn[place]

    def execute(self, job: Job) -> Any:
        script.execute(job.step.notebook, dict(job.parameters))
        plt.close("all")
        target = self.run / f"notebooks/{job.step.name}.ipynb"
        files.write_bytes(target, job.step.notebook.read_bytes())
        files.write_text(target.with_suffix(".html"), "<p>A page with 1 number</p>\n")
        return step_receipts.read(self.run, job.step.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run."""
    with pytest.MonkeyPatch.context() as patch:
        matplotlib.use("Agg")
        patch.setitem(simulate.PRESETS, "flips", PLATES)
        patch.setattr(code_identity, "package_code", cache(code_identity.package_code))
        patch.setattr(provenance, "code_digest", cache(provenance.code_digest))
        patch.setattr(bundle, "_add_code", lambda found: None)
        patch.setattr(report, "write_report", lambda run, data: files.write_text(run / "report.html", "<p>A page with 1 number</p>\n"))
        patch.setenv("CELLSIGNAL_CHAIN", "1")
        root = tmp_path_factory.mktemp("flips")
        InThisProcess.drawn.clear()
        (root / "shelf").mkdir()
        run(root / "run", executor=InThisProcess(root / "shelf"))
        shutil.move(root / "run", root / "finished")
        restore(root / "finished", root / "other")
        yield root


def run(folder: Path, *, executor: LocalExecutor, start_from: str = "") -> None:
    try:
        chain.run_chain(recipe_of(VALUES), run=folder, start_from=start_from, executor=executor)
    finally:
        environment.unlock_run_folder(folder)


def restore(finished: Path, folder: Path) -> None:
    """Put a copy of a run into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished, folder, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns("*.lock"))


def places(path: Path) -> dict[str, int]:
    """Bytes of a file by the kind of their place; "anywhere" by the file's own digest."""
    content = path.read_bytes()
    draws = hashlib.sha256(content).digest()
    anywhere = {f"anywhere {number}": int.from_bytes(draws[8 * number :][:8]) % len(content) for number in range(2)}
    if path.suffix in (".json", ".csv", ".ipynb", ".html"):
        found = {kind: [match.start() for match in re.finditer(pattern, content)] for kind, pattern in TEXT.items()}
        told = {kind: starts[len(starts) // 2 if kind not in ("header", "end") else 0] for kind, starts in found.items() if starts}
        return told | (anywhere if path.suffix == ".json" else {})
    told = {"header": 3, "end": len(content) - 1, "anywhere": anywhere["anywhere 0"]}
    return told if path.suffix == ".png" else told | {"a quarter": len(content) // 4, "the middle": len(content) // 2}


def flip(folder: Path, name: str, place: int, bit: int) -> str:
    """Flip a bit of a file in a copy of a run; the SHA-256 of the file then."""
    path = folder / name
    if path.parent.is_symlink():  # to a plate on the shelf
        plate = path.parent.resolve()
        path.parent.unlink()
        shutil.copytree(plate, path.parent, copy_function=os.link)
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def results(folder: Path) -> dict[str, Any]:
    """What a run came to; of the JSON beside weights all but seconds and what hangs on them."""
    names = ["submission.csv", "submission.confidence.csv", "submission.sets.parquet", "answers.csv", "metrics.json"]
    found = [folder / name for name in names] + [*folder.glob("weights/*/*.safetensors"), *folder.glob("scores/*/*/*.parquet")]
    told: dict[str, Any] = {path.relative_to(folder).as_posix(): files.sha256(path) for path in found}
    for path in folder.glob("weights/*/*.json"):
        content = re.sub(rb'"(seconds|checksum)": [^,\n]*', b"", path.read_bytes())
        told[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return told


def made(start_from: str, folder: Path, *, executor: LocalExecutor) -> Any:
    run(folder, executor=executor, start_from=start_from)
    return results(folder)


def bundled(folder: Path, *, executor: LocalExecutor) -> Any:
    return files.sha256(bundle.bundle(folder, folder.with_name("run.zip")))


def compared(folder: Path, *, executor: LocalExecutor) -> Any:
    found, differing = read_results([str(folder), str(folder.with_name("other"))], here=folder.with_name("here"))
    return json.dumps([compare(found, draws=20), differing.to_dict()])


def embedded(folder: Path, *, executor: LocalExecutor) -> Any:
    table = folder.with_name("embedded.parquet")
    table.unlink(missing_ok=True)
    shutil.rmtree(folder.with_name("embedded.parquet.parts"), ignore_errors=True)
    embed_run(folder, table)
    return files.sha256(table)


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": partial(made, ""), "run --from weights": partial(made, "weights"), "run --from scores": partial(made, "scores"),
    "bundle": bundled, "compare": compared, "embed": embedded,
}  # fmt: skip


def outcome(command: Callable[..., Any], folder: Path, name: str, flipped: str, expected: Any, *, executor: LocalExecutor) -> str:
    """What a command made of a run with a flipped bit in the file `name`, whose SHA-256 is `flipped` now."""
    try:
        found = command(folder, executor=executor)
    except InputError as error:
        about = {"record.json": "recipe.json: no finished step of the run left it"}.get(Path(name).name, Path(name).name)
        assert (about in str(error) or Path(name).name in str(error)) and "\n" not in str(error), f"{name}: {error}"
        return "refused"
    path = folder / name
    left = path.is_file() and files.sha256(path) == flipped
    if isinstance(found, dict) and left:
        found = {**found, name: expected.get(name)} if name in expected else found
    if found != expected or (left and flipped in rebuild.recorded_digests(folder).get(name, ())):
        return "changed unseen"
    return "no result hangs on it" if left else "made again"


def flips_of(whole: Path) -> list[tuple[str, str, int]]:
    """Name of a file, kind of a place in it, and the place."""
    images = sorted(whole.glob("data/*/*/*/*.png"))
    found = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.stat().st_size and path not in set(images)]
    names = [path.relative_to(whole).as_posix() for path in (*found, *images[:: len(images) // IMAGES][:IMAGES])]
    return [(name, kind, place) for name in names for kind, place in places(whole / name).items()]


def tried(root: Path, command: Callable[..., Any], flips: Iterable[tuple[str, str, int]]) -> tuple[Counter[str], list[Any]]:
    """How often a command ended how, and what changed unseen."""
    whole, folder, executor = root / "finished", root / "run", InThisProcess(root / "shelf")
    restore(whole, folder)
    expected = command(folder, executor=executor)
    counts, unseen = Counter(), []
    for number, (name, kind, place) in enumerate(flips):
        restore(whole, folder)
        flipped = flip(folder, name, place, number % 8)
        ended = outcome(command, folder, name, flipped, expected, executor=executor)
        counts[ended] += 1
        unseen += [(name, kind, place, number % 8)] * (ended == "changed unseen")
    return counts, unseen


@pytest.mark.parametrize("title", COMMANDS)
def test_no_flipped_bit_changes_anything_unseen(title: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flips = flips_of(finished / "finished")
    counts, unseen = tried(finished, COMMANDS[title], flips)
    with capsys.disabled():
        print(f"\n{title}: {len(flips)} flips in {len({name for name, *_ in flips})} files, {', '.join(f'{counts[word]} {word}' for word in OUTCOMES)}")
    assert unseen == [] and len(flips) >= 300

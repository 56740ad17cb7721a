"""Code by what it says: comments change nothing, whole rooms count, and callables are the same in every process."""

import gc
import importlib
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from functools import partial
from importlib import import_module, invalidate_caches
from operator import itemgetter
from pathlib import Path
from threading import Lock

import numpy as np
import pytest

from cellsignal import code_identity
from cellsignal.code_identity import Notebook, changed_parts, describe, package_code, text_digest

FACTOR = 2


def test_imports_are_found_wherever_they_stand() -> None:
    code = "import a.b\nfrom c import d as e\ndef f():\n    from g.h import i\n"
    assert code_identity.imported_names(code) == {"a.b", "c", "c.d", "g.h", "g.h.i"}


@pytest.mark.parametrize(("other", "same"), [
    ("def f(x):  # doubles\n    return 2 * x", True), ("def f(x):\n    \'\'\'Doubles.\'\'\'\n    return (2\n            * x)\n", True),
    ("def f(x):\n    return 3 * x", False), ("def f(x):\n    return x * 2", False), ("def g(x):\n    return 2 * x", False),
    ("def f(x):\n    return 2.0 * x", False),
])  # fmt: skip
def test_what_code_says_counts_and_not_how_it_looks(other: str, same: bool) -> None:
    assert (text_digest(other) == text_digest("def f(x):\n    return 2 * x")) == same


def test_a_digest_is_the_same_in_every_version_of_python() -> None:
    """3.12 gave functions and classes a list of type parameters; the figure is what 3.11 says."""
    code = "class A:\n    def f(self, *, x: int = 1) -> str:\n        return f'{x!r:>{8}} {self}'\n"
    assert text_digest(code) == "6bc3b358eb586315619d25aed0f57621c50edc936438869cd8578f8a40c58f96"


def test_what_is_no_python_counts_as_it_is_written() -> None:
    assert text_digest("%matplotlib inline") != text_digest("%matplotlib  inline")


@pytest.mark.parametrize(("file", "old", "new", "rooms"), [
    ("learn/training/losses.py", ".mean() / 2", ".mean() / 3", ["learn"]),
    ("learn/training/losses.py", "# Brodt trains", "# He trains", []),
    ("learn/training/losses.py", "averaged over sites", "averaged", []),
    ("data/download/http.py", "import ", "import os as _\nimport ", ["data"]),  # which no training imports: whole rooms count
    ("errors.py", "class StepFailed", "class Late(ValueError): ...\n\n\nclass StepFailed", ["cellsignal"]),
    ("decide/assign/assign.py", "import ", "import os as _\nimport ", []),
    ("cli/main.py", "import ", "import os as _\nimport ", []),
])  # fmt: skip
def test_whole_rooms_count_and_those_below_them(tmp_path: Path, file: str, old: str, new: str, rooms: list[str]) -> None:
    package = shutil.copytree(code_identity.PACKAGE, tmp_path / "cellsignal", ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new, 1))
    assert changed_parts(package_code("learn", package=package), package_code("learn")) == rooms
    assert list(package_code("learn")) == ["", "data", "learn"]


def test_a_new_file_of_a_room_counts(tmp_path: Path) -> None:
    package = shutil.copytree(code_identity.PACKAGE, tmp_path / "cellsignal")
    (package / "learn/more").mkdir()
    (package / "learn/more/new.py").write_text("ANSWER = 42\n")
    assert changed_parts(package_code("learn", package=package), package_code("learn")) == ["learn"]


def test_templates_and_scripts_of_pages_count(tmp_path: Path) -> None:
    package = shutil.copytree(code_identity.PACKAGE, tmp_path / "cellsignal")
    for name in ("page.html.jinja", "page.js"):
        path = package / "show/explore" / name
        path.write_text(path.read_text() + "\n")
        assert changed_parts(package_code("show", package=package), package_code("show")) == ["show"]
        shutil.copy(code_identity.PACKAGE / "show/explore" / name, path)


def test_cells_count_from_the_beginning_on_and_once() -> None:
    cells = ["seed = 3", "import cellsignal; session = cellsignal.start(globals(), '1-eda')"]
    notebook = Notebook()
    notebook.begin(cells)
    assert notebook.code() == ""
    cells.append("train = 1  # sites")
    first = notebook.code()
    cells += ["train = 1", "train=1 # again"]
    assert notebook.code() == first != ""
    cells.append("train = 2")
    assert notebook.code() != first
    other = Notebook()
    other.begin(["seed = 5", "a cell more", "cellsignal.start(globals(), '1-eda')"])
    other.cells = [*other.cells, "train = 1"]
    assert other.code() == first, "parameters and what finds the package are no code of a training"


def test_modules_of_the_room_run_that_cells_import_count_as_first_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "cellsignal/run/more.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(code_identity, "PACKAGE", tmp_path / "cellsignal")

    def code(text: str, notebook: Notebook) -> str:
        module.write_text(text)
        notebook.cells = ["from cellsignal.run.more import epochs", "%time", "epochs()"]
        return notebook.code()

    first = code("def epochs():\n    return 3\n", running := Notebook())
    assert code("def epochs():\n    return 3  # three\n", Notebook()) == first
    assert code("def epochs():\n    return 4\n", Notebook()) != first == running.code()
    running.begin(["from cellsignal.run import inputs"])
    running.cells = [*running.cells, "1 + 1"]
    assert running.code() == Notebook(["1 + 1"]).code(), "what another notebook of this process imported"


def test_a_users_own_modules_that_cells_import_count_and_those_that_these_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shares").mkdir()
    files = {"pipeline.py": "from shares import small\n", "shares/__init__.py": "", "shares/small.py": "SHARE = 0.5\n", "unused.py": "SHARE = 1\n"}
    monkeypatch.syspath_prepend(tmp_path)

    def code(**changed: str) -> str:
        """Of a session of its own."""
        for name, text in {**files, **{f"{name.replace('_', '/')}.py": text for name, text in changed.items()}}.items():
            (tmp_path / name).write_text(text)
        for name in ("pipeline", "shares", "shares.small", "unused"):
            monkeypatch.delitem(sys.modules, name, raising=False)
            importlib.import_module(name)
        notebook = Notebook(["import pipeline, pathlib, numpy", "%time"])
        assert notebook.code() and {path.parent for path in notebook.user_modules()} == {tmp_path, tmp_path / "shares"}
        return notebook.code()

    first = code()
    assert code(shares_small="SHARE = 0.5  # of the pictures\n", unused="SHARE = 2\n") == first
    assert len({first, code(shares_small="SHARE = 0.6\n"), code(pipeline="from shares import small\nP = 1\n")}) == 3


class Noise:
    """A user's own transform, with a cache that is nobody's business."""

    def __init__(self, sigma: float) -> None:
        self.sigma, self._cache, self.folder = sigma, object(), Path("/somewhere")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image + self.sigma * FACTOR


def test_callables_are_told_by_code_constants_and_closures() -> None:
    def scaled(by: float) -> object:
        return lambda height, width: [height * by]

    assert describe(scaled(2.0)) == describe(scaled(2.0)) != describe(scaled(3.0))
    assert describe(Noise(0.1)) == describe(Noise(0.1)) != describe(Noise(0.2))
    assert describe(partial(max, 1)) != describe(partial(max, 2)) != describe(partial(min, 2))
    assert describe(np.add) != describe(np.multiply) and describe(np.arange(3)) != describe(np.arange(4))
    assert describe({"a": {3, 1}, "b": (1, [None, 1.5])}) == [["a", [1, 3]], ["b", [1, [None, "1.5"]]]]
    assert "0x" not in str(describe(Noise(0.1)))


@dataclass(slots=True)
class Blur:
    """A user's own transform without a __dict__."""

    sigma: float


@pytest.mark.parametrize(("one", "other"), [
    (Blur(0.1), Blur(0.2)), (range(3), range(4)), (slice(1), slice(2)), (Fraction(1, 2), Fraction(1, 3)), (re.compile("a"), re.compile("b")),
    (itemgetter(1), itemgetter(2)), (deque([1]), deque([2])), (timedelta(1), timedelta(2)),
])  # fmt: skip
def test_what_an_object_without_attributes_holds_belongs_to_it(one: object, other: object) -> None:
    assert describe(one) == describe(deepcopy(one)) != describe(other)
    assert describe([Path("/here"), Lock()]) == describe([Path("/there"), Lock()])


def test_a_module_of_the_user_belongs_to_a_callable_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)

    def described(blur: str, sigma: int) -> object:
        texts = {"mine_sigma": f"SIGMA = {sigma}\n", "mine_blur": f"import math\nimport mine_sigma\n\n\ndef blur(image):\n    {blur}\n",
                 "mine_augment": "import mine_blur\n\n\ndef augment(height, width):\n    return [mine_blur.blur]\n"}
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        invalidate_caches()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        try:
            return describe(import_module("mine_augment").augment)
        finally:
            for name in texts:
                del sys.modules[name]

    first = described("return image * mine_sigma.SIGMA", 2)
    assert described("return image * mine_sigma.SIGMA  # twice", 2) == first
    assert described("return image / mine_sigma.SIGMA", 2) != first != described("return image * mine_sigma.SIGMA", 3)


def test_globals_that_a_callable_reads_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(Noise(0.1))
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert describe(Noise(0.1)) != before


def test_a_callable_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import numpy as np\nNAMES = {'a', 'b', 'c'}\nclass T:\n    def __call__(self, x):\n        return x in {'p', 'q', 'r'}\n"
                                      "def f(h, w):\n    return [T(), np.add, NAMES]\n")
    program = "import json, mine; from cellsignal.code_identity import describe; print(json.dumps(describe([mine.f, mine.T()])))"
    told = {subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(paths)},
                           capture_output=True, text=True, check=True).stdout
            for seed, paths in (("1", code_identity.PACKAGE.parent), ("2", code_identity.PACKAGE.parent))}
    assert len(told) == 1 and "T" in told.pop()


def test_many_threads_read_code_at_once() -> None:
    """CPython 3.11 raises SystemError where another thread builds a tree while the garbage of this one is collected."""
    code = (code_identity.PACKAGE / "learn/training/fit.py").read_text()

    def yield_to_others(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(yield_to_others)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(code_identity.imported_names, [code] * 8))
    finally:
        gc.callbacks.remove(yield_to_others)
    assert all(names == found[0] for names in found)

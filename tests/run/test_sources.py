"""Code that a step uses: found by reading, through every import."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

from cellsignal.run import sources


def test_imports_are_found_wherever_they_stand() -> None:
    code = "import a.b\nfrom c import d as e\ndef f():\n    from g.h import i\n"
    assert sources.imported(code) == {"a.b", "c", "c.d", "g.h", "g.h.i"}


def test_the_closure_goes_through_other_files_and_stops_at_foreign_code() -> None:
    found = sources.closure("import numpy\nfrom cellsignal.run import inputs\n")
    assert {"run/inputs.py", "run/paths.py", "data/wells.py", "data/simulate.py", "errors.py", "files.py"} <= set(found)
    assert not [name for name in found if name.startswith(("learn/", "show/", "run/chain"))]


def test_objects_and_packages_are_not_files() -> None:
    assert sources.closure("from cellsignal.errors import InputError\nimport cellsignal\n").keys() == {"errors.py"}


def test_many_threads_read_code_at_once() -> None:
    """CPython 3.11 raises SystemError where another thread builds a tree while the garbage of this one is collected."""
    code = (sources.PACKAGE / "learn/train.py").read_text()

    def yield_to_others(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(yield_to_others)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(sources.imported, [code] * 8))
    finally:
        gc.callbacks.remove(yield_to_others)
    assert all(names == found[0] for names in found)

"""Code that a step uses: found by reading, through every import."""

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

"""A finished run as one archive that makes its submission again: code, recipe, weights, scores, and no pixel."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

import cellsignal
from cellsignal import code_identity, files, settings, shapes
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, recipe
from cellsignal.run.bundle import archive_texts, entry_points, requirements
from cellsignal.run.bundle.archive_texts import Facts
from cellsignal.run.chain import plans, rebuild, steps
from cellsignal.run.chain.steps import Step
from cellsignal.run.record import manifest, provenance

SUMS = "SHA256SUMS"
SCRIPTS = {
    "prepare_data": "Have the data in place and look them through.",
    "train": "Train everything from scratch, then predict.",
    "predict": "Predict with the stored weights; with `--from scores`, decide on the stored scores.",
}
NOT_TAKEN = ("seconds.json", "run.json", "recipe.json", rebuild.NOTE)  # of a run folder's top: told otherwise, or of no use
AGAIN = "run the command that made it again"
TO_THE_END = "run it to the end, with the command that began it"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the only time in an archive: the same files are the same bytes
_CHUNK = 1 << 20


@dataclass
class _Contents:
    """Files by their name in the archive: texts, and paths with the SHA-256 that they must have."""

    texts: dict[str, bytes] = field(default_factory=dict)
    paths: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted([*self.texts, *self.paths])

    def sums(self) -> str:
        known = {name: hashlib.sha256(text).hexdigest() for name, text in self.texts.items()}
        known |= {name: digest for name, (_, digest) in self.paths.items()}
        return "".join(f"{known[name]}  {name}\n" for name in sorted(known))


def bundle(run: Path, out: Path | None = None) -> Path:
    """Write the archive of a finished run, `out` or else `<run>.zip`, and give its path; the same run gives the same bytes.

    Raises InputError when the run is not whole: a step that did not end, a file that is not as its step left it.
    """
    run = environment.default_run(str(run))
    out = files.output_file(out or run.with_name(f"{run.name}.zip"))
    made = _read_recipe(run)
    with files.locked(environment.locks(run) / environment.CHAIN_LOCK, busy_message="a chain works in this folder"):
        plan = _plan(made["parameters"])
        contents = _contents(run, plan, made)
        _write(out, contents)
    if made.get("code") not in ("", None, provenance.code_digest()):
        print("note: the package is another one than that which made the run; the archive holds the one of now")
    return out


def _read_recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.json"
    if not path.is_file():
        raise InputError("no finished run", where=run, cure="name the folder that `cellsignal run` wrote, such as runs/demo")
    record = manifest.place(run, steps.record().name)
    if not record.is_file():
        raise InputError("the run is not whole", where=run, cure=TO_THE_END)
    Receipt.read(record, cure=AGAIN).check_outputs(run, made_by="the run", cure=AGAIN)
    return files.read_json(path, shapes.Description, fault="not the record of a run", cure="run the same command again, which writes it")


def _plan(parameters: Mapping[str, Any]) -> list[Step]:
    """The steps of the run that make something."""
    gone = sorted(set(settings.flat(parameters)) - set(settings.keys(recipe.Recipe)))
    if gone:
        what = f"this package knows no {', '.join(gone)}, which the run was given"
        raise InputError(what, where="recipe.json", cure="bundle the run with the package that made it")
    checked = recipe.check(parameters, where="recipe.json")
    return [step for step in plans.plan(checked, checked.wells.cell_types, kernels=environment.kernels()) if step.makes]


def _contents(run: Path, plan: list[Step], made: Mapping[str, Any]) -> _Contents:
    """All that goes into the archive."""
    found = _Contents()
    parameters, places = _without_paths(made["parameters"]), dict(entry_points.PLACES)
    told = _json({**made, "parameters": parameters})
    record = replace(Receipt.read(manifest.place(run, steps.record().name)), outputs={"recipe.json": hashlib.sha256(told).hexdigest()})
    for step in plan:
        _add_step(found, run, step)
    begun = parameters.get("network", {}).get("pretrained", "")
    if begun.endswith(".safetensors"):
        places[entry_points.PRETRAINED] = _add_pretrained(found, Path(begun))
        parameters["network"] = {name: value for name, value in parameters["network"].items() if name != "pretrained"}
    _add_code(found)
    found.texts |= {
        entry_points.PARAMS: _params(run.name, parameters),
        entry_points.SETTINGS: _json(places),
        "run/recipe.json": told,
        f"run/{record.path.relative_to(run).as_posix()}": record.content,
        "requirements.txt": _requirements(made, found),
        "entry_points.md": archive_texts.entry_points().encode(),
        **{f"{name}.py": _script(name, what) for name, what in SCRIPTS.items()},
    }
    names = [*found.names, "README.md", "directory_structure.txt", SUMS]
    found.texts["directory_structure.txt"] = archive_texts.structure(names).encode()
    found.texts["README.md"] = archive_texts.readme(_facts(run, plan, made, parameters, found, names)).encode()
    found.texts[SUMS] = found.sums().encode()
    return found


def _without_paths(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without the places of the machine that ran them: SETTINGS.json names those."""
    return {name: value for name, value in parameters.items() if name not in ("run", "data")}


def _add_step(found: _Contents, run: Path, step: Step) -> None:
    """What a step made, after a look at each file, and its own word on it."""
    path = manifest.place(run, step.name)
    receipt = Receipt.read(path, steps.Details, cure="delete it, and run the command that made it again") if path.is_file() else None
    if receipt is None or not receipt.complete or not set(step.outputs) <= set(receipt.outputs):
        raise InputError(f"{step.name} is not whole", where=run, cure=TO_THE_END)
    receipt.check_outputs(run, made_by=step.name, cure=AGAIN)
    kept = [name for name in steps.outputs(run, step) if (steps.stage(name) or "/" not in name) and name not in NOT_TAKEN]
    outputs = {name: receipt.outputs[name] for name in sorted({*kept} & {*receipt.outputs})}
    found.paths |= {f"run/{name}": (run / name, digest) for name, digest in outputs.items()}
    seconds = {"seconds": receipt.details["seconds"]}  # the rest tells of this machine
    found.texts[f"run/{path.relative_to(run).as_posix()}"] = replace(receipt, outputs=outputs, details=seconds).content


def _add_pretrained(found: _Contents, path: Path) -> str:
    """The file of weights that training began with; its name in the archive."""
    if not path.is_file():
        raise InputError("no such file, and training from scratch begins with it", where=path, cure="put it back")
    name = f"pretrained/{path.name}"
    found.paths[name] = path, files.sha256(path)
    return name


def _add_code(found: _Contents) -> None:
    """The package, the notebooks, and the commit they are of."""
    kernels = environment.kernels()
    for path in (*_sources(environment.PACKAGE, "*.py"), *_sources(kernels, "*.ipynb"), *_sources(kernels, "*.json")):
        root = environment.PACKAGE if path.is_relative_to(environment.PACKAGE) else kernels
        found.paths[f"{root.name}/{path.relative_to(root).as_posix()}"] = path, files.sha256(path)
    built = {"version": cellsignal.__version__, "commit": provenance.commit(), "code": provenance.code_digest()}
    found.texts[f"cellsignal/{provenance.BUILD}"] = _json(built)
    root = environment.repository()
    if root is not None and (root / "LICENSE").is_file():
        found.paths["LICENSE"] = root / "LICENSE", files.sha256(root / "LICENSE")


def _sources(root: Path, pattern: str) -> Iterator[Path]:
    """Files below `root` that are no leftovers."""
    for path in sorted(root.rglob(pattern)):
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts):
            yield path


def _requirements(made: Mapping[str, Any], found: _Contents) -> bytes:
    code = [path.read_text(encoding="utf-8") for name, (path, _) in found.paths.items() if name.endswith(".py")]
    imported = {name for text in code for name in code_identity.imported(text)}
    names = requirements.closure(requirements.used(imported))
    head = f"# Python {made.get('python', '')}. Exact versions of all libraries that made the run, and of what they need."
    return "\n".join([head, *requirements.exact(names, recorded=made.get("libraries", {})), ""]).encode()


def _params(name: str, parameters: Mapping[str, Any]) -> bytes:
    head = f"# Every parameter of the run {name}; its paths are in {entry_points.SETTINGS}.\n"
    return (head + yaml.safe_dump(dict(parameters), sort_keys=False, allow_unicode=True)).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _script(name: str, what: str) -> bytes:
    lines = [f'"""{what}"""', "", "from cellsignal.cli.archive import entry", "", 'if __name__ == "__main__":', f'    entry(__file__, "{name}")', ""]
    return "\n".join(lines).encode()


def _facts(
    run: Path, plan: Iterable[Step], made: Mapping[str, Any], parameters: Mapping[str, Any], found: _Contents, names: list[str]
) -> Facts:
    stages = {stage: _seconds(run, [step for step in plan if _first(step, stage)]) for stage in ("weights", "scores")}
    trained = [receipt.details for step in plan if "weights" in step.makes and (receipt := manifest.read(run, step.name))]
    hardware = next((each["hardware"] for each in trained if each.get("hardware")), made.get("hardware", {}))
    _, submission = found.paths["run/submission.csv"]
    return Facts(run.name, parameters, made, hardware, stages, submission, names)


def _first(step: Step, stage: str) -> bool:
    """Whether a step's time counts for a stage: it makes nothing before it."""
    return step.makes[0] == stage


def _seconds(run: Path, plan: Iterable[Step]) -> float | None:
    """What steps took together; None when that is not on record, because they took up stored scores or there are none."""
    found = [receipt for step in plan if (receipt := steps.read(run, step))]
    stored = any(receipt.identity.get("parameters", {}).get("stored") for receipt in found)
    return None if stored or not found else sum(receipt.details["seconds"] for receipt in found)


def _write(out: Path, contents: _Contents) -> None:
    """Write the archive; nothing is compressed, because weights and scores hardly would be and every machine writes the same."""
    with files.atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for name in contents.names:
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            if name in contents.texts:
                target.writestr(entry, contents.texts[name])
            else:
                _copy(target, entry, *contents.paths[name])


def _copy(target: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, digest: str) -> None:
    """Copy a file into the archive, in parts, and see that it did not change meanwhile."""
    entry.file_size = path.stat().st_size
    copied = hashlib.sha256()
    with open(path, "rb") as source, target.open(entry, "w") as sink:
        for block in iter(lambda: source.read(_CHUNK), b""):
            copied.update(block)
            sink.write(block)
    if copied.hexdigest() != digest:
        raise InputError("changed while it was copied", where=path, cure="let what works in this folder end first")

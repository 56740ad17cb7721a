"""A finished run as one archive with which its submission can be made again: code, recipe, weights, scores, and no pixel."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import cellsignal
from cellsignal import code_identity, files, json_schemas, provenance, settings
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.run import environment, recipe
from cellsignal.run.bundle import archive_texts, entry_points
from cellsignal.run.bundle.archive_texts import RunFacts
from cellsignal.run.chain import plans, rebuild, steps
from cellsignal.run.chain.steps import Step
from cellsignal.run.record import step_receipts

# The exact versions in an archive's requirements.txt: of all that the package and its notebooks import, and of their dependencies.

PROGRAMS = ("ipykernel", "nbconvert", "papermill")  # run as programs, and imported nowhere


def distributions(imports: Iterable[str]) -> list[str]:
    """The installed distributions that provide the dotted names `imports`, and those that run notebooks."""
    owners = metadata.packages_distributions()
    imported = {owner for name in imports for owner in owners.get(name.split(".")[0], ())}
    return sorted({_canonical(name) for name in (*imported, *PROGRAMS) if _is_installed(name)} - {"cellsignal"})


def with_dependencies(names: Iterable[str]) -> list[str]:
    """Canonical names of the installed distributions `names` and of all their dependencies on this machine, sorted."""
    visited: set[tuple[str, str]] = set()
    waiting = [(_canonical(name), "") for name in names]
    while waiting:
        distribution, extra = waiting.pop()
        if (distribution, extra) not in visited and _is_installed(distribution):
            visited.add((distribution, extra))
            waiting += _dependencies(distribution, extra)
    return sorted({name for name, _ in visited})


def version_lines(names: Iterable[str], *, recorded: Mapping[str, str]) -> list[str]:
    """One line `name==version` each, with the version in `recorded` if there is one, else the one installed here.

    The build after a plus sign, such as +cpu, is in a comment: package indexes have the version without it.
    """
    recorded_versions = {_canonical(name): version for name, version in recorded.items() if version}
    versions = {name: recorded_versions.get(name) or metadata.version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}{f'  # {version}' * ('+' in version)}" for name, version in versions.items()]


def _dependencies(name: str, extra: str) -> list[tuple[str, str]]:
    """Names and extras of the distributions that a distribution requires on this machine."""
    from packaging.requirements import Requirement  # accelerate and Matplotlib install it

    requirements = [Requirement(line) for line in metadata.requires(name) or ()]
    requirements = [each for each in requirements if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [(_canonical(each.name), required_extra) for each in requirements for required_extra in ("", *each.extras)]


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


CHECKSUMS = "SHA256SUMS"
SCRIPTS = {
    "prepare_data": "Provide the data and check them.",
    "train": "Train everything from scratch, then predict.",
    "predict": "Predict with the stored weights; with `--from scores`, decide on the stored scores.",
}
LEFT_OUT = ("seconds.json", "run.json", "recipe.json", rebuild.REBUILD_FILE)  # files of a run folder that are written anew, or of no use
RERUN_COMMAND = "run the command that made it again"
RUN_TO_THE_END = "run it to the end, with the command that began it"
_ENTRY_TIME = (1980, 1, 1, 0, 0, 0)  # of all files in an archive, so that the same files give the same bytes
_CHUNK_BYTES = 1 << 20


@dataclass
class _ArchiveContents:
    """Files by their name in the archive: texts, and paths with the SHA-256 that they must have."""

    texts: dict[str, bytes] = field(default_factory=dict)
    paths: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted([*self.texts, *self.paths])

    def checksums(self) -> str:
        digests = {name: hashlib.sha256(text).hexdigest() for name, text in self.texts.items()}
        digests |= {name: digest for name, (_, digest) in self.paths.items()}
        return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def bundle(run: Path, out: Path | None = None) -> Path:
    """Write the archive of a finished run, `out` or else `<run>.zip`, and return its path; the same run gives the same bytes.

    Raises InputError when the run is not complete: a step that did not end, a file that is not as its step left it.
    """
    run = environment.run_folder(str(run))
    out = files.output_file(out or run.with_name(f"{run.name}.zip"), kind="archive of a run", is_of_kind=_is_archive)
    made = _read_recipe(run)
    with files.locked(environment.locks_folder(run) / environment.CHAIN_LOCK, busy_message="a chain works in this folder"):
        checked = _recipe(made["parameters"])
        plan = [step for step in plans.plan(checked, checked.wells.cell_types, kernels=environment.kernels_folder()) if step.stages]
        _check_receipts(run, plan, checked.model_dump())
        contents = _contents(run, plan, made)
        _write(out, contents)
    if made.get("code") not in ("", None, provenance.code_digest()):
        print("note: the run was made by another version of the package; the archive holds the present one")
    return out


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {"entry_points.md", entry_points.SETTINGS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_recipe(run: Path) -> dict[str, Any]:
    path = run / "recipe.json"
    if not path.is_file():
        raise InputError("no finished run", where=run, cure="name the folder that `cellsignal run` wrote, such as runs/demo")
    record = step_receipts.receipt_path(run, steps.record_step().name)
    if not record.is_file():
        raise InputError("the run is not complete", where=run, cure=RUN_TO_THE_END)
    Receipt.read(record, cure=RERUN_COMMAND).check_outputs(run, made_by="the run", cure=RERUN_COMMAND)
    return files.read_json(path, json_schemas.Description, fault="not the record of a run", cure="run the same command again, which writes it")


def _recipe(parameters: Mapping[str, Any]) -> recipe.Recipe:
    """The recipe of the run."""
    unknown = sorted(set(settings.flatten(parameters)) - set(settings.keys(recipe.Recipe)))
    if unknown:
        what = f"this package knows no {', '.join(unknown)}, which the run was given"
        raise InputError(what, where="recipe.json", cure="bundle the run with the package that made it")
    return recipe.check(parameters, where="recipe.json")


def _check_receipts(run: Path, plan: Iterable[Step], values: Mapping[str, Any]) -> None:
    """InputError for a step that was made with other parameters than recipe.json has, or from other files than its run holds now."""
    receipts = {step.name: receipt for step in plan if (receipt := steps.read_receipt(run, step))}
    for step in (step for step in plan if step.name in receipts):  # `_add_step` refuses the others
        receipt = receipts[step.name]
        for key, (recorded, asked) in steps.other_parameters(step, receipt, values).items():
            raise InputError(f"{step.name} was made with {key} {recorded!r}, and recipe.json says {asked!r}", where=run, cure=RUN_TO_THE_END)
        for need, digests in receipt.identity.get("inputs", {}).items():
            known = digests.values() if isinstance(digests, dict) else digests  # a list in older receipts
            if need in receipts and not set(steps.product_digests(receipts[need]).values()) <= set(known):
                raise InputError(f"{step.name} was made from other files than {need} has left since", where=run, cure=RUN_TO_THE_END)


def _contents(run: Path, plan: list[Step], made: Mapping[str, Any]) -> _ArchiveContents:
    """The files of the archive."""
    contents = _ArchiveContents()
    # SETTINGS.json has the paths.
    parameters = {name: value for name, value in made["parameters"].items() if name not in ("run", "data")}
    paths = dict(entry_points.PATHS)
    description = _json({**made, "parameters": parameters})
    record = replace(Receipt.read(step_receipts.receipt_path(run, steps.record_step().name)), outputs={"recipe.json": hashlib.sha256(description).hexdigest()})
    for step in plan:
        _add_step(contents, run, step)
    pretrained = parameters.get("network", {}).get("pretrained", "")
    if pretrained.endswith(".safetensors"):
        paths[entry_points.PRETRAINED] = _add_pretrained(contents, Path(pretrained))
        parameters["network"] = {name: value for name, value in parameters["network"].items() if name != "pretrained"}
    _add_code(contents)
    contents.texts |= {
        entry_points.PARAMS: _params(run.name, parameters),
        entry_points.SETTINGS: _json(paths),
        "run/recipe.json": description,
        f"run/{record.path.relative_to(run).as_posix()}": record.content,
        "requirements.txt": _requirements(made, contents),
        "entry_points.md": archive_texts.entry_points().encode(),
        **{f"{name}.py": _script(name, what) for name, what in SCRIPTS.items()},
    }
    names = [*contents.names, "README.md", "directory_structure.txt", CHECKSUMS]
    contents.texts["directory_structure.txt"] = archive_texts.structure(names).encode()
    contents.texts["README.md"] = archive_texts.readme(_facts(run, plan, made, parameters, contents, names)).encode()
    contents.texts[CHECKSUMS] = contents.checksums().encode()
    return contents


def _add_step(contents: _ArchiveContents, run: Path, step: Step) -> None:
    """Add the files that a step made, after a check of each, and its receipt."""
    path = step_receipts.receipt_path(run, step.name)
    receipt = Receipt.read(path, steps.StepDetails, cure="delete it, and run the command that made it again") if path.is_file() else None
    if receipt is None or not receipt.complete or not set(step.outputs) <= set(receipt.outputs):
        raise InputError(f"{step.name} is not complete", where=run, cure=RUN_TO_THE_END)
    receipt.check_outputs(run, made_by=step.name, cure=RERUN_COMMAND)
    packed = [name for name in steps.output_names(run, step) if (steps.stage(name) or "/" not in name) and name not in LEFT_OUT]
    outputs = {name: receipt.outputs[name] for name in sorted({*packed} & {*receipt.outputs})}
    contents.paths |= {f"run/{name}": (run / name, digest) for name, digest in outputs.items()}
    seconds = {"seconds": receipt.details["seconds"]}  # the other details are of this machine
    contents.texts[f"run/{path.relative_to(run).as_posix()}"] = replace(receipt, outputs=outputs, details=seconds).content


def _add_pretrained(contents: _ArchiveContents, path: Path) -> str:
    """Add the file of weights from which the training started; returns its name in the archive."""
    if not path.is_file():
        raise InputError("no such file, and training from scratch begins with it", where=path, cure="put it back")
    name = f"pretrained/{path.name}"
    contents.paths[name] = path, files.sha256(path)
    return name


def _add_code(contents: _ArchiveContents) -> None:
    """Add the package, the notebooks, and their commit."""
    kernels = environment.kernels_folder()
    package = (path for pattern in code_identity.CODE_FILES for path in _sources(environment.PACKAGE, pattern))
    for path in (*package, *_sources(kernels, "*.ipynb"), *_sources(kernels, "*.json")):
        root = environment.PACKAGE if path.is_relative_to(environment.PACKAGE) else kernels
        contents.paths[f"{root.name}/{path.relative_to(root).as_posix()}"] = path, files.sha256(path)
    built = {"version": cellsignal.__version__, "commit": provenance.commit(), "code": provenance.code_digest()}
    contents.texts[f"cellsignal/{provenance.BUILD_FILE}"] = _json(built)
    root = environment.repository()
    if root is not None and (root / "LICENSE").is_file():
        contents.paths["LICENSE"] = root / "LICENSE", files.sha256(root / "LICENSE")


def _sources(root: Path, pattern: str) -> Iterator[Path]:
    """Files below `root` that are neither hidden nor in a cache."""
    for path in sorted(root.rglob(pattern)):
        if not any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts):
            yield path


def _requirements(made: Mapping[str, Any], contents: _ArchiveContents) -> bytes:
    code = [path.read_text(encoding="utf-8") for name, (path, _) in contents.paths.items() if name.endswith(".py")]
    imported = {name for text in code for name in code_identity.imported_names(text)}
    names = with_dependencies(distributions(imported))
    head = f"# Python {made.get('python', '')}. Exact versions of all libraries that made the run, and of what they need."
    return "\n".join([head, *version_lines(names, recorded=made.get("libraries", {})), ""]).encode()


def _params(name: str, parameters: Mapping[str, Any]) -> bytes:
    head = f"# Every parameter of the run {name}; its paths are in {entry_points.SETTINGS}.\n"
    return (head + yaml.safe_dump(dict(parameters), sort_keys=False, allow_unicode=True)).encode()


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _script(name: str, what: str) -> bytes:
    lines = [f'"""{what}"""', "", "from cellsignal.cli.archive import entry", "", 'if __name__ == "__main__":', f'    entry(__file__, "{name}")', ""]
    return "\n".join(lines).encode()


def _facts(
    run: Path, plan: Iterable[Step], made: Mapping[str, Any], parameters: Mapping[str, Any], contents: _ArchiveContents, names: list[str]
) -> RunFacts:
    # The seconds of a step count for the first stage that it makes.
    stages = {stage: _seconds(run, [step for step in plan if step.stages[0] == stage]) for stage in ("weights", "scores")}
    trained = [receipt.details for step in plan if "weights" in step.stages and (receipt := step_receipts.read(run, step.name))]
    hardware = next((details["hardware"] for details in trained if details.get("hardware")), made.get("hardware", {}))
    _, submission = contents.paths["run/submission.csv"]
    return RunFacts(run.name, parameters, made, hardware, stages, submission, names)


def _seconds(run: Path, plan: Iterable[Step]) -> float | None:
    """The seconds of all steps; None when that is not known, because they used stored scores or there are none."""
    receipts = [receipt for step in plan if (receipt := steps.read_receipt(run, step))]
    stored = any(receipt.identity.get("parameters", {}).get("start_from") for receipt in receipts)
    return None if stored or not receipts else sum(receipt.details["seconds"] for receipt in receipts)


def _write(out: Path, contents: _ArchiveContents) -> None:
    """Write the archive; nothing is compressed, because weights and scores would hardly get smaller, and so every machine writes the same bytes."""
    with files.atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as target:
        for name in contents.names:
            entry = zipfile.ZipInfo(name, _ENTRY_TIME)
            entry.external_attr, entry.create_system = 0o644 << 16, 3
            if name in contents.texts:
                target.writestr(entry, contents.texts[name])
            else:
                _copy(target, entry, *contents.paths[name])


def _copy(target: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, digest: str) -> None:
    """Copy a file into the archive, in parts; InputError when it changed meanwhile."""
    entry.file_size = path.stat().st_size
    copied = hashlib.sha256()
    with open(path, "rb") as source, target.open(entry, "w") as sink:
        for block in iter(lambda: source.read(_CHUNK_BYTES), b""):
            copied.update(block)
            sink.write(block)
    if copied.hexdigest() != digest:
        raise InputError("changed while it was copied", where=path, cure="let what works in this folder end first")

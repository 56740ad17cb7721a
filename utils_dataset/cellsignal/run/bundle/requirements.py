"""The exact versions in an archive's requirements.txt: of all that the package and its notebooks import, and of their dependencies."""

from collections.abc import Iterable, Mapping
from importlib import metadata

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

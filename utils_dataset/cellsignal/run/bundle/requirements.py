"""The exact versions that an archive asks for: of all that the package and its notebooks import, and of what these need."""

from collections.abc import Iterable, Mapping
from importlib import metadata

LAUNCHED = ("ipykernel", "nbconvert", "papermill")  # started as programs, and imported nowhere


def used(names: Iterable[str]) -> list[str]:
    """The installed distributions behind the dotted `names` of imports, and those that run notebooks."""
    owners = metadata.packages_distributions()
    behind = {owner for name in names for owner in owners.get(name.split(".")[0], ())}
    return sorted({_canonical(name) for name in (*behind, *LAUNCHED) if _installed(name)} - {"cellsignal"})


def closure(names: Iterable[str]) -> list[str]:
    """Canonical names of the installed distributions `names` and of all that they need here, sorted."""
    found: set[tuple[str, str]] = set()
    left = [(_canonical(name), "") for name in names]
    while left:
        wanted = left.pop()
        if wanted not in found and _installed(wanted[0]):
            found.add(wanted)
            left += _needs(*wanted)
    return sorted({name for name, _ in found})


def exact(names: Iterable[str], *, recorded: Mapping[str, str]) -> list[str]:
    """One line `name==version` each; a version in `recorded` goes before the one installed here.

    The build after a plus sign, such as +cpu, is told in a comment: package indexes know the version without it.
    """
    known = {_canonical(name): version for name, version in recorded.items() if version}
    versions = {name: known.get(name) or metadata.version(name) for name in names}
    return [f"{name}=={version.split('+')[0]}{f'  # {version}' * ('+' in version)}" for name, version in versions.items()]


def _needs(name: str, extra: str) -> list[tuple[str, str]]:
    """Names and extras of what a distribution asks for on this machine."""
    from packaging.requirements import Requirement  # accelerate and Matplotlib bring it

    asked = [Requirement(line) for line in metadata.requires(name) or ()]
    asked = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": extra})]
    return [(_canonical(each.name), more) for each in asked for more in ("", *each.extras)]


def _canonical(name: str) -> str:
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True

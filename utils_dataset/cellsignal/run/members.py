"""The networks of a run by name: `model`, further members of its ensemble, and `plain` for comparison."""

from collections.abc import Sequence


def members(backbone: str, ensemble: Sequence[str] = ()) -> dict[str, str]:
    """The backbone of each network whose scores are averaged, by name: `model`, `model-2`, `model-3`, …"""
    return {"model": backbone, **{f"model-{number}": name for number, name in enumerate(ensemble, start=2)}}


def seed_of(seed: int, network: str) -> int:
    """The seed of a network's weights and batches: each member of an ensemble has the next one."""
    return seed + _number(network) - 1


def pretrained_name(network: str) -> str:
    """The name of the weights that a network begins with: `plain` takes those of `model`, members have their own."""
    return "pretrain" if _number(network) == 1 else f"pretrain-{_number(network)}"


def last_name(network: str, *, final: bool) -> str:
    """The name of a network's last weights; `final` says that it was trained on, on all labelled wells."""
    return (prefix(network) + "final") if final else network


def prefix(network: str) -> str:
    """What stands before the names of a network's further phases; those of `model` are named without it."""
    return "" if network == "model" else f"{network}-"


def _number(network: str) -> int:
    return int(network.removeprefix("model-")) if network.startswith("model-") else 1

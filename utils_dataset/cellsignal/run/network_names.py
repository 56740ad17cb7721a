"""The names of a run's networks and of their weights: `model`, further members of its ensemble, and `plain` for comparison."""

from collections.abc import Sequence


def ensemble_members(backbone: str, ensemble: Sequence[str] = ()) -> dict[str, str]:
    """The backbone of each network whose scores are averaged, by name: `model`, `model-2`, `model-3`, …"""
    return {"model": backbone, **{f"model-{number}": name for number, name in enumerate(ensemble, start=2)}}


def network_seed(seed: int, network: str) -> int:
    """The seed of a network's weights and batches: each member of an ensemble has the next one."""
    return seed + _member_number(network) - 1


def pretrained_weights_name(network: str) -> str:
    """The name of the weights from the controls with which a network starts: `plain` takes those of `model`, members have their own."""
    return "pretrain" if _member_number(network) == 1 else f"pretrain-{_member_number(network)}"


def last_weights_name(network: str, *, final: bool) -> str:
    """The name of a network's last weights; `final`: after further training on all labelled wells."""
    return f"{phase_prefix(network)}final" if final else network


def phase_prefix(network: str) -> str:
    """The prefix of the names of a network's other phases; empty for `model`."""
    return "" if network == "model" else f"{network}-"


def _member_number(network: str) -> int:
    return int(network.removeprefix("model-")) if network.startswith("model-") else 1

"""Made-up results of a run."""

import pytest


def epochs(*, pretrain: int, train: int) -> list[dict]:
    """Rows as training gives them; the first epoch was not scored on held-out wells."""
    steps = [("pretrain", n) for n in range(pretrain)] + [("train", n) for n in range(train)]
    return [
        {"phase": phase, "epoch": n + 1, "loss": 1 / (n + 1), "accuracy": 0.5, "held_out_accuracy": 0.4 if n else None}
        for phase, n in steps
    ]


def rung(name: str, kind: str, accuracy: float, *, split: str = "test") -> dict:
    parts = {"by_cell_type": {"HUVEC": accuracy, "RPE": accuracy}, "by_experiment": {"HUVEC-17": accuracy}}
    return {"rung": name, "kind": kind, "split": split, "accuracy": accuracy, **parts}


@pytest.fixture
def history() -> list[dict]:
    """Three epochs on the controls, two on the treatments."""
    return epochs(pretrain=3, train=2)


@pytest.fixture
def rungs() -> list[dict]:
    """A ladder on the test wells."""
    return [rung("running", "raw", 0.1), rung("adapted", "raw", 0.6), rung("exact", "assigned", 0.8)]


@pytest.fixture
def held_out() -> list[dict]:
    """A ladder of one rung on the held-out experiments."""
    return [rung("running", "raw", 0.2, split="held_out")]

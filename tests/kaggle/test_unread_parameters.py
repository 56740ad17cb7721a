"""A session that its time ended has not read every parameter, and is still the work that was pushed."""

from pathlib import Path

import pytest

from cellsignal.kaggle import watch
from cellsignal.kaggle.push_state import PushedKernel
from cellsignal.receipts import Receipt


@pytest.mark.parametrize(("complete", "read", "difference"), [
    (False, {"epochs": 3}, ""),
    (False, {"epochs": 4}, "its training.epochs is 4 and not 3"),
    (True, {"epochs": 3}, "its training.final_epochs is None and not 2"),
    (True, {"epochs": 3, "final_epochs": 2}, ""),
])
def test_what_no_cell_has_read_yet_is_no_difference(complete: bool, read: dict[str, int], difference: str) -> None:
    pushed = PushedKernel("", "alice/one", True, "runs/one", {"training.epochs": 3, "training.final_epochs": 2}, "code")
    receipt = Receipt(Path("3.json"), complete=complete, details={"parameters": {"training": read}, "code": "code", "written": 1.0})
    assert watch.output_differs(receipt, "3-train-cell-type@RPE", pushed) == difference

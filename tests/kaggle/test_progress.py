"""How far a step came, from session to session."""

import pytest

from cellsignal.kaggle.push_state import advanced, furthest


@pytest.mark.parametrize(
    "told, further",
    [
        (["whole, epoch 9 of 30", "whole, epoch 10 of 30"], True),  # as numbers
        (["whole, epoch 9 of 30", "whole, epoch 9 of 30"], False),
        (["whole, epoch 37 of 60", "whole, epoch 38 of 60", "whole, epoch 37 of 60"], False),  # than the best
        (["head, epoch 4 of 5", "whole, epoch 1 of 30"], True),
        (["head, epoch 4 of 5", "whole, epoch 1 of 30", "head, epoch 4 of 5"], False),
        (["in 3-train-cell-type@U2OS: whole, epoch 7 of 30", "in 3-train-cell-type@U2OS: whole, epoch 8 of 30"], True),
        (["scored 7 of 22 experiments", "scored 7 of 22 experiments"], False),
        (["scored 7 of 22 experiments", "scored 11 of 22 experiments"], True),
        (["before 4-predict-assign", "before 4-predict-assign"], False),
        (["", ""], False),
        (["whole, epoch 7 of 30"], True),
    ],
)
def test_only_what_was_never_reached_is_an_advance(told: list[str], further: bool) -> None:
    best: dict[str, int] = {}
    for progress in told[:-1]:
        best = furthest(best, progress)
    assert advanced(best, told[-1]) == further

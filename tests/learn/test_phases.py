"""The knobs of a phase are checked before it starts, and its rate falls where it should."""

import pytest

from cellsignal.errors import InputError
from cellsignal.learn.phases import Phase, learning_rate_at


def test_the_rate_falls_where_the_slides_say() -> None:
    rates = [learning_rate_at(epoch, 375, 1e-3, schedule="steps") for epoch in (0, 319, 320, 349, 350, 374)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate_at(50, 100, 1.0, schedule="cosine") == pytest.approx(0.5)
    assert {Phase("final", 30, 8, 1e-5, schedule="constant").rate(epoch) for epoch in range(30)} == {1e-5}


@pytest.mark.parametrize("knob", ["schedule", "trainable", "keep", "scope", "loss", "precision"])
def test_a_choice_that_does_not_exist_is_named(knob: str) -> None:
    with pytest.raises(InputError, match=f"phase head: 'nonsense' is no {knob}; use one of: "):
        Phase("head", 1, 8, 1e-3, **{knob: "nonsense"})


def test_a_virtual_batch_holds_a_batch() -> None:
    with pytest.raises(InputError, match="phase whole: a virtual batch of 7 cannot hold a batch of 8"):
        Phase("whole", 1, 8, 1e-3, virtual_batch=7)
    assert Phase("whole", 1, 8, 1e-3, virtual_batch=8).virtual_batch == 8

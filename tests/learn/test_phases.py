"""The knobs of a phase are checked before it starts, and its rate falls where it should."""

import pytest

from cellsignal.errors import InputError
from cellsignal.learn.training.phase import Phase, learning_rate_at


def test_the_rate_falls_where_the_slides_say() -> None:
    rates = [learning_rate_at(epoch, 375, 1e-3, schedule="steps") for epoch in (0, 319, 320, 349, 350, 374)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate_at(50, 100, 1.0, schedule="cosine") == pytest.approx(0.5)
    assert {Phase("final", 30, 8, 1e-5, schedule="constant").rate(epoch) for epoch in range(30)} == {1e-5}


@pytest.mark.parametrize("knob", ["optimizer", "schedule", "trainable", "keep", "scope", "loss", "precision"])
def test_a_choice_that_does_not_exist_is_named(knob: str) -> None:
    with pytest.raises(InputError, match=f"phase head: 'nonsense' is no {knob}; use one of: "):
        Phase("head", 1, 8, 1e-3, **{knob: "nonsense"})


def test_a_virtual_batch_holds_a_batch() -> None:
    with pytest.raises(InputError, match="phase whole: a virtual batch of 7 cannot hold a batch of 8"):
        Phase("whole", 1, 8, 1e-3, virtual_batch=7)
    assert Phase("whole", 1, 8, 1e-3, virtual_batch=8).virtual_batch == 8


def test_surins_rate_warms_up_and_falls_twice() -> None:
    phase = Phase("whole", 30, 8, 0.01, optimizer="sgd", warmup_epochs=5, decay_epochs=[15, 25])
    rates = [phase.rate(epoch) for epoch in range(30)]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[5:] == pytest.approx([0.01] * 10 + [0.001] * 10 + [0.0001] * 5)
    assert phase.decay_epochs == (15, 25), "as YAML gives it, and hashable"


def test_cosines_come_once_or_in_cycles() -> None:
    once = Phase("whole", 10, 8, 1.0, schedule="cosine", warmup_epochs=2)
    assert [once.rate(epoch) for epoch in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    cyclic = Phase("whole", 12, 8, 1.0, schedule="cyclic", cycles=3)
    assert [cyclic.rate(epoch) for epoch in range(12)] == pytest.approx([1, 0.853553, 0.5, 0.146447] * 3, abs=1e-6)


def test_sizes_share_the_epochs() -> None:
    phase = Phase("whole", 7, 8, 1e-3, sizes=[32, 48, 64])
    assert [phase.size(epoch) for epoch in range(7)] == [32, 32, 32, 48, 48, 64, 64]
    assert Phase("whole", 7, 8, 1e-3).size(3) is None


@pytest.mark.parametrize(("knob", "value"), [("ema", 1.0), ("cycles", 0), ("label_smoothing", -0.1), ("sizes", (0,)), ("momentum", 1.5)])
def test_a_number_out_of_its_range_is_named(knob: str, value: object) -> None:
    with pytest.raises(InputError, match=f"phase whole: {knob} "):
        Phase("whole", 1, 8, 1e-3, **{knob: value})

"""The rate of a phase falls where it should, and its pictures grow."""

from typing import Any

import pytest
from building import make_phase

from cellsignal.errors import InputError
from cellsignal.learn.settings import TrainingSettings
from cellsignal.learn.training.phase import Phase, learning_rate_at


def test_the_rate_falls_where_the_slides_say() -> None:
    rates = [learning_rate_at(epoch, TrainingSettings(epochs=375)) for epoch in (0, 319, 320, 349, 350, 374)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert learning_rate_at(50, TrainingSettings(epochs=100, learning_rate=1.0, schedule="cosine")) == pytest.approx(0.5)
    assert {make_phase("final", 30, 8, 1e-5, schedule="constant").learning_rate(epoch) for epoch in range(30)} == {1e-5}


@pytest.mark.parametrize("own", [{"trainable": "nothing"}, {"keep": "all"}, {"seed": "one"}, {"epochs": 3}])
def test_a_phase_checks_its_own(own: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^Phase: .*{next(iter(own))}"):
        Phase(name="head", training=TrainingSettings(), **own)


def test_surins_rate_warms_up_and_falls_twice() -> None:
    falling = make_phase("whole", 30, 8, 0.01, optimizer="sgd", warmup_epochs=5, decay_epochs=[15, 25])
    rates = [falling.learning_rate(epoch) for epoch in range(30)]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[5:] == pytest.approx([0.01] * 10 + [0.001] * 10 + [0.0001] * 5)


def test_cosines_come_once_or_in_cycles() -> None:
    once = make_phase("whole", 10, 8, 1.0, schedule="cosine", warmup_epochs=2)
    assert [once.learning_rate(epoch) for epoch in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    cyclic = make_phase("whole", 12, 8, 1.0, schedule="cyclic", cycles=3)
    assert [cyclic.learning_rate(epoch) for epoch in range(12)] == pytest.approx([1, 0.853553, 0.5, 0.146447] * 3, abs=1e-6)


def test_sizes_share_the_epochs() -> None:
    growing = make_phase("whole", 7, 8, 1e-3, progressive_sizes=[32, 48, 64])
    assert [growing.image_size(epoch) for epoch in range(7)] == [32, 32, 32, 48, 48, 64, 64]
    assert make_phase("whole", 7, 8, 1e-3).image_size(3) is None


def test_each_phase_takes_its_own_part_of_the_settings() -> None:
    recipe = TrainingSettings(pretrain_epochs=1, head_epochs=2, epochs=3, final_epochs=4, final_learning_rate=0.5, learning_rate=0.1, schedule="cosine",
                              loss="focal", ema_decay=0.9, pseudo_label_epochs=1, decay_epochs=[2])
    assert [each.epochs for each in (recipe.pretraining, recipe.head, recipe.whole, recipe.final)] == [1, 2, 3, 4]
    assert [each.schedule for each in (recipe.pretraining, recipe.head, recipe.whole, recipe.final)] == ["cosine", "constant", "cosine", "constant"]
    assert [each.loss for each in (recipe.pretraining, recipe.head, recipe.whole, recipe.final)] == ["bce", "focal", "focal", "focal"]
    assert (recipe.final.learning_rate, recipe.head.learning_rate, recipe.whole.pseudo_label_epochs, recipe.head.pseudo_label_epochs) == (0.5, 0.1, 1, 0)

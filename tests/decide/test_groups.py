"""Which group lies on which plate: the likeliest permutation, and how sure that is."""

from pathlib import Path

import numpy as np
import pytest
from simulated_scores import real_layout, votes

from cellsignal.decide.settings import AssignmentSettings
from cellsignal.decide.assign.assign import decide
from cellsignal.decide.assign.groups import choose_groups, log_group_probabilities
from cellsignal.errors import InputError

TURNS = [(0, 1, 2, 3), (1, 2, 3, 0), (2, 3, 0, 1), (3, 0, 1, 2)]
PLATES = np.repeat(range(4), 277)


def screen(order: tuple[int, ...], *, seed: int, signal: float, shared: float = 0.0) -> np.ndarray:
    """Log group probabilities of 4 x 277 wells; `shared`: deviation of what all wells of a plate hold for a group."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(len(PLATES), 4)) + shared * rng.normal(size=(4, 4))[PLATES]
    values[np.arange(len(PLATES)), np.array(order)[PLATES]] += signal
    return values - np.logaddexp.reduce(values, 1, keepdims=True)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (3, 2, 1, 0)])
def test_a_clear_permutation_is_found_whatever_it_is(order: tuple[int, ...]) -> None:
    choice = choose_groups(screen(order, seed=0, signal=1.0), PLATES, rotations=TURNS)
    assert choice.group_on_plate == order and choice.confidence > 0.99
    assert choice.rotation == (order in TURNS)
    assert (choice.surprise_bits == 0) == (order in TURNS)
    likely = choice.plate_posterior[range(4), order]
    assert likely.min() >= choice.confidence - 1e-9


def test_every_permutation_has_its_probability() -> None:
    choice = choose_groups(screen(TURNS[1], seed=0, signal=0.1, shared=0.1), PLATES, rotations=TURNS, rotation_prior=0.5)
    assert len({tuple(order) for order in choice.permutations.tolist()}) == len(choice.posterior) == 24
    assert choice.posterior.sum() == pytest.approx(1) and choice.posterior.max() == choice.confidence
    assert tuple(choice.permutations[choice.posterior.argmax()]) == choice.group_on_plate
    same_plate = choice.permutations == np.array(choice.group_on_plate)
    np.testing.assert_allclose(choice.posterior @ same_plate, choice.plate_posterior[range(4), choice.group_on_plate])


def test_noise_that_wells_share_is_no_evidence() -> None:
    """1,108 wells, and yet four plates: what a plate's wells hold in common says nothing about the other plates."""
    found = [choose_groups(screen(TURNS[1], seed=seed, signal=0.2, shared=0.6), PLATES) for seed in range(40)]
    assert np.mean([choice.confidence >= 0.95 for choice in found]) < 0.1
    clear = [choose_groups(screen(TURNS[1], seed=seed, signal=0.2), PLATES) for seed in range(10)]
    assert all(choice.group_on_plate == TURNS[1] and choice.confidence > 0.8 for choice in clear)


def test_confidence_is_no_higher_than_accuracy() -> None:
    rng = np.random.default_rng(0)
    orders = [tuple(rng.permutation(4)) for _ in range(300)]
    found = [choose_groups(screen(order, seed=k, signal=0.5, shared=0.4), PLATES) for k, order in enumerate(orders)]
    right = np.mean([choice.group_on_plate == order for choice, order in zip(found, orders, strict=True)])
    confidence = np.mean([choice.confidence for choice in found])
    assert 0.5 < right < 0.95 and right - 0.1 < confidence < right + 0.05


def test_the_rotation_prior_decides_between_like_and_like() -> None:
    weak = [screen(TURNS[2], seed=seed, signal=0.1, shared=0.1) for seed in range(30)]
    for prior, least in ((0.5, 0.3), (0.999, 0.6)):
        found = [choose_groups(values, PLATES, rotations=TURNS, rotation_prior=prior) for values in weak]
        assert np.mean([choice.rotation for choice in found]) >= least
    assert choose_groups(weak[0], PLATES).rotation is None


def test_fewer_plates_than_groups() -> None:
    part = screen((2, 0, 1, 3), seed=0, signal=1.5)[:554]
    choice = choose_groups(part, PLATES[:554])
    assert choice.group_on_plate == (2, 0) and len(choice.plate_posterior) == 2
    assert choose_groups(part[:277], PLATES[:277]).group_on_plate == (2,)
    one = choose_groups(np.zeros((5, 1)), np.zeros(5, int))
    assert (one.group_on_plate, one.confidence) == ((0,), 1.0)
    with pytest.raises(InputError, match="5 plates but 4 plate groups"):
        choose_groups(np.zeros((5, 4)), np.arange(5))
    with pytest.raises(InputError, match="3628800 permutations of 10 plate groups over 10 plates"):
        choose_groups(np.zeros((10, 10)), np.arange(10))


def test_group_probabilities_are_sums_over_their_classes() -> None:
    scores = np.log(np.array([[0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0]], np.float32), where=[[True] * 4, [False] * 4],
                    out=np.full((2, 4), -np.inf, np.float32))
    members = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32)  # the last class is in no group
    shares = np.exp(log_group_probabilities(scores, members))
    np.testing.assert_allclose(shares, [[7 / 9, 2 / 9], [0.5, 0.5]], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.ci
def test_real_networks_agree_on_rotations_and_the_unsure_say_so(shared: Path) -> None:
    """12 real networks' choices: together sure of every experiment, alone never sure of anything else."""
    wells, _, groups, rotations = real_layout(shared / "rxrx1")
    names = [f"model_{k:02d}" for k in range(1, 13)]
    path = shared / "rxrx1/real_predictions.csv.gz"

    settings, temperatures = AssignmentSettings(method="raw"), dict.fromkeys(wells["cell_type"].unique(), 1.0)  # the choice needs no other

    def choices(networks: list[str]) -> dict:
        plans = decide(votes(path, networks), wells, settings, groups=groups, rotations=rotations, temperatures=temperatures).plans
        return {plan.experiment: plan.choice for plan in plans}

    together = choices(names)
    assert len(together) == 18 and min(choice.confidence for choice in together.values()) > 0.99
    assert all(choice.rotation and choice.surprise_bits == 0 for choice in together.values())
    # The four experiments whose rotation no training experiment has.
    unseen = {name for name, choice in together.items() if choice.group_on_plate == (0, 1, 2, 3)}
    assert unseen == {"HEPG2-08", "HUVEC-21", "HUVEC-24", "U2OS-05"}
    sure = 0
    for name in names:
        for experiment, choice in choices([name]).items():
            if choice.confidence >= 0.95:
                sure += 1
                assert choice.group_on_plate == together[experiment].group_on_plate, (name, experiment)
    assert sure >= 170  # of 216; measured 177

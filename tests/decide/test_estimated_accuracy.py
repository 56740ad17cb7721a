"""Accuracy without labels: the estimate and its standard error against wells whose truth is known, and when it is not measurable."""

import numpy as np
import pandas as pd
import pytest

from cellsignal.decide.assign.assign import decide
from cellsignal.decide.assign.calibration import expected_calibration_error
from cellsignal.decide.assign.estimated_accuracy import chance_in_group, estimate_accuracy
from cellsignal.decide.settings import AssignmentSettings

GROUPS = np.arange(240).reshape(4, 60).tolist()
LAYOUTS = {"RPE-01": [0, 1, 2, 3], "RPE-02": [1, 2, 3, 0]}


def screen(*, signal: float, sharpness: float = 1.0, seed: int = 0, experiments: int = 6, favourites: float = 0.0):
    """Scores, wells and truth of experiments of 4 plates of 60 wells; `favourites`: deviation of a class's score in all wells of an experiment."""
    rng, tables, places = np.random.default_rng(seed), [], []
    for number in range(experiments):
        name, order = f"{'RPE' if number % 2 else 'HUVEC'}-{number:02d}", np.roll(range(4), number)
        truth = np.concatenate([rng.permutation(GROUPS[group]) for group in order])
        values = rng.normal(size=(240, 240))
        values[np.arange(240), truth] += signal
        values = sharpness * signal * (values + favourites * rng.normal(size=240))
        ids = [f"{name}_{1 + k // 60}_{k % 60:02d}" for k in range(240)]
        tables.append(pd.DataFrame(values.astype(np.float32), ids, range(240)))
        places.append(pd.DataFrame({"id_code": ids, "experiment": name, "cell_type": name.split("-")[0], "plate": 1 + np.arange(240) // 60, "sirna": truth}))
    wells = pd.concat(places, ignore_index=True)
    return pd.concat(tables), wells, wells.set_index("id_code")["sirna"]


def estimates(scores: pd.DataFrame, wells: pd.DataFrame, truth: pd.Series | None = None) -> pd.DataFrame:
    choices = decide(scores, wells, groups=GROUPS, rotations=LAYOUTS).choices
    return estimate_accuracy({"raw": scores.idxmax(axis=1)}, wells, groups=GROUPS, choices=choices, truth=truth).set_index(["level", "name"])


@pytest.mark.parametrize("favourites", [0.0, 0.4])
def test_the_estimate_is_the_truth_within_its_standard_error(favourites: float) -> None:
    errors = []
    for seed in range(4):
        for signal in (1.0, 2.0, 3.0):
            table = estimates(*screen(signal=signal, seed=seed, favourites=favourites)).loc["experiment"]
            errors += ((table["estimated_accuracy"] - table["accuracy"]) / table["standard_error"]).tolist()
    assert abs(np.mean(errors)) < 0.4 and 0.6 < np.sqrt(np.mean(np.square(errors))) < 1.2 and np.abs(errors).max() < 4


def test_rows_are_all_wells_cell_types_and_experiments() -> None:
    scores, wells, truth = screen(signal=2.5)
    table = estimates(scores, wells, truth)
    assert [*table.loc["all"].index, *table.loc["cell_type"].index] == ["all", "HUVEC", "RPE"] and len(table.loc["experiment"]) == 6
    assert table["wells"].tolist() == [1440, 720, 720, *[240] * 6] and (table["note"] == "").all()
    assert table.loc[("all", "all"), "accuracy"] == pytest.approx((scores.idxmax(axis=1) == truth).mean())
    assert table.loc[("all", "all"), "estimated_accuracy"] == pytest.approx(table.loc["experiment", "estimated_accuracy"].mean())
    assert table.loc[("all", "all"), "standard_error"] < 0.5 * table.loc["experiment", "standard_error"].min()
    assert estimates(scores, wells)["accuracy"].isna().all()


def test_near_chance_the_choice_of_the_permutation_hardly_raises_the_estimate() -> None:
    found = pd.concat([estimates(*screen(signal=0.01, seed=seed)).loc["experiment"] for seed in range(6)])
    assert found["accuracy"].mean() < 0.01 and abs(found["estimated_accuracy"].mean()) < 0.02
    assert (found["estimated_accuracy"].abs() < 3 * found["standard_error"]).all()


@pytest.mark.parametrize("method", ["raw", "expected"])
def test_answers_that_have_used_the_groups_are_not_measurable(method: str) -> None:
    scores, wells, truth = screen(signal=2.0)
    decision = decide(scores, wells, AssignmentSettings(method=method), groups=GROUPS, rotations=LAYOUTS)
    table = estimate_accuracy({"used": decision.predictions}, wells, groups=GROUPS, choices=decision.choices, truth=truth)
    assert table["estimated_accuracy"].isna().all() and table["standard_error"].isna().all() and table["accuracy"].notna().all()
    assert table["note"].str.startswith("not measurable").all() and table["note"].str.contains("the groups were used").all()


def test_replicates_are_measurable() -> None:
    """Three wells a siRNA on its plate: more than one answer to a siRNA can be right."""
    scores, wells, truth = screen(signal=2.0)
    classes = [[sirna for sirna in group if sirna % 3 == 0] for group in GROUPS]
    truth = truth - truth % 3
    noise = np.random.default_rng(0).normal(size=(len(scores), 80))
    noise[np.arange(len(noise)), truth.to_numpy() // 3] += 3.0
    values = pd.DataFrame(noise, scores.index, sum(classes, []))
    choices = decide(values, wells, groups=classes, rotations=LAYOUTS).choices
    table = estimate_accuracy({"raw": values.idxmax(axis=1)}, wells, groups=classes, choices=choices, truth=truth)
    row = table.iloc[0]
    assert row["note"] == "" and abs(row["estimated_accuracy"] - row["accuracy"]) < 3 * row["standard_error"] and row["accuracy"] > 0.5


def test_scores_that_have_used_the_groups_are_not_calibrated_by_them() -> None:
    scores, wells, truth = screen(signal=1.5)
    plain = decide(scores, wells, groups=GROUPS, rotations=LAYOUTS)
    plates = wells.set_index("id_code").loc[scores.index]
    groups = pd.Series({sirna: number for number, group in enumerate(GROUPS) for sirna in group})
    allowed = groups.to_numpy()[None, :] == groups[truth[scores.index]].to_numpy()[:, None]
    used = decide(scores.where(allowed, -np.inf), wells, groups=GROUPS, rotations=LAYOUTS)
    accuracies = [decision.predictions.eq(truth).mean() for decision in (plain, used)]
    assert accuracies[1] > accuracies[0] - 0.02 and not used.temperatures.informative and plain.temperatures.informative == plain.choices
    assert len(plates) == len(scores) and used.confidence.mean() < used.predictions.eq(truth).mean() + 0.2


def test_one_group_of_all_sirnas_is_none() -> None:
    scores, wells, _ = screen(signal=2.0)
    alone, without = (decide(scores, wells.assign(plate=1), groups=groups) for groups in ([list(range(240))], []))
    assert alone.confidence.equals(without.confidence) and not alone.choices and set(alone.experiments["route"]) == {"one-to-one"}


def test_the_chance_comes_from_plates_with_another_group() -> None:
    """Of the wrong answers half lie in group 0; right ones lie where they belong and do not count, on however many plates."""
    wrong = np.array([0.5, 0.2, 0.2, 0.1])
    for plates in (4, 2, 1):
        counts = 1000.0 * (0.6 * np.eye(plates, 4) + 0.4 * wrong)
        chance = chance_in_group(counts, counts.sum(1), np.eye(plates, 4), np.full(4, 10_000))
        assert chance.sum() == pytest.approx(1, abs=1e-3) and (chance[:plates] == pytest.approx(wrong[:plates], abs=0.07) if plates > 1 else chance[0] == pytest.approx(0.25, abs=0.01))


def test_of_the_sirnas_of_a_small_group_one_is_no_wrong_answer() -> None:
    """Answers that are wrong evenly, over 48 siRNAs in groups of 12: 11 of the 47 wrong ones are in the group of the plate."""
    wells = np.full(4, 1e6)
    wrong, right = np.full((4, 4), 12 / 47), np.eye(4) * (1 - 0.3)
    wrong[np.arange(4), np.arange(4)] = 11 / 47
    counts = 1e6 * (right + 0.3 * wrong)
    assert chance_in_group(counts, wells, np.eye(4), np.full(4, 12)) == pytest.approx(11 / 47, abs=1e-5)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 4.0])
@pytest.mark.parametrize("favourites", [0.0, 0.4])
def test_confidences_without_labels_agree_with_the_truth(sharpness: float, favourites: float) -> None:
    """Also where a network favours some siRNAs in all wells."""
    scores, wells, truth = screen(signal=2.5, sharpness=sharpness, favourites=favourites)
    decision = decide(scores, wells, groups=GROUPS, rotations=LAYOUTS)
    right = decision.predictions == truth
    assert decision.experiments["note"].eq("").all()
    assert abs(decision.confidence.mean() - right.mean()) < 0.05 and expected_calibration_error(decision.confidence, right, bins=10) < 0.06
    if not favourites:
        assert decision.experiments["temperature"].mean() == pytest.approx(sharpness, rel=0.2)

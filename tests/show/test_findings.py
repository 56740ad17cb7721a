"""What a notebook saw: the numbers that it measured, and no more."""

import numpy as np
import pandas as pd
import pytest

from cellsignal.show.eda.batch_effect import PARTS, variance_shares
from cellsignal.show.eda.findings import label_findings, plate_findings


def plate(experiment: str, dataset: str, sirnas: list[int], *, number: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"experiment": experiment, "dataset": dataset, "plate": number, "well_type": "treatment", "sirna": sirnas})


WELLS = pd.concat([plate("U2OS-01", "train", [0, 1, 2]), plate("U2OS-01", "train", [3, 4], number=2), plate("U2OS-02", "test", [0, 1, 2])])
DESIGN = {"groups": [[0, 1, 2], [3, 4]], "duplicates": [{"experiments": ["U2OS-01", "U2OS-02"], "plate_shift": 1}]}
CHANNELS = pd.Series([6, 6, 4, 0])


def shares(**rows: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame({name: dict(zip(PARTS, (*pair, 1 - sum(pair)))) for name, pair in rows.items()}).T


def test_what_was_measured_is_said() -> None:
    assert plate_findings(WELLS, DESIGN, channels=CHANNELS, shares=shares(U2OS=(0.41, 0.07))).splitlines() == [
        "- **The test set consists of whole experiments**: 1 for training, 1 for the test, none for both.",
        "- **In plain brightness the batch effect is larger than the biology**. Of the variance of control wells these shares lie between "
        "experiments and between siRNAs: U2OS 41% and 7%.",
        "- **The design is informative**: a siRNA is in one well of an experiment, and 2 groups of siRNAs share a plate.",
        "- **Missing**: fewer treatment wells than the fullest plate has, on 1 of 3 plates; of 4 control sites, 1 lack all images and 1 lack some. "
        "Pairs of experiments that share a layout: 1.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "measured, said",
    [
        (shares(U2OS=(0.05, 0.2)), "the batch effect is not larger than the biology**. Of"),
        (shares(HUVEC=(0.4, 0.1), U2OS=(0.1, 0.2)), "the batch effect is larger than the biology for HUVEC, and not for U2OS**. Of"),
        (shares().reindex(columns=PARTS), "**Batch effect and biology were not compared**: too few control wells have pixel statistics."),
    ],
)
def test_the_batch_effect_is_what_it_is(measured: pd.DataFrame, said: str) -> None:
    assert said in plate_findings(WELLS, DESIGN, channels=CHANNELS, shares=measured).splitlines()[1]


def test_another_design_is_told_as_it_is() -> None:
    wells = pd.concat([plate("U2OS-01", "train", [0, 0, 1]), plate("U2OS-01", "test", [2])])
    text = plate_findings(wells, {"groups": [], "duplicates": []}, channels=CHANNELS, shares=shares())
    assert "**Some experiments have wells in both training and test**: 1, such as U2OS-01." in text
    assert "**The design tells little**: a siRNA is in up to 2 wells of an experiment, and no groups of siRNAs share a plate." in text
    assert "**There are no test wells**" in plate_findings(wells[wells["dataset"] == "train"], {"groups": [], "duplicates": []}, channels=CHANNELS, shares=shares())


def test_shares_are_given_where_experiments_and_sirnas_can_be_told_apart() -> None:
    def controls(experiments: int, sirnas: int, repeats: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        rows = [(f"U2OS-{e:02}_{s}_{r}", f"U2OS-{e:02}", s) for e in range(experiments) for s in range(sirnas) for r in range(repeats)]
        wells = pd.DataFrame(rows, columns=["id_code", "experiment", "sirna"]).assign(cell_type="U2OS", plate=1, well_type="positive_control")
        return pd.DataFrame(np.random.default_rng(0).normal(size=(len(wells), 3)), index=wells["id_code"]), wells

    assert list(variance_shares(*controls(2, 2, 2)).index) == ["U2OS"]
    for few in ((1, 3, 4), (3, 1, 4), (2, 2, 1)):  # one experiment; one siRNA; five wells or fewer to explain by four
        nothing = variance_shares(*controls(*few))
        assert nothing.empty and list(nothing.columns) == list(PARTS)


def test_thresholds_are_worth_what_was_measured() -> None:
    rows = [("no picture", None, 0.2), ("thresholds 0.5", "half", 0.4), ("thresholds fitted on held-out folds", "fitted", 0.35)]
    rungs = [{"rung": name, "kind": "network" if method else "floor", "split": "held_out", "macro_f1": value, **({"method": method} if method else {})}
             for name, method, value in rows]
    assert label_findings(rungs) == (
        "- **Held-out sites**: macro F1 0.400 with thresholds 0.5, 0.350 with thresholds fitted on held-out folds; the best baseline has 0.200.")
    assert label_findings([]) == "- No macro F1 was measured."

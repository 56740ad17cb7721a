"""Findings of a notebook as sentences built from its measurements."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cellsignal.tasks import RXRX1

SPLITS = {"test": "Test sites", "held_out": "Held-out sites"}


def plate_findings(wells: pd.DataFrame, design: Mapping[str, Any], *, channels: pd.Series, shares: pd.DataFrame) -> str:
    """Training data, batch effect, design and missing data, as a list in Markdown.

    `wells`: experiment, dataset, plate, well_type, sirna. `design`: of `plate_design.layout`. `channels`: number of files
    of each control site. `shares`: of `variance_shares`.
    """
    return _as_list(_experiments(wells), _batch_effect(shares), _design(wells, design["groups"]), _missing(wells, channels, design["duplicates"]))


def label_findings(rungs: Sequence[Mapping[str, Any]]) -> str:
    """What thresholds are worth and whether the network beats the baselines, as a list in Markdown; `rungs`: of `evaluate_label_ladder`."""
    lines = []
    for split, name in SPLITS.items():
        rows = [row for row in rungs if row["split"] == split]
        scores = {row["method"]: row["macro_f1"] for row in rows if "method" in row}
        baselines = [row["macro_f1"] for row in rows if row["kind"] == "floor"]
        if scores:
            others = ", ".join(f"{row['macro_f1']:.3f} with {row['rung']}" for row in rows if row.get("method", "half") != "half")
            lines.append(f"**{name}**: macro F1 {scores['half']:.3f} with thresholds 0.5, {others}; the best baseline has {max(baselines):.3f}.")
    return _as_list(*lines or ["No macro F1 was measured."])


def _as_list(*lines: str) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _experiments(wells: pd.DataFrame) -> str:
    train, test = (set(wells.loc[wells["dataset"] == kind, "experiment"]) for kind in ("train", "test"))
    if in_both := sorted(train & test):
        return f"**Some experiments have wells in both training and test**: {len(in_both)}, such as {in_both[0]}."
    if not test:
        return f"**There are no test wells**; experiments for training: {len(train)}."
    return f"**The test set consists of whole experiments**: {len(train)} for training, {len(test)} for the test, none for both."


def _batch_effect(shares: pd.DataFrame) -> str:
    if shares.empty:
        return "**Batch effect and biology were not compared**: too few control wells have pixel statistics."
    larger = shares.index[shares["experiment"] > shares["siRNA"]]
    where = "" if len(larger) in (0, len(shares)) else f" for {', '.join(larger)}, and not for {', '.join(shares.index.difference(larger))}"
    share_texts = ", ".join(f"{name} {row['experiment']:.0%} and {row['siRNA']:.0%}" for name, row in shares.iterrows())
    return (
        f"**In plain brightness the batch effect is {'larger' if len(larger) else 'not larger'} than the biology{where}**. Of the variance "
        f"of control wells these shares lie between experiments and between siRNAs: {share_texts}."
    )


def _design(wells: pd.DataFrame, groups: Sequence[Sequence[int]]) -> str:
    treated = wells[(wells["well_type"] == "treatment") & wells["sirna"].notna()]
    if treated.empty:
        return "**The design tells nothing**: no treatment has a label."
    max_wells = int(treated.groupby(["experiment", "sirna"]).size().max())
    wells_text = "one well" if max_wells == 1 else f"up to {max_wells} wells"
    shared = f"{len(groups)} groups of siRNAs share a plate" if len(groups) else "no groups of siRNAs share a plate"
    verdict = "is informative" if max_wells == 1 or len(groups) else "tells little"
    return f"**The design {verdict}**: a siRNA is in {wells_text} of an experiment, and {shared}."


def _missing(wells: pd.DataFrame, channels: pd.Series, duplicates: Sequence[Mapping[str, Any]]) -> str:
    plates = wells[wells["well_type"] == "treatment"].groupby(["experiment", "plate"]).size()
    short, none = int((plates < plates.max()).sum()), int((channels == 0).sum())
    partial = int(((channels > 0) & (channels < len(RXRX1.channels))).sum())
    return (
        f"**Missing**: fewer treatment wells than the fullest plate has, on {short} of {len(plates)} plates; of {len(channels):,} control "
        f"sites, {none:,} lack all images and {partial:,} lack some. Pairs of experiments that share a layout: {len(duplicates)}."
    )

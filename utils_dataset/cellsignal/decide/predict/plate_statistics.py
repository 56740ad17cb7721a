"""Which statistics `auto` takes for a plate, by what the tables say of it: its numbers of wells and of controls."""

import pandas as pd

from cellsignal.learn.batches.dataset import scope_rows
from cellsignal.learn.networks.classifier import ModelConfig
from cellsignal.tasks import RXRX1

# A full plate has from 0.7 to 1.1 times as many treatment wells as the design has, or lacks one.
FULL_SHARE, REPLICATES = 0.7, 1.1
MIN_CONTROLS = 8  # control wells with which an unequal plate is normalised better than without
MIN_WELLS = 8  # with fewer, a plate's own statistics are worse than the running ones


def plate_choices(sites: pd.DataFrame, controls: pd.DataFrame, config: ModelConfig, *, scope: str) -> list[tuple[str, str]]:
    """For each plate (or experiment, the `scope`) in the order of `scope_rows`, the statistics for it, and why.

    `sites`: the sites of one experiment whose statistics are the plate's; `controls`: its control sites.
    """
    treatment_classes = len(set(config.class_numbers) - set(RXRX1.controls))
    treatments = sites[sites["well_type"] == "treatment"]
    expected = treatment_classes / (treatments["plate"].nunique() or 1) if scope == "plate" else treatment_classes
    choices = []
    for rows in scope_rows(sites, scope):
        plates = sites.iloc[rows]["plate"].unique()
        wells, control_wells = (table.loc[table["plate"].isin(plates), "id_code"].nunique() for table in (treatments, controls))
        choices.append(statistics_of_plate(wells, control_wells, expected))
    return choices


def statistics_of_plate(wells: int, controls: int, expected: float) -> tuple[str, str]:
    """The statistics for a plate with so many treatment and control wells, and why.

    `expected`: the treatment wells of a plate where each siRNA that the network knows has one well in the experiment. A plate
    with about as many is taken for a full design, whose mixture of wells is that of the training batches (in FINDINGS.md the
    accuracies on which the limits rest, and the plates for which this is wrong).
    """
    if min(FULL_SHARE * expected, expected - 1) <= wells <= REPLICATES * expected:
        return "adapted", f"a full plate, {wells} wells where the design has {expected:.0f}"
    if controls >= MIN_CONTROLS:
        return "plate_with_controls", f"{wells} wells where the design has {expected:.0f}, and {controls} controls"
    few = f"{wells} wells where the design has {expected:.0f}, and only {controls} controls"
    return ("adapted" if wells >= MIN_WELLS else "running"), few

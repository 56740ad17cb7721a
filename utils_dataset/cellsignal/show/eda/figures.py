"""The pictures of the first notebook: plates, wells, images and the batch effect of one data set, each kept as a PNG."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cellsignal.data.images.reader import read_sites
from cellsignal.data.tables.plate_design import layout
from cellsignal.data.tables.wells import Tables
from cellsignal.show.eda import batch_effect, findings, plates
from cellsignal.show.eda.composites import show_composites, show_wells
from cellsignal.show.style import save
from cellsignal.tasks import RXRX1


class PlateFigures:
    """Draws the plates of a data set; each method returns its figure for the notebook to show, and keeps it as a PNG in `folder`.

    `tables`: the wells and sites that are shown. `design`: groups, rotations and shared layouts, as `plate_design.layout` gives them.
    `complete`: the control sites that have all their images.
    """

    def __init__(self, tables: Tables, folder: Path) -> None:
        self.root, self.wells, self.folder = tables.root, tables.wells, folder
        self.control_sites = tables.sites[tables.sites["well_type"] != "treatment"]

    def _keep(self, name: str, figure: Figure) -> Figure:
        return save(figure, self.folder / f"{name}.png")

    # The design of the experiments.

    def experiments(self) -> Figure:
        """Wells per experiment."""
        return self._keep("experiments", plates.experiment_counts(self.wells))

    def treatments(self) -> Figure:
        """Treatment wells of each plate."""
        return self._keep("treatments", plates.plate_counts(self.wells))

    def controls(self) -> Figure:
        """Control wells of each plate."""
        return self._keep("controls", plates.plate_counts(self.wells, well_type="control"))

    def classes(self) -> Figure:
        """Labelled wells of each siRNA."""
        return self._keep("classes", plates.class_counts(self.wells))

    def layout(self) -> Figure:
        """What lies in each well of the first experiment."""
        first = self.wells["experiment"].iloc[0]
        return self._keep("layout", plates.plate_layout(self.wells[self.wells["experiment"] == first], title=first))

    @cached_property
    def design(self) -> dict[str, Any]:
        """Groups, rotations and shared layouts."""
        return layout(self.wells)

    def groups(self) -> Figure:
        """Which plate group lies on which plate of each experiment."""
        return self._keep("groups", plates.group_rotation_map(self.wells, rotations=self.design["rotations"], duplicates=self.design["duplicates"]))

    def shared_layouts(self) -> pd.DataFrame:
        """Pairs of experiments that share a layout, and the shift of the plates between them."""
        return pd.DataFrame(self.design["duplicates"], columns=["experiments", "plate_shift"]).astype({"plate_shift": "Int64"})

    # Images.

    @cached_property
    def channels(self) -> pd.Series:
        """The number of images of each control site."""
        return batch_effect.channels_there(self.root, self.control_sites)

    @property
    def complete(self) -> pd.DataFrame:
        """The control sites that have all their images."""
        return self.control_sites[self.channels == len(RXRX1.channels)]

    def image_counts(self) -> pd.DataFrame:
        """Control sites by their number of images, for each cell type; prints the experiments without a complete one."""
        absent = sorted(set(self.control_sites["experiment"]) - set(self.complete["experiment"]))
        print("experiments without a complete control site:", ", ".join(absent) or "none")
        return pd.crosstab([self.control_sites["cell_type"], self.control_sites["dataset"]], self.channels).add_prefix("sites with ")

    def untreated_wells(self) -> Figure:
        """An untreated well of each cell type: the composite, and each channel."""
        some = self.complete[self.complete["well_type"] == "negative_control"].drop_duplicates("cell_type")
        return self._keep("wells", show_wells(list(read_sites(self.root, some)), some["experiment"].tolist()))

    def control_wells(self) -> Figure:
        """Six control wells of each cell type as composites, untreated ones first."""
        untreated_first = self.complete.sort_values(["cell_type", "experiment", "plate", "sirna"], ascending=[True, True, True, False])
        some = untreated_first.drop_duplicates("id_code").groupby("cell_type").head(6)
        names = some["experiment"] + " " + some["sirna"].astype(str).replace("1138", "untreated")
        return self._keep("positive_controls", show_composites(list(read_sites(self.root, some)), names.tolist(), rows=some["cell_type"].tolist()))

    # The batch effect.

    @cached_property
    def pixel_stats(self) -> pd.DataFrame:
        """Statistics of each channel at each site, from the competition's file or from images; prints from which."""
        stats, origin = batch_effect.load_pixel_stats(self.root, self.wells, self.complete)
        print(f"{len(stats):,} rows from {origin}: {stats['id_code'].nunique():,} of {len(self.wells):,} wells")
        return stats

    def nuclei(self) -> Figure:
        """Mean brightness of the nuclei, well by well, in the experiment with the most statistics."""
        stats = self.pixel_stats
        some = stats[stats["experiment"].isin(stats["experiment"].mode()[:1]) & (stats["channel"] == 1)]
        by_well = some.groupby(["experiment", "plate", "well"], as_index=False)["mean"].mean()
        title = "".join(by_well["experiment"].head(1)) + ": nuclei"
        return self._keep("plates", plates.plate_heatmap(by_well, "mean", title=title, label="mean grey value"))

    def channel_means(self) -> Figure:
        """Mean of each channel by experiment."""
        return self._keep("channel_means", batch_effect.channel_means(self.pixel_stats))

    def batch_effect(self, features: pd.DataFrame) -> Figure:
        """Control wells on two principal components of `features` (by id_code), coloured by experiment and by siRNA."""
        return self._keep("batch_effect", batch_effect.batch_effect(features, self.wells))

    def variance_shares(self, features: pd.DataFrame) -> pd.DataFrame:
        """Shares of the variance of `features` between experiments, between siRNAs, and in neither."""
        return batch_effect.variance_shares(features, self.wells).round(2)

    def findings(self, features: pd.DataFrame) -> str:
        """What was measured, as a list in Markdown."""
        shares = batch_effect.variance_shares(features, self.wells)
        return findings.plate_findings(self.wells, self.design, channels=self.channels, shares=shares)

"""Which wells a run learns from, and what it holds out to measure itself."""

from typing import Literal

from pydantic import Field, field_validator

from cellsignal.settings import Names, Settings, check_folder_names


class WellSettings(Settings):
    """Which wells are learnt from, and what is held out."""

    cell_types: Names = Field([], description="cell types to train; empty means all", examples=[["HUVEC", "U2OS"]])
    experiments: Names = Field([], description="experiments to use; empty means all", examples=[["U2OS-01", "U2OS-02"]])
    split: Literal["experiment", "random"] = Field("experiment", description="what is held out from training")
    validation_experiments: int = Field(1, ge=1, description="experiments held out per cell type, but never all of them")
    folds: int = Field(5, ge=2, description="of the Protein Atlas, a network each")
    drop_edge_wells: bool = Field(False, description="leave out wells in a plate's outer rows and columns")
    packed_size: int = Field(
        0, ge=0, description="longer side in px to which the images are reduced and packed, once, before anything is trained; 0: the images as they are")
    classes: Literal["treatments", "all"] = Field("treatments", description="siRNAs to tell apart; all: the controls of every experiment too")

    subsets = {"held_out": ("split", "validation_experiments")}

    @property
    def held_out(self) -> "WellSettings":
        """What decides who is held out."""
        return self.subset("held_out")

    named_folders = field_validator("cell_types", "experiments")(check_folder_names)

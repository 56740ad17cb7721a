"""BBBC021 as a table of profiles, made as utils_dataset/README.md says."""

from pathlib import Path

import pandas as pd


def read_bbbc021(folder: Path) -> pd.DataFrame:
    """The 632 wells of ../shared/bbbc021 with the columns of a table of profiles."""
    key = ["Metadata_Plate", "Metadata_Well"]
    wells = pd.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz").rename(columns=lambda name: name.removeprefix("Image_"))
    fields = pd.read_csv(folder / "BBBC021_v1_image.csv.gz").rename(columns=lambda name: name.removeprefix("Image_").removesuffix("_DAPI"))
    fields = fields[[*key, "Metadata_Compound", "Metadata_Concentration"]].drop_duplicates()
    moa = pd.read_csv(folder / "BBBC021_v1_moa.csv").set_axis(["Metadata_Compound", "Metadata_Concentration", "Metadata_Mechanism"], axis=1)
    table = wells.merge(fields, on=key).merge(moa, how="left").copy()
    table["Metadata_Batch"] = table["Metadata_Plate"].str.split("_").str[0]
    table["Metadata_Perturbation"] = table["Metadata_Compound"] + "@" + table.pop("Metadata_Concentration").astype(str)
    table["Metadata_Control_Type"] = table["Metadata_Compound"].eq("DMSO").map({True: "negcon", False: "treatment"})
    return table

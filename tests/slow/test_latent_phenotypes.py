"""Do distances between embeddings follow those of the simulated phenotypes, and which correction helps?"""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from cellsignal.data.microscope.cell_types import phenotype
from cellsignal.profiles.correct import steps
from cellsignal.profiles.retrieval import retrieve
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import Profiles, read_profiles

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
DRAWS = 20
NONE = {"scale": "none", "center": "none", "components": 0, "sphering": "none"}
CORRECTIONS = {
    "uncorrected": NONE, "centred on controls": NONE | {"center": "controls"}, "centred on plates": NONE | {"center": "plate"},
    "32 components": NONE | {"components": 32}, "centred on controls, 32 components, sphered": NONE | {"center": "controls", "components": 32, "sphering": "controls"},
    "standardised, and the same (default)": {},
}  # fmt: skip


def phenotype_correlation(profiles: Profiles, *, seed: int, cell_type: str) -> float:
    """Spearman's correlation, over pairs of siRNAs, of the cosine distance of their mean profiles and the distance of their latent phenotypes."""
    sirnas = profiles.wells["Metadata_Perturbation"][profiles.treated].to_numpy()
    features = profiles.features[profiles.treated]
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    names = np.unique(sirnas)
    means = np.stack([features[sirnas == name].mean(axis=0) for name in names])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    latent = np.stack([phenotype(seed, int(name), cell_type=cell_type) for name in names])
    pairs = np.triu_indices(len(names), 1)
    return spearmanr(1 - (means @ means.T)[pairs], np.linalg.norm(latent[:, None] - latent[None], axis=-1)[pairs]).statistic


def rows(table: Path, *, seed: int) -> list[dict]:
    """For each network of a table and each correction: that correlation, and recall at 1 on other experiments."""
    found = []
    for profiles in read_profiles(table).by_network().values():
        cell_type = profiles.wells["Metadata_CellType"].iloc[0]
        for name, settings in CORRECTIONS.items():
            *_, (_, corrected) = steps(profiles, ProfileSettings(**settings))
            summary = retrieve(corrected, ProfileSettings(permutations=99), progress=False).summary.set_index("restriction")
            found.append({"statistics": table.stem, "correction": name, "phenotype": phenotype_correlation(corrected, seed=seed, cell_type=cell_type),
                          "recall_at_1": summary.loc["not the same batch", "recall_at_1"], "precision": summary.loc["not the same batch", "mean_average_precision"]})
    return found


def few_treatments(table: Path, *, seed: int) -> pd.DataFrame:
    """What centring on all wells does where plates hold few siRNAs, the same ones together in each experiment: the mean over DRAWS choices of siRNAs."""
    (profiles,) = read_profiles(table).by_network().values()
    wells, found = profiles.wells[profiles.treated], []
    everywhere = wells.groupby("Metadata_Perturbation")["Metadata_Batch"].transform("nunique") == wells["Metadata_Batch"].nunique()  # else a plate may have one well
    first = wells[everywhere & (wells["Metadata_Batch"] == wells["Metadata_Batch"].iloc[0])].groupby("Metadata_Plate")["Metadata_Perturbation"]
    for count, draw in itertools.product((2, 4, 8, 25), range(DRAWS)):
        random = np.random.default_rng(draw)
        chosen = {str(sirna) for _, sirnas in first for sirna in random.permutation(np.sort(sirnas.astype(str)))[:count]}
        rows = profiles.treated & profiles.wells["Metadata_Perturbation"].isin(chosen).to_numpy()
        part = replace(profiles, wells=profiles.wells[rows].reset_index(drop=True), features=profiles.features[rows])
        for centering in ("none", "plate"):
            *_, (_, corrected) = steps(part, ProfileSettings(**NONE | {"center": centering}))
            summary = retrieve(corrected, ProfileSettings(permutations=99), progress=False).summary.set_index("restriction")
            found.append({"siRNAs": count, "centring": centering, "recall_at_1": summary.loc["not the same batch", "recall_at_1"],
                          "phenotype": phenotype_correlation(corrected, seed=seed, cell_type=wells["Metadata_CellType"].iloc[0])})
    return pd.DataFrame(found).groupby(["siRNAs", "centring"]).mean()


def test_distances_follow_phenotypes(tmp_path: Path) -> None:
    """On `hard`: adapted embeddings follow the phenotypes, a network with random weights hardly; running statistics hide replicates."""
    def call(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "cellsignal.cli.main", *map(str, arguments)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    run, seed = tmp_path / "run", 0
    call("run", "papermill_params/brodt-short.yaml", "-p", "preset=hard", "-p", f"seed={seed}", "-p", "machine.html_pages=false", "--out", run)
    tables = {name: tmp_path / f"{name}.parquet" for name in ("running", "adapted", "random")}
    for name, table in tables.items():
        chosen = ("--weights", "random") if name == "random" else ("--statistics", name)
        call("embed", run, "--experiments", "scored", *chosen, "--out", table)
    found = pd.DataFrame([row for table in tables.values() for row in rows(table, seed=seed)])
    print("\n", found.round(3).to_string())
    value = found.set_index(["statistics", "correction"])
    assert value.loc[("adapted", "uncorrected"), "phenotype"] > value.loc[("random", "uncorrected"), "phenotype"] + 0.05
    assert value.loc[("adapted", "uncorrected"), "recall_at_1"] > 2 * value.loc[("running", "uncorrected"), "recall_at_1"]
    few = few_treatments(tables["adapted"], seed=seed)
    print("\n", few.round(3).to_string())
    pair = few["phenotype"]
    assert pair[2, "plate"] < pair[2, "none"] and abs(pair[25, "plate"] - pair[25, "none"]) < 0.05

"""The limits by which plates are judged by their controls: on real plates (BBBC021), and on simulated plates of which some are drawn untreated."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellsignal.data.control_separation import MIN_AGREEMENT, MIN_EFFECT_SIZE, control_separation, doubtful_plates
from cellsignal.data.microscope.layout import draw_design
from cellsignal.data.microscope.rendering import render_plate
from cellsignal.data.microscope.simulate import PRESETS, _plates
from cellsignal.data.tables.wells import read_tables
from cellsignal.run.chain import steps
from cellsignal.run.kernels.embed import embed_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CHANNEL_MEANS = ["Cells_Intensity_MeanIntensity_CorrActin", "Cells_Intensity_MeanIntensity_CorrTub", "Nuclei_Intensity_MeanIntensity_CorrDAPI"]


def bbbc021(shared: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Features and wells, DMSO untreated and all others positive."""
    keys = ["Image_Metadata_Plate", "Image_Metadata_Well"]
    table = pd.read_csv(shared / "bbbc021/ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")
    images = pd.read_csv(shared / "bbbc021/BBBC021_v1_image.csv.gz").rename(columns={f"{key}_DAPI": key for key in keys})
    table = table.merge(images[[*keys, "Image_Metadata_Compound"]].drop_duplicates(keys), on=keys, how="left")
    untreated = table["Image_Metadata_Compound"] == "DMSO"
    table.index = (table[keys[0]] + "_" + table[keys[1]]).rename("id_code")
    wells = pd.DataFrame({"id_code": table.index, "experiment": table[keys[0]].to_numpy(), "cell_type": "MCF7", "plate": 1,
                          "well_type": np.where(untreated, "negative_control", "positive_control"), "sirna": np.where(untreated, 1138, 0)})
    return table.filter(regex="^(Cells|Nuclei|Cytoplasm)_").select_dtypes(float), wells


def test_real_plates_are_above_the_limit_and_so_is_chance(shared: Path) -> None:
    features, wells = bbbc021(shared)
    for name, values, below in (("channel means", np.log(features[CHANNEL_MEANS] + 1e-3), 0.06), ("all features", features, 0.02)):
        effect = control_separation(values, wells)["effect_size"].dropna()
        print(name, len(effect), "plates, below the limit", (effect < MIN_EFFECT_SIZE).mean())
        assert len(effect) == 49 and (effect < MIN_EFFECT_SIZE).mean() == pytest.approx(below, abs=0.005)
    dmso = wells[wells["well_type"] == "negative_control"].copy()
    halves = np.random.default_rng(0).permuted(np.tile([0, 0, 0, 1, 1, 1], (55, 1)), axis=1).ravel()
    dmso = dmso.sort_values("experiment").assign(well_type=np.where(halves, "positive_control", "negative_control"))
    split = control_separation(np.log(features[CHANNEL_MEANS] + 1e-3), dmso)
    print("DMSO against DMSO, above the limit", (split["effect_size"] > MIN_EFFECT_SIZE).mean())
    assert len(split) == 55 and (split["effect_size"] > MIN_EFFECT_SIZE).mean() > 0.5


def with_untreated_plates(run: Path, out: Path, *, preset: str, seed: int) -> set[tuple[str, int]]:
    """A copy of a run in `out`, where all wells of one plate of each experiment are drawn untreated; gives these plates."""
    shutil.copytree(run / "data", out / "data")
    for folder in ("weights", "receipts"):
        shutil.copytree(run / folder, out / folder)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["parameters"].update(data=str(out / "data"), preset="")
    (out / "recipe.json").write_text(json.dumps(recipe))
    steps.write_receipt(out, steps.Step("record", outputs=("recipe.json",)), identity={}, seconds=0.0)
    drawn = PRESETS[preset]
    wells = draw_design(seed, drawn.cell_types, classes=drawn.classes, train=drawn.train, test=drawn.test, repeats=drawn.repeats, missing=drawn.missing)
    broken = set()
    for folder, plates in _plates(wells, seed=seed, preset=drawn).items():
        plate = plates[(int(folder[-2:]) - 1) % len(plates)]
        render_plate(replace(plate, lost="", wells=tuple((well, 1138) for well, _ in plate.wells)), out / "data" / folder / f"Plate{plate.plate}")
        broken.add((plate.experiment, plate.plate))
    return broken


def check_limits(run: Path, folder: Path, *, preset: str, seed: int) -> None:
    """Broken plates are named by agreement, and no other; by effect size they would not be."""
    broken = with_untreated_plates(run, folder / "broken", preset=preset, seed=seed)
    wells = read_tables(folder / "broken/data").wells
    table = embed_run(folder / "broken", folder / "e.parquet")[0].set_index("Metadata_Id").filter(like="embedding_")
    separation = control_separation(table, wells)
    is_broken = separation.set_index(["experiment", "plate"]).index.isin(broken)
    print(separation.groupby(is_broken)[["effect_size", "agreement"]].agg(["min", "median", "max"]).round(3).to_string())
    assert doubtful_plates(separation).tolist() == is_broken.tolist()
    assert separation["agreement"][is_broken].max() < MIN_AGREEMENT - 0.1 and separation["agreement"][~is_broken].min() > MIN_AGREEMENT + 0.1
    assert separation["effect_size"][is_broken].median() > MIN_EFFECT_SIZE, "as high as those of whole plates"


@pytest.mark.parametrize("seed", [0, 1])
def test_untreated_plates_are_named(seed: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["run", str(ROOT / "papermill_params/brodt-hard.yaml"), "-p", f"seed={seed}", "-p", "training.ablate_virtual_batch=false", "--out", str(run)]
    subprocess.run([sys.executable, "-m", "cellsignal.cli.main", *command], check=True)
    check_limits(run, tmp_path, preset="hard", seed=seed)

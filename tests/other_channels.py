"""From tables to a submission in the package that imports, on plates whose classes only the last channel shows; prints what came out as JSON."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from building import make_network, make_phase, train_phase
from cellsignal.data.settings import WellSettings
from cellsignal.learn.settings import AugmentationSettings
from cellsignal.bench.sample import take_sample
from cellsignal.data.packing import pack
from cellsignal.data.check import check_dataset
from cellsignal.data.images.reader import read_site, whole_sites
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.tables.splits import split_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide.assign.assign import decide
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.submission import write_submission
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out
from cellsignal.learn.networks.classifier import read_config
from cellsignal.show.eda import plots
from cellsignal.tasks import RXRX1

WELLS = ["B03", "B04", "B05", "B06"]  # of siRNAs 0 to 3, one plate an experiment
TRAIN, TEST = [f"HUVEC-{number:02}" for number in range(1, 7)], ["HUVEC-07", "HUVEC-08"]


def draw(root: Path) -> None:
    """Eight experiments: stripes across, stripes down, both or none, in the last channel; noise in the others."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:32, :32]
    for kind, names in (("train", TRAIN), ("test", TEST)):
        rows = [(f"{name}_1_{well}", name, 1, well, sirna) for name in names for sirna, well in enumerate(WELLS)]
        for _, name, _, well, sirna in rows:
            for site in (1, 2):
                picture = rng.normal(60, 8, (len(RXRX1.suffixes), 32, 32))
                picture[-1] += 90 * (sirna & 1) * (y % 8 < 4) + 90 * (sirna >> 1) * (x % 8 < 4)
                stem = root / kind / name / f"Plate1/{well}_s{site}"
                stem.parent.mkdir(parents=True, exist_ok=True)
                for suffix, plane in zip(RXRX1.suffixes, picture):
                    cv2.imwrite(f"{stem}{suffix}", np.clip(plane, 0, 255).astype(np.uint8))
        table = pd.DataFrame(rows, columns=["id_code", "experiment", "plate", "well", "sirna"])
        table.drop(columns="sirna" if kind == "test" else []).to_csv(root / f"{kind}.csv", index=False)
        table.iloc[:0].assign(well_type="").to_csv(root / f"{kind}_controls.csv", index=False)
    table[["id_code", "sirna"]].to_csv(root / "solution.csv", index=False)


def main(root: Path, out: Path) -> None:
    """Draw, check, pack, train, score, decide and write."""
    draw(root)
    problems = check_dataset(root, progress=False)
    tables = read_tables(root)
    sites, _ = whole_sites(root, tables.sites)
    sites["split"] = split_sites(tables.wells, sites, settings=WellSettings(split="experiment", validation_experiments=1), seed=0)
    pack.pack(pack.plan_pack(root), out / "packed", progress=False)
    train, watch = make_train_held_out(root, sites[sites["split"] != "test"], augment=build_augmentation(AugmentationSettings(symmetries="none"), seed=0))
    model = make_network("densenet-small", channels=len(train.channels), classes=4, standardise="plate")
    phase = make_phase("whole", 6, 8, 4e-3, schedule="cosine", keep="last")
    weights = out / "weights/HUVEC/model.safetensors"
    train_phase(model, train, held_out=watch, phase=phase, weights=weights, device="cpu")
    asked = sites[sites["split"] == "test"]
    scores = score_experiments(root, asked, ScoringOptions(out / "weights", all_statistics=False), out=out / "scores")["adapted"]
    decision = decide(scores.loc[tables.sample], tables.wells)
    write_submission(out / "submission.csv", decision.predictions, decision.confidence, sample=tables.sample)
    plots.save(plots.show_wells([read_site(root, sites["stem"][0])], ["HUVEC-01"]), out / "wells.png")
    stats = plots.pixel_stats(root, sites, max_sites=4)
    plots.save(plots.channel_means(stats), out / "means.png")
    try:
        simulate(out / "drawn", preset="tiny")
    except InputError as error:
        refusal = str(error)
    print(json.dumps({
        "problems": len(problems), "shape": read_site(root, sites["stem"][0]).shape, "packed": read_site(out / "packed", sites["stem"][0]).shape,
        "card": read_config(weights).channels, "there": plots.channels_there(root, sites).unique().tolist(),
        "measured": stats["channel"].unique().tolist(), "sample": len(take_sample(out, data=root, count=2, image_size=32).paths(sites["stem"][0])),
        "right": int((decision.predictions == tables.solution.reindex(tables.sample)).sum()), "wells": len(tables.sample),
        "simulated": refusal, "left": (out / "drawn").exists()}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

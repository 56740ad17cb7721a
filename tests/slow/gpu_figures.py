"""What only a GPU can show, as Markdown, in at most ten minutes: python tests/slow/gpu_figures.py > gpu.md

Every recipe rehearsed; training and prediction beside an eager float16 network and beside the limits of the card; how far float16 and
bfloat16 are from float32; and Brodt's recipe at 128 px for the time that is left. With --device cpu small stand-ins take the same ways.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from cellsignal import provenance
from cellsignal.bench import report
from cellsignal.bench.sample import take_sample
from cellsignal.bench.suite import Benchmark
from cellsignal.budget import Budget, TimeSpent
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.tables.splits import split_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.learn.batches.augment import build_augmentation
from cellsignal.learn.batches.dataset import make_train_held_out
from cellsignal.learn.devices import autocast, pick_device
from cellsignal.learn.networks.classifier import Classifier
from cellsignal.learn.settings import MachineSettings, NetworkSettings
from cellsignal.learn.training.fit import TrainingSites, fit
from cellsignal.learn.training.phase import Phase
from cellsignal.run import recipe as recipes
from cellsignal.run import rehearse

RECIPES = Path(__file__).resolve().parents[2] / "papermill_params"
CLASSES = 1108
LEAST_SECONDS = 30.0  # of the training at the end
# The most that features differ, as a share of their size, and the least cosine of the gradients. DenseNet121 on a CPU: 0.003 and 0.989 in float16, 0.021 and 0.899 in bfloat16.
BOUNDS = {"fp16": (0.01, 0.97), "bf16": (0.05, 0.85)}
outside: list[str] = []  # precisions, found at the end, so that a GPU's minutes give all else


def rehearsals(device: str, deadline: float) -> Iterator[str]:
    """Every recipe for real plates, on drawn sites, until the deadline."""
    names = [path.stem for path in sorted(RECIPES.glob("*.yaml")) if not path.stem.endswith("-small")] if device == "cuda" else ["tiny"]
    rehearse.SECONDS = 1.0 if device == "cuda" else 0.05
    yield "| recipe | network | phase | px | batch | checkpointing | images/s | peak memory | loader images/s | loader keeps up |\n|---|---|---|---|---|---|---|---|---|---|"
    hours = []
    for name in names:
        recipe = recipes.load(RECIPES / f"{name}.yaml", [f"machine.device={device}", 'network.pretrained=""'])
        if device == "cuda" and recipe.preset:
            continue
        if time.monotonic() > deadline:
            hours.append(f"`{name}` was not rehearsed: no time was left")
            continue
        try:
            rehearsal = rehearse.rehearse(recipe)
        except InputError as error:
            hours.append(f"`{name}`: {error}")
            continue
        yield "\n".join("| " + " | ".join(map(str, (f"`{name}`", *row))) + " |" for row in rehearsal.table().itertuples(index=False))
        hours.append(f"`{name}` would take {rehearsal.forecast.hours:.1f} hours here")
    yield "\n" + "; ".join(hours) + "."


def benchmark(device: str) -> Iterator[str]:
    """Training and prediction, ours and an eager network's, and the shares of the machine's limits."""
    small = {"sites": 8, "image_size": 64, "rounds": 1, "seconds": 0.05, "backbone": "plain-cnn", "floor_bytes": 2**22} if device == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Benchmark(Path(folder), **{"sites": 64, "rounds": 3, "seconds": 1.0, "batch_size": 8, "device": device, **small})
        for stage in (bench.machine, bench.training, bench.predicting):
            stage()
        yield f"{bench.backbone}, batches of {bench.batch_size} sites of {bench.small.image_size} px, {bench.bits}\n"
        yield "| stage | what | median | least | most | unit |\n|---|---|---:|---:|---:|---|"
        yield "\n".join(f"| {row.stage} | {row.name} | {row.median:.4g} | {row.min:.4g} | {row.max:.4g} | {row.unit} |" for row in bench.rows)
        yield "\n| ours | share |\n|---|---:|\n" + "\n".join(f"| {name.replace('_', ', ')} | {share:.1%} |" for name, share in report.shares(bench).items())


def equality(device: torch.device) -> Iterator[str]:
    """How far features and gradients are from those in float32."""
    backbone, size = ("densenet121", 256) if device.type == "cuda" else ("densenet-small", 64)
    with tempfile.TemporaryDirectory() as folder:
        sample = take_sample(Path(folder), data=None, count=16, image_size=size)
        images = torch.from_numpy(sample.images()).to(device)
    def passed(precision: str) -> tuple[torch.Tensor, torch.Tensor]:
        model = Classifier(NetworkSettings(backbone=backbone), channels=6, classes=CLASSES, seed=0).to(device).train()
        with autocast(device, precision):
            features = model.embed(model.prepare(images))
            loss = torch.nn.functional.cross_entropy(model.classify(features).float(), torch.arange(16, device=device))
        loss.backward()
        return features.float().detach(), torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
    exact = passed("fp32")
    yield f"{backbone}, {size} px, 16 sites, normalised by the batch\n\n| precision | features, relative error | bound | cosine of gradients | bound |\n|---|---:|---:|---:|---:|"
    for precision in BOUNDS if device.type == "cuda" else ["bf16"]:
        features, gradient = passed(precision)
        error = ((features - exact[0]).norm() / exact[0].norm()).item()
        cosine = torch.nn.functional.cosine_similarity(gradient, exact[1], dim=0).item()
        within = error <= BOUNDS[precision][0] and cosine >= BOUNDS[precision][1]
        outside.extend([precision] * (not within))
        yield f"| {precision} | {error:.4f} | {BOUNDS[precision][0]} | {cosine:.4f} | {BOUNDS[precision][1]} |"


def short_training(device: str, deadline: float) -> Iterator[str]:
    """The training on treatments of brodt-128, on drawn plates of 100 siRNAs, until the deadline."""
    recipe = recipes.load(RECIPES / "brodt-128.yaml")
    changes = {} if device == "cuda" else {"batch_size": 8, "virtual_batch": 8, "epochs": 3}
    with tempfile.TemporaryDirectory() as folder:
        simulate(Path(folder) / "data", preset="small" if device == "cuda" else "tiny", image_size=128 if device == "cuda" else 32)
        tables = read_tables(Path(folder) / "data")
        sites = tables.sites[(tables.sites["well_type"] == "treatment") & (tables.sites["cell_type"] == "HUVEC")]
        sites = sites.assign(split=split_sites(tables.wells, sites, recipe.wells.held_out, seed=0))
        train, held_out = make_train_held_out(tables.root, sites[sites["split"] != "test"], augment=build_augmentation(recipe.augmentation.pretraining, seed=0))
        backbone = recipe.network.backbone if device == "cuda" else "densenet-small"
        model = Classifier(NetworkSettings(backbone=backbone), channels=6, classes=len(train.class_numbers))
        phase = Phase(name="whole", training=recipe.training.whole.model_copy(update=changes), augmentation=recipe.augmentation.whole)
        history: list[dict] = []
        with suppress(TimeSpent):
            fit(model, TrainingSites(train, held_out), phase, weights=Path(folder) / "model.safetensors", budget=Budget(time.time() + max(deadline - time.monotonic(), LEAST_SECONDS)),
                machine=MachineSettings(device=device, num_workers=recipe.machine.num_workers), on_epoch=lambda rows: history.__setitem__(slice(None), rows))
    if not history:
        yield "No time was left for an epoch."
        return
    yield f"{len(history)} of {phase.training.epochs} epochs over {len(train)} sites, {len(history) * len(train) / sum(row['seconds'] for row in history):.0f} images/s\n"
    yield "| epoch | loss | accuracy | held out |\n|---:|---:|---:|---:|"
    shown = history[::max(1, len(history) // 10)]
    yield "\n".join(f"| {row['epoch']} | {row['loss']:.4f} | {row['accuracy']:.3f} | {row['held_out_accuracy'] or 0:.3f} |" for row in shown)


def main() -> None:
    """Print the page."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options.add_argument("--seconds", type=float, default=570.0)
    chosen = options.parse_args()
    began, device = time.monotonic(), pick_device(chosen.device)
    hardware = provenance.hardware()
    print(f"# Figures of {', '.join(hardware['gpus']) if device.type == 'cuda' else hardware['cpu']}, PyTorch {torch.__version__}")
    parts = {"Precision": equality(device), "Training and prediction": benchmark(chosen.device),
             "Every recipe rehearsed": rehearsals(chosen.device, began + 0.6 * chosen.seconds),
             "Brodt's recipe at 128 px": short_training(chosen.device, began + chosen.seconds)}
    for title, lines in parts.items():
        print(f"\n## {title}\n", flush=True)
        for line in lines:
            print(line, flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds in all")
    if outside:
        sys.exit(f"outside the bounds: {', '.join(outside)}")


if __name__ == "__main__":
    main()

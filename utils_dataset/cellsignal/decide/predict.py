"""Log-probabilities per well: the sites of a well averaged, under each kind of statistics."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn
from tqdm.auto import tqdm

from cellsignal.data.images import read_sites
from cellsignal.decide.scores import write_metadata, write_scores
from cellsignal.learn.batches import parts_of, scope_rows
from cellsignal.learn.batchnorm import STATISTICS, adapted_statistics, batch_statistics
from cellsignal.learn.models import load_weights


def score_experiments(root: Path, sites: pd.DataFrame, *, weights: Path, out: Path, scope: str = "plate",
                      batch_size: int = 32, device: torch.device = torch.device("cpu")) -> dict[str, pd.DataFrame]:
    """Score the treatment wells of every experiment in `sites` under each kind of statistics.

    `weights`: the folder with one `<cell_type>/model.safetensors` each. Images are read once. Writes,
    in the place of what an earlier prediction left there,
    `<out>/<statistics>/<experiment>.parquet` and, last, `<out>/<statistics>/metadata.json`. Returns
    the stacked scores by kind of statistics, in the order of the ladder.
    """
    for stale in out.glob("*/*.parquet"):
        stale.unlink()
    scores, facts = {name: [] for name in STATISTICS}, {name: {} for name in STATISTICS}
    experiments = sites.groupby(["cell_type", "experiment"], sort=True)
    for (cell_type, experiment), mine in tqdm(experiments, desc="predict", unit="experiment"):
        model, card = load_weights(weights / cell_type / "model.safetensors")
        # Statistics must come from the mixture of wells that filled the training batches: on plates
        # of 24 treatment and 62 control sites, adding controls to the statistics of networks that
        # were trained without them took the accuracy from 0.70 to 0.49.
        mine = mine[mine["well_type"].isin(card.well_types)].reset_index(drop=True)
        images = read_sites(root, mine)
        for name in STATISTICS:
            table, facts[name][experiment] = predict_experiment(
                model.to(device), images, mine, class_numbers=card.class_numbers,
                statistics=name, scope=scope, batch_size=batch_size)
            write_scores(out / name, table, experiment=experiment)
            scores[name].append(table)
    for name in STATISTICS:
        write_metadata(out / name, statistics=name, scope=scope, batch_size=batch_size, gathered=facts[name])
    return {name: pd.concat(tables) for name, tables in scores.items()}


def predict_experiment(model: nn.Module, images: np.ndarray, sites: pd.DataFrame, *, class_numbers: list[int],
                       statistics: str, scope: str = "plate", batch_size: int = 32) -> tuple[pd.DataFrame, dict]:
    """Scores of one experiment's treatment wells.

    `images`: uint8[N, C, H, W], one for each row of `sites`. `statistics`: "running", "batch"
    (batches of `batch_size` from one scope) or "adapted" (of the whole scope). The
    log-probabilities of a well's sites are averaged.

    Returns (scores, facts): scores have index id_code and one column per class number, float32;
    facts tell how often the statistics were "exact" or "accumulated".
    """
    logits, facts = np.empty((len(sites), len(class_numbers)), np.float32), {}
    for rows in scope_rows(sites, scope):
        part = torch.from_numpy(images[rows])
        logits[rows], how = LOGITS[statistics](model, part, batch_size)
        facts[how] = facts.get(how, 0) + 1
    treatment = (sites["well_type"] == "treatment").to_numpy()
    scores = well_scores(logits[treatment], sites.loc[treatment, "id_code"], class_numbers=class_numbers)
    return scores, facts


def well_scores(logits: np.ndarray, id_codes: pd.Series, *, class_numbers: list[int]) -> pd.DataFrame:
    """Mean log-probabilities over the sites of each well, made to sum to one again."""
    table = pd.DataFrame(log_softmax(logits, axis=1), columns=class_numbers)
    mean = table.groupby(id_codes.to_numpy(), sort=False).mean()
    mean[:] = log_softmax(mean.to_numpy(), axis=1)
    return mean.astype(np.float32).rename_axis("id_code")


def _running(model: nn.Module, images: torch.Tensor, batch_size: int) -> tuple[np.ndarray, str]:
    return _forward(model.eval(), images, batch_size), "running"


def _batch(model: nn.Module, images: torch.Tensor, batch_size: int) -> tuple[np.ndarray, str]:
    if len(images) < 2:  # one site alone has no batch statistics
        return _running(model, images, batch_size)
    with batch_statistics(model):
        return _forward(model, images, batch_size), "batch"


def _adapted(model: nn.Module, images: torch.Tensor, batch_size: int) -> tuple[np.ndarray, str]:
    with adapted_statistics(model, images) as how:
        return _forward(model.eval(), images, batch_size), how


LOGITS = {"running": _running, "batch": _batch, "adapted": _adapted}


@torch.inference_mode()
def _forward(model: nn.Module, images: torch.Tensor, batch_size: int) -> np.ndarray:
    device = next(model.parameters()).device
    # Shuffled, so that every batch mixes treatments and controls; in parts of nearly equal size,
    # because a last batch of one image would have no statistics to speak of.
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    parts = torch.tensor_split(order, parts_of(len(images), batch_size))
    logits = torch.cat([model(images[part].to(device)).float().cpu() for part in parts])
    return logits[order.argsort()].numpy()

"""The images of one plate on their way through a network, under each kind of statistics and in each view."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn

from cellsignal.data.images.reader import read_sites
from cellsignal.errors import InputError
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import SiteImages, num_batches, scope_rows
from cellsignal.learn.networks.batchnorm import (
    NO_LAYERS,
    REFINEMENTS,
    STATISTICS,
    adapted_pass,
    batch_statistics,
    batchnorm_layers,
    exact_pixels,
)
from cellsignal.learn.networks.classifier import ModelConfig
from cellsignal.learn.networks.covariates import CONTROLS, SideInputs, plate_means
from cellsignal.tasks import RXRX1

RUNNING_BATCH = 64  # on a CPU, where larger ones are no faster; any size gives the same answer
# The symmetries of the square, as quarter turns and whether mirrored: the first 1, 2, 4 or 8 of them are a group,
# so that an answer averaged over them does not hang on how the plate lay under the microscope.
VIEWS = [(0, False), (2, False), (1, False), (3, False), (0, True), (2, True), (1, True), (3, True)]
Answer = TypeVar("Answer")
BESIDE = ("views", "embeddings")  # what one kind of statistics can give beside its log-probabilities


@dataclass(frozen=True)
class Controls:
    """Control sites of one scope: their images, their moments where the network wants them, and whose plates they tell of.

    `images`: uint8[M, C, H, W]; `moments`: float[M, C, 2] or None; `positive`: bool[M], the others are negative controls;
    `plates`: int64[M]; `asked`: int64[N], the plate of each site that is scored.
    """

    images: np.ndarray
    moments: torch.Tensor | None
    positive: torch.Tensor
    plates: torch.Tensor
    asked: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def features(self, model: nn.Module, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Features of some of the sites, [n, F]."""
        moments = None if self.moments is None else self.moments[rows]
        return model.embed(model.prepare(torch.from_numpy(self.images[rows]).to(device), moments))

    def means(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean features of the positive and of the negative controls of each asked site's plate, two of [N, F]."""
        return plate_means(features, positive=self.positive, plates=self.plates, asked=self.asked)


class PlateInference:
    """Sends the images of one scope (a plate, say) through a network, and counts them.

    `images`: uint8[N, C, H, W], moved to the network's device once where they fit there, and batch
    by batch otherwise; the network scales them. `told`: what else the network's call wants of each site
    (`learn.told.Told`), by name. `controls`: the control sites to which a network with control
    features refers. `embed`: the features of a site stand behind its log-probabilities. `view`: which of VIEWS the network
    sees. `sent`: images that went through the network so far.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, *, told: Mapping[str, torch.Tensor] = {},
                 controls: Controls | None = None, precision: str = "auto") -> None:
        self.model, self.precision, self.sent = model.eval(), precision, 0
        self.view, self.embed = 0, False
        self.device = next(model.parameters()).device
        self.images = _on_device(torch.from_numpy(images), self.device)
        self.told, self.controls, self.references = dict(told), controls, None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Pixels of one image, H*W."""
        return self.images.shape[-2] * self.images.shape[-1]

    @torch.inference_mode()
    def __call__(self, batches: Sequence[np.ndarray]) -> torch.Tensor:
        """Log-probabilities float32[N, classes (+ features)] in the order of the images; `batches` hold row numbers."""
        order = torch.from_numpy(np.concatenate(batches))
        return torch.cat([self._batch(torch.from_numpy(rows)) for rows in batches])[order.argsort()]

    def _batch(self, rows: torch.Tensor) -> torch.Tensor:
        told = {name: tensor[rows].to(self.device) for name, tensor in self.told.items()}
        if self.references is not None:
            told["references"] = tuple(mean[rows.to(self.device)] for mean in self.references)
        images = apply_view(self.images[rows.to(self.images.device)].to(self.device), self.view)
        with devices.autocast(self.device, self.precision):
            answer = self._embedded(images, **told) if self.embed else self.model(images, **told).float().log_softmax(1)
        self.sent += len(rows)
        return answer.cpu()

    def _embedded(self, images: torch.Tensor, *, moments: torch.Tensor | None = None, **told: torch.Tensor) -> torch.Tensor:
        features = self.model.embed(self.model.prepare(images, moments))
        return torch.cat([self.model.classify(features, **told).float().log_softmax(1), features.float()], dim=1)

    @torch.inference_mode()
    def refer(self) -> None:
        """Look at the control sites anew, under the statistics that normalise now; without any nothing happens.

        They are batches of their own, as in training: the sites that are asked for are normalised as if they were not there.
        """
        if self.controls is not None:
            halve_on_out_of_memory(self._refer, exact_pixels(self.device) // self.pixels, most=len(self.controls))

    def _refer(self, size: int) -> None:
        chunks = shuffled_batches(len(self.controls), size, key=0)
        with devices.autocast(self.device, self.precision):
            features = torch.cat([self.controls.features(self.model, rows, self.device).float() for rows in chunks])
        self.sent += len(self.controls)
        self.references = self.controls.means(features[np.concatenate(chunks).argsort()])


def apply_view(images: torch.Tensor, view: int) -> torch.Tensor:
    """Images [N, C, H, W] as one of VIEWS shows them."""
    turns, mirrored = VIEWS[view]
    return torch.rot90(images.flip(3) if mirrored else images, turns, (2, 3))


def inference_answers(passes: PlateInference, kinds: Collection[str], *, basis: str = "adapted", views: int = 1, classes: int,
            **knobs: Any) -> Iterator[tuple[str, np.ndarray, str]]:
    """(kind, float32[N, classes or features], how statistics were gathered) for each of `kinds` of one scope.

    `kinds`: of statistics; and on the grounds of one of these, `basis`, "views": the mean of the log-probabilities over
    so many of VIEWS, each normalised by the plate as it shows it, and "embeddings": features in the first view. `knobs`:
    those of `log_probabilities`. What is asked for beside `basis` costs no pass twice.
    """
    for kind in STATISTICS:
        mine = [each for each in BESIDE if each in kinds and kind == basis]
        if kind not in kinds and not mine:
            continue
        passes.embed = "embeddings" in mine
        first, how = log_probabilities(passes, kind, **knobs)
        passes.embed = False
        if kind in kinds:
            yield kind, first[:, :classes], how
        if "embeddings" in mine:
            yield "embeddings", first[:, classes:], how
        if "views" in mine:
            yield "views", _mean_view(passes, kind, first[:, :classes], views, **knobs), how


def _mean_view(passes: PlateInference, kind: str, first: np.ndarray, views: int, **knobs: Any) -> np.ndarray:
    """The mean over the first so many VIEWS, of which the answer in the very first is there already."""
    total = first.copy()
    for passes.view in range(1, views):
        total += log_probabilities(passes, kind, **knobs)[0]
    passes.view = 0
    return total / views


def _on_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the device, unless they would take more than a quarter of its free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return images
    return images.to(device)


def log_probabilities(passes: PlateInference, statistics: str, *, batch_sizes: Sequence[int] = (32,),
                      refinements: int = REFINEMENTS) -> tuple[np.ndarray, str]:
    """Log-probabilities float32[N, classes] of the images of one scope, and how statistics were gathered.

    `statistics`: "running"; "batch": a pass for each of `batch_sizes`, each freshly shuffled, their
    log-probabilities averaged (Brodt's "infinite bagging": 32 to 128); "adapted": normalised by the
    whole scope, in one pass where it fits the memory as one batch, else with `refinements`
    (`adapted_pass`). One site alone has no statistics and gets the running ones; a network without batch normalisation
    has one answer, which is computed in one pass.
    """
    if statistics == "running" or len(passes) < 2 or not batchnorm_layers(passes.model):
        alone = "running" if statistics == "running" else "running, for want of a second site"
        how = alone if batchnorm_layers(passes.model) else NO_LAYERS
        passes.refer()
        size = RUNNING_BATCH if passes.device.type == "cpu" else exact_pixels(passes.device) // passes.pixels
        return halve_on_out_of_memory(lambda size: passes(shuffled_batches(len(passes), size, key=0)), size, most=len(passes)).numpy(), how
    with batch_statistics(passes.model):
        passes.refer()
    if statistics == "batch":
        return _batch(passes, batch_sizes).numpy(), "batch"
    size = exact_pixels(passes.device) // passes.pixels
    answer, how = halve_on_out_of_memory(lambda size: _adapted(passes, size, refinements), size, most=len(passes))
    return answer.numpy(), how


def shuffled_batches(count: int, size: int, *, key: int) -> list[np.ndarray]:
    """Rows in random order, so that batches mix treatments and controls, in parts of nearly equal size.

    A last batch of one image would have no statistics to speak of.
    """
    return np.array_split(np.random.default_rng(key).permutation(count), num_batches(count, size))


def _batch(passes: PlateInference, sizes: Sequence[int]) -> torch.Tensor:
    count, total = len(passes), 0.0
    with batch_statistics(passes.model):
        for key, size in enumerate(sizes):
            if num_batches(count, size) > 1:
                total = total + passes(shuffled_batches(count, size, key=key))
        # All sizes that make one batch of the whole give one answer: computed once, it counts for each.
        if whole := sum(num_batches(count, size) == 1 for size in sizes):
            total = total + whole * passes([np.arange(count)])
    return total / len(sizes)


def halve_on_out_of_memory(attempt: Callable[[int], Answer], size: int, *, most: int) -> Answer:
    """What `attempt(size)` answers for the largest batch that the memory holds: of `size` images, or half as many, and so on down to 2."""
    size = max(2, size)
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError:
            if size <= 2:
                raise
        size = max(2, min(size, most) // 2)
        torch.cuda.empty_cache()


def _adapted(passes: PlateInference, size: int, refinements: int) -> tuple[torch.Tensor, str]:
    batches = shuffled_batches(len(passes), size, key=0)
    if len(batches) == 1:
        # A batch that holds the whole plate is normalised by the plate: its answer is the answer.
        with batch_statistics(passes.model):
            return passes(batches), "exact"
    return adapted_pass(passes.model, lambda: passes(batches), refinements=refinements)


# The sites of one experiment through a network: log-probabilities and embeddings of its treatment wells.


Read = Callable[[pd.DataFrame], np.ndarray]  # the images of some sites, uint8[N, C, H, W]


def predict_experiment(
    model: nn.Module, card: ModelConfig, root: Path, sites: pd.DataFrame, *, statistics: Sequence[str] = STATISTICS,
    basis: str = "adapted", views: int = 1, scope: str = "plate", batch_sizes: Sequence[int] = (32,),
    refinements: int = REFINEMENTS, precision: str = "auto", read: Read | None = None,
) -> dict[str, tuple[pd.DataFrame, dict]]:
    """Scores of one experiment's treatment wells, and how they came about, by kind of statistics.

    Beside kinds of statistics, `statistics` may name "views" and "embeddings", which rest on the kind `basis`
    (`passes.answers`). Images are decoded once for all and one scope at a time, which bounds the memory: a plate of
    512 px is 1 GB; `read` gives those of some sites where they lie elsewhere than below `root`. Scores have index id_code
    and one column per class number, float32; embeddings one column per feature. The facts: {"gathered": {how: number
    of scopes}, "sites", "images": sent through the network, "seconds"}, the seconds without reading.
    """
    read = read or (lambda mine: read_sites(root, mine))
    controls, sites = _controls(sites, card), sites_in_statistics(sites, card)
    told, classes = SideInputs(model, root, sites), len(card.class_numbers)
    knobs = {"basis": basis, "views": views, "batch_sizes": batch_sizes, "refinements": refinements, "classes": classes}
    found: dict[str, np.ndarray] = {}
    facts = {kind: {"gathered": {}, "sites": len(sites), "images": 0, "seconds": 0.0} for kind in statistics}
    for rows in scope_rows(sites, scope):
        mine = sites.iloc[rows]
        referred = _referred(model, root, controls, mine, read=read) if card.control_features else None
        passes = PlateInference(model, read(mine), told=told[rows], controls=referred, precision=precision)
        sent, started = 0, time.perf_counter()
        for kind, answer, how in inference_answers(passes, statistics, **knobs):
            found.setdefault(kind, np.empty((len(sites), answer.shape[1]), np.float32))[rows] = answer
            _count(facts[kind], how, images=passes.sent - sent, seconds=time.perf_counter() - started)
            sent, started = passes.sent, time.perf_counter()
    return {kind: (_wells(found[kind], sites, card, kind), facts[kind]) for kind in statistics}


def score_images(model: nn.Module, card: ModelConfig, data: SiteImages, controls: SiteImages | None = None, *, scope: str = "plate",
                 precision: str = "auto") -> pd.DataFrame:
    """Scores under adapted statistics of the treatment wells of `data`, whose images may be in memory.

    `controls`: control sites, of which those of the experiments in `data` count where their kind filled the training
    batches, or are referred to. Index id_code, columns class numbers, log-probabilities float32. Weights, running
    statistics and random numbers stay as they are.
    """
    sets = [data] if controls is None else [data, controls]
    sites = pd.concat([one.sites for one in sets]).drop_duplicates("stem")
    sites = sites[sites["experiment"].isin(data.sites["experiment"])]
    ways = {"statistics": ("adapted",), "scope": scope, "precision": precision, "read": _reader(sets)}
    tables = [predict_experiment(model, card, data.root, mine, **ways)["adapted"][0]
              for _, mine in sites.groupby("experiment", sort=True)]
    return pd.concat(tables)


def well_scores(logits: np.ndarray, id_codes: pd.Series, *, class_numbers: list[int]) -> pd.DataFrame:
    """Mean log-probabilities over the sites of each treatment well, made to sum to one again.

    Classes of controls are left out, and the rest sums to one without them: no treatment well holds a control.
    """
    columns = [place for place, number in enumerate(class_numbers) if number not in RXRX1.controls] or range(len(class_numbers))
    table = pd.DataFrame(log_softmax(logits[:, columns], axis=1), columns=[class_numbers[place] for place in columns])
    mean = table.groupby(id_codes.to_numpy(), sort=False).mean()
    mean[:] = log_softmax(mean.to_numpy(), axis=1)
    return mean.astype(np.float32).rename_axis("id_code")


def sites_in_statistics(sites: pd.DataFrame, card: ModelConfig) -> pd.DataFrame:
    """The sites whose wells are of a kind that filled the training batches."""
    # Statistics must come from that mixture of wells: on plates of 24 treatment and 62 control
    # sites, adding controls to the statistics of networks that were trained without them took
    # the accuracy from 0.70 to 0.49.
    return sites[sites["well_type"].isin(card.well_types)].reset_index(drop=True)


def _wells(values: np.ndarray, sites: pd.DataFrame, card: ModelConfig, kind: str) -> pd.DataFrame:
    """From the sites to the treatment wells."""
    treatment = (sites["well_type"] == "treatment").to_numpy()
    id_codes = sites.loc[treatment, "id_code"]
    if kind == "embeddings":
        table = pd.DataFrame(values[treatment])
        return table.groupby(id_codes.to_numpy(), sort=False).mean().astype(np.float32).rename_axis("id_code")
    return well_scores(values[treatment], id_codes, class_numbers=card.class_numbers)


def _count(facts: dict[str, Any], how: str, *, images: int, seconds: float) -> None:
    facts["images"] += images
    facts["seconds"] += seconds
    facts["gathered"][how] = facts["gathered"].get(how, 0) + 1


def _controls(sites: pd.DataFrame, card: ModelConfig) -> pd.DataFrame:
    """The control sites that a network with control features refers to; none for others."""
    return sites[sites["well_type"].isin(CONTROLS) & card.control_features].reset_index(drop=True)


def _referred(model: nn.Module, root: Path, controls: pd.DataFrame, asked: pd.DataFrame, *, read: Read) -> Controls:
    """The controls on the plates of `asked`."""
    mine = controls[controls["plate"].isin(asked["plate"])].reset_index(drop=True)
    if len(mine) < 2:
        raise InputError(f"{len(mine)} control sites, and this network refers to controls", where=asked["experiment"].iloc[0],
                         cure="add the plate's controls to the tables, or train without control_features")
    moments = SideInputs(model, root, mine)[np.arange(len(mine))].get("moments")
    positive = torch.from_numpy((mine["well_type"] == CONTROLS[0]).to_numpy(copy=True))
    plates, wanted = (torch.from_numpy(table["plate"].to_numpy(np.int64, copy=True)) for table in (mine, asked))
    return Controls(read(mine), moments, positive, plates, wanted)


def _reader(sets: Sequence[SiteImages]) -> Read:
    """Images from memory where all sets keep theirs there, else from disk, many at once."""
    if any(one.cached is None for one in sets):
        return lambda mine: read_sites(sets[0].root, mine, channels=sets[0].channels)
    places = {stem: (one, row) for one in sets for row, stem in enumerate(one.stems)}
    return lambda mine: np.stack([one.image(row) for one, row in map(places.__getitem__, mine["stem"])])

"""Inference on the images of a plate, under each kind of statistics and in several views."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch import nn

from cellsignal.data.images.reader import read_sites
from cellsignal.decide.predict.plate_statistics import plate_choices
from cellsignal.decide.settings import PLATE_STATISTICS, STATISTICS
from cellsignal.errors import InputError
from cellsignal.learn import devices
from cellsignal.learn.batches.dataset import SiteImages, num_batches, scope_rows
from cellsignal.learn.networks.batchnorm import (
    NO_BATCHNORM,
    REFINEMENTS,
    adapted_pass,
    batch_statistics,
    batchnorm_layers,
    gathered_statistics,
    max_batch_pixels,
    normalised_by,
    recorded_moments,
)
from cellsignal.learn.networks.classifier import ModelConfig
from cellsignal.learn.networks.covariates import CONTROL_TYPES, SideInputs, plate_means
from cellsignal.tasks import RXRX1

RUNNING_BATCH = 64  # sites per batch on a CPU, where larger batches are no faster; the size does not change the scores
# The symmetries of the square, as rotations by 90 degrees and whether flipped. The first 1, 2, 4 or 8 of them are a group, so
# that an average over them does not depend on the orientation of the plate under the microscope.
VIEWS = [(0, False), (2, False), (1, False), (3, False), (0, True), (2, True), (1, True), (3, True)]
Output = TypeVar("Output")
CONTROL_STATISTICS = ("plate_with_controls", "controls", "auto")  # of the controls too, whatever the training batches held
EXTRA_OUTPUTS = ("views", "embeddings")  # further outputs, computed under one kind of statistics


@dataclass(frozen=True)
class InferenceOptions:
    """How the scores of an experiment are computed from its images."""

    scope: str = "plate"
    batch_sizes: tuple[int, ...] = (32,)
    refinements: int = REFINEMENTS
    precision: str = "auto"
    basis: str = "adapted"  # the kind of statistics for views and embeddings
    views: int = 1
    embed_controls: bool = False  # whether controls have embeddings too

    def identity(self, kind: str) -> dict[str, Any]:
        """The options that matter for one kind of scores alone."""
        if kind in EXTRA_OUTPUTS:
            own = {"views": {"views": self.views}, "embeddings": {"controls": True} if self.embed_controls else {}}
            return {"basis": self.basis, **self.identity(self.basis), **own[kind]}
        refinements = {"refinements": self.refinements}
        return {"batch": {"batch_sizes": list(self.batch_sizes)}, **dict.fromkeys(("adapted", *CONTROL_STATISTICS), refinements)}.get(kind, {})

    @property
    def uses_controls(self) -> bool:
        """Whether controls may take part in the statistics of the basis, whatever the training batches held."""
        return self.basis in CONTROL_STATISTICS

    def num_passes(self, kinds: Collection[str], *, adapts: bool = True) -> int:
        """The largest number of passes of an image for some kinds of scores; `adapts`: the network has batch normalisation."""
        passes = {"batch": len(self.batch_sizes), "adapted": 1 + self.refinements, "running": 1, **dict.fromkeys(CONTROL_STATISTICS, 2 + self.refinements)}
        passes = passes if adapts else dict.fromkeys(passes, 1)
        statistics = {self.basis if kind in EXTRA_OUTPUTS else kind for kind in kinds}
        return sum(map(passes.__getitem__, statistics)) + (self.views - 1) * passes[self.basis] * ("views" in kinds)


@dataclass(frozen=True)
class ControlSites:
    """The control sites of one scope: images, channel statistics, kinds and plates.

    `images`: uint8[M, C, H, W]; `channel_statistics`: float[M, C, 2], or None if the network needs none; `positive`: bool[M], the others
    are negative controls; `plates`: int64[M]; `scored_plates`: int64[N], the plate of each site that is scored.
    """

    images: np.ndarray
    channel_statistics: torch.Tensor | None
    positive: torch.Tensor
    plates: torch.Tensor
    scored_plates: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def features(self, model: nn.Module, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        """Features of the sites `rows`, [n, F]."""
        channel_statistics = None if self.channel_statistics is None else self.channel_statistics[rows]
        return model.embed(model.prepare(torch.from_numpy(self.images[rows]).to(device), channel_statistics))

    def means(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean features of the positive and of the negative controls on the plate of each scored site, two of [N, F]."""
        return plate_means(features, positive=self.positive, control_plates=self.plates, site_plates=self.scored_plates)


class PlateInference:
    """Inference on the images of one scope, such as a plate.

    `images`: uint8[N, C, H, W], moved to the network's device at once if they fit there, otherwise batch by batch; the network
    scales them. `side_inputs`: the other arguments of the network's call for each site (`covariates.SideInputs`), by name.
    `controls`: the control sites for a network with control features. `control_rows`: the rows of controls for statistics of these;
    rows from `count` on are such controls only, and are not scored. `embed`: append the features of a site to its
    log-probabilities; with `embed_controls` also rows for those controls, normalised like the others. `view`: the index in VIEWS of the view. `images_sent`: the number of forward passes of an image so far.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, *, side_inputs: Mapping[str, torch.Tensor] = {},
                 controls: ControlSites | None = None, precision: str = "auto", count: int | None = None,
                 control_rows: np.ndarray = np.arange(0), embed_controls: bool = False) -> None:
        self.count, self.control_rows, self.embed_controls = len(images) if count is None else count, control_rows, embed_controls
        self.model, self.precision, self.images_sent = model.eval(), precision, 0
        self.view, self.embed = 0, False
        self.device = next(model.parameters()).device
        self.images = _move_images(torch.from_numpy(images), self.device)
        self.side_inputs, self.controls, self.references = dict(side_inputs), controls, None

    def __len__(self) -> int:
        return self.count

    @property
    def pixels(self) -> int:
        """Pixels of one image, H*W."""
        return self.images.shape[-2] * self.images.shape[-1]

    @torch.inference_mode()
    def __call__(self, batches: Sequence[np.ndarray]) -> torch.Tensor:
        """Log-probabilities float32[N, classes (+ features)] of the images in `batches`, which hold row numbers, in ascending order."""
        order = torch.from_numpy(np.concatenate(batches))
        return torch.cat([self._batch(torch.from_numpy(rows)) for rows in batches])[order.argsort()]

    @property
    def embeds_controls(self) -> bool:
        """Whether the output has rows for the controls that are not scored."""
        return self.embed and self.embed_controls and self.count < len(self.images)

    def with_controls(self, output: torch.Tensor, size: int) -> torch.Tensor:
        """The output of the scored rows and, if they are embedded, below it that of the controls, under the statistics that hold now."""
        rows = np.arange(self.count, len(self.images))
        return torch.cat([output, self(np.array_split(rows, -(-len(rows) // size)))]) if self.embeds_controls else output

    def _batch(self, rows: torch.Tensor) -> torch.Tensor:
        inputs = {name: tensor[rows].to(self.device) for name, tensor in self.side_inputs.items()}
        if self.references is not None:
            inputs["references"] = tuple(mean[rows.to(self.device)] for mean in self.references)
        images = apply_view(self.images[rows.to(self.images.device)].to(self.device), self.view)
        with devices.autocast(self.device, self.precision):
            output = self._with_features(images, **inputs) if self.embed else self.model(images, **inputs).float().log_softmax(1)
        self.images_sent += len(rows)
        return output.cpu()

    def _with_features(self, images: torch.Tensor, *, channel_statistics: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        features = self.model.embed(self.model.prepare(images, channel_statistics))
        return torch.cat([self.model.classify(features, **inputs).float().log_softmax(1), features.float()], dim=1)

    @torch.inference_mode()
    def update_references(self) -> None:
        """Compute the mean features of the controls, if there are any, under the current statistics.

        The controls are batches of their own, as in training, and do not change how the scored sites are normalised.
        """
        if self.controls is not None:
            halve_on_out_of_memory(self._update_references, max_batch_pixels(self.device) // self.pixels, largest=len(self.controls))

    def _update_references(self, size: int) -> None:
        batches = shuffled_batches(len(self.controls), size, key=0)
        with devices.autocast(self.device, self.precision):
            features = torch.cat([self.controls.features(self.model, rows, self.device).float() for rows in batches])
        self.images_sent += len(self.controls)
        self.references = self.controls.means(features[np.concatenate(batches).argsort()])


def apply_view(images: torch.Tensor, view: int) -> torch.Tensor:
    """Images [N, C, H, W] in one of VIEWS."""
    quarter_turns, flipped = VIEWS[view]
    return torch.rot90(images.flip(3) if flipped else images, quarter_turns, (2, 3))


def infer_statistics(inference: PlateInference, kinds: Collection[str], options: InferenceOptions = InferenceOptions(), *,
                     classes: int, auto: str = "adapted") -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield (kind, float32[N, classes or features], how statistics were gathered) for each of `kinds` of one scope.

    `auto`: the statistics that "auto" stands for in this scope.

    `kinds`: of statistics, and under the statistics `options.basis` "views", the mean log-probabilities over the first
    `options.views` of VIEWS, each normalised in its own view, and "embeddings", the features in the first view. Outputs that
    share a pass are computed together. With `inference.embed_controls` the embeddings have a row for each image, also of the controls.
    """
    ways = {"batch_sizes": options.batch_sizes, "refinements": options.refinements}
    basis = auto if options.basis == "auto" else options.basis
    for kind in PLATE_STATISTICS:  # "auto" is one of the others
        extra = [output for output in EXTRA_OUTPUTS if output in kinds and kind == basis]
        names = [name for name in (kind, "auto") if name in kinds and kind == (auto if name == "auto" else name)]
        if not names and not extra:
            continue
        inference.embed = "embeddings" in extra
        values, how = log_probabilities(inference, kind, **ways)
        inference.embed = False
        for name in names:
            yield name, values[:len(inference), :classes], how if name == kind else f"{kind}, {how}"
        if "embeddings" in extra:
            yield "embeddings", values[:, classes:], how
        if "views" in extra:
            total = values[:len(inference), :classes].copy()
            for inference.view in range(1, options.views):
                total += log_probabilities(inference, kind, **ways)[0]
            inference.view = 0
            yield "views", total / options.views, how


def _move_images(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The images on the device, unless they would take more than a quarter of its free memory."""
    if device.type == "cuda" and images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return images
    return images.to(device)


def log_probabilities(inference: PlateInference, statistics: str, *, batch_sizes: Sequence[int] = (32,),
                      refinements: int = REFINEMENTS) -> tuple[np.ndarray, str]:
    """Log-probabilities float32[N, classes] of the images of one scope, and how statistics were gathered.

    `statistics`: "running"; "batch": mean log-probabilities over one pass for each of `batch_sizes`, each newly shuffled (Brodt's
    "infinite bagging": 32 to 128); "adapted": the statistics of the whole scope, in one pass if it fits in memory as one batch,
    otherwise with `refinements` (`adapted_pass`); "plate_with_controls": with the controls; "controls": of these alone. A single site has no statistics
    of its own and gets the running ones; a network without batch normalisation needs one pass for any kind.
    """
    if statistics == "running" or (len(inference) < 2 and statistics not in CONTROL_STATISTICS) or not batchnorm_layers(inference.model):
        how = "running" if statistics == "running" else "running, for a single site"
        how = how if batchnorm_layers(inference.model) else NO_BATCHNORM
        inference.update_references()
        size = RUNNING_BATCH if inference.device.type == "cpu" else max_batch_pixels(inference.device) // inference.pixels
        output = halve_on_out_of_memory(
            lambda size: inference.with_controls(inference(shuffled_batches(len(inference), size, key=0)), size), size, largest=len(inference))
        return output.numpy(), how
    with batch_statistics(inference.model):
        inference.update_references()
    if statistics == "batch":
        return _batch_statistics(inference, batch_sizes).numpy(), "batch"
    size = max_batch_pixels(inference.device) // inference.pixels
    gather = {"adapted": _adapted_statistics, "plate_with_controls": _statistics_with_controls, "controls": _control_statistics}[statistics]
    output, how = halve_on_out_of_memory(lambda size: gather(inference, size, refinements), size, largest=len(inference.images))
    return output.numpy(), how


def shuffled_batches(count: int, size: int, *, key: int) -> list[np.ndarray]:
    """Rows in random order, so that batches mix treatments and controls, in batches of nearly equal size.

    No batch has a single image, which would have no meaningful statistics.
    """
    return np.array_split(np.random.default_rng(key).permutation(count), num_batches(count, size))


def _batch_statistics(inference: PlateInference, sizes: Sequence[int]) -> torch.Tensor:
    count = len(inference)

    def mean_of_passes() -> torch.Tensor:
        total = 0.0
        for key, size in enumerate(sizes):
            if num_batches(count, size) > 1:
                total = total + inference(shuffled_batches(count, size, key=key))
        # All sizes with a single batch give the same output: it is computed once, and counts for each of them.
        if num_single := sum(num_batches(count, size) == 1 for size in sizes):
            total = total + num_single * inference([np.arange(count)])
        return total / len(sizes)

    return _in_own_batches(inference, mean_of_passes, max(sizes))


def _in_own_batches(inference: PlateInference, passes: Callable[[], torch.Tensor], size: int) -> torch.Tensor:
    """The output of passes in which each batch is normalised by itself; controls that are not scored, by the moments of all batches."""
    if not inference.embeds_controls:
        with batch_statistics(inference.model):
            return passes()
    with batch_statistics(inference.model), recorded_moments(inference.model) as moments:
        output = passes()
    with normalised_by(inference.model, moments):
        return inference.with_controls(output, size)


def halve_on_out_of_memory(attempt: Callable[[int], Output], size: int, *, largest: int) -> Output:
    """The output of `attempt(size)`, where `size` (images in a batch, at most `largest`) is halved down to 2 while memory runs out."""
    size = max(2, size)
    while True:
        try:
            return attempt(size)
        except torch.OutOfMemoryError:
            if size <= 2:
                raise
        size = max(2, min(size, largest) // 2)
        torch.cuda.empty_cache()


def _adapted_statistics(inference: PlateInference, size: int, refinements: int) -> tuple[torch.Tensor, str]:
    batches = shuffled_batches(len(inference), size, key=0)
    if len(batches) == 1:
        # A batch that holds the whole plate is normalised by the plate.
        return _in_own_batches(inference, lambda: inference(batches), size), "exact"
    with gathered_statistics(inference.model, lambda: inference(batches), refinements=refinements) as (output, how):
        return inference.with_controls(output, size), how


def _statistics_with_controls(inference: PlateInference, size: int, refinements: int) -> tuple[torch.Tensor, str]:
    batches = shuffled_batches(len(inference.images), size, key=0)
    if len(batches) == 1:
        with batch_statistics(inference.model):
            output, how = inference(batches), "exact"
    else:
        output, how = adapted_pass(inference.model, lambda: inference(batches), refinements=refinements)
    return (output if inference.embeds_controls else output[:len(inference)]), how


def _control_statistics(inference: PlateInference, size: int, refinements: int) -> tuple[torch.Tensor, str]:
    controls = [inference.control_rows[rows] for rows in shuffled_batches(len(inference.control_rows), size, key=0)]
    refinements = refinements if len(controls) > 1 else 0
    with gathered_statistics(inference.model, lambda: inference(controls), refinements=refinements) as (_, how):
        output = inference(shuffled_batches(len(inference), size, key=0))
        return inference.with_controls(output, size), how if refinements else "exact"


# The sites of one experiment: log-probabilities and embeddings of its treatment wells.


ReadSites = Callable[[pd.DataFrame], np.ndarray]  # reads the images of sites, uint8[N, C, H, W]


def predict_experiment(
    model: nn.Module, config: ModelConfig, root: Path, sites: pd.DataFrame, *, kinds: Sequence[str] = STATISTICS,
    options: InferenceOptions = InferenceOptions(), read: ReadSites | None = None,
) -> dict[str, tuple[pd.DataFrame, dict]]:
    """Scores of one experiment's treatment wells, and how they were computed, for each of `kinds` (see `infer_statistics`).

    Images are read once for all kinds and one scope at a time, which bounds the memory: a plate of 512 px is 1 GB. `read`:
    reads the images of sites that do not lie below `root`. Scores have index id_code and one column per class number, float32;
    embeddings have one column per feature. The second part is {"gathered": {how: number of scopes}, "sites", "images": the
    number of forward passes of an image, "seconds": without reading}, and for "auto" "plates": {plate: which statistics, and why}.
    """
    read = read or (lambda some_sites: read_sites(root, some_sites))
    controls, sites = sites[sites["well_type"].isin(CONTROL_TYPES)].reset_index(drop=True), statistics_sites(sites, config)
    choices = plate_choices(sites, controls, config, scope=options.scope) if "auto" in (*kinds, options.basis) else []
    side_inputs, classes = SideInputs(model, root, sites), len(config.class_numbers)
    values: dict[str, np.ndarray] = {}
    features: list[pd.DataFrame] = []
    options = replace(options, embed_controls=options.embed_controls and "embeddings" in kinds)
    facts = {kind: {"gathered": {}, "sites": len(sites), "images": 0, "seconds": 0.0} for kind in kinds}
    for number, rows in enumerate(scope_rows(sites, options.scope)):
        scope_sites = sites.iloc[rows]
        auto, reason = choices[number] if choices else ("adapted", "")
        plate_controls = _plate_controls(model, root, controls, scope_sites, read=read) if config.control_features else None
        ways = {auto if kind == "auto" else kind for kind in (options.basis if kind in EXTRA_OUTPUTS else kind for kind in kinds)}
        in_statistics = not ways.isdisjoint(CONTROL_STATISTICS)
        further = _further_controls(controls, scope_sites, required=in_statistics) if in_statistics or options.embed_controls else controls.iloc[:0]
        inference = _with_controls(model, root, scope_sites, further, read=read, side_inputs=side_inputs[rows], features=plate_controls,
                                   options=options)
        sent, started = 0, time.perf_counter()
        for kind, output, how in infer_statistics(inference, kinds, options, classes=classes, auto=auto):
            if kind == "embeddings":
                features.append(pd.DataFrame(output, index=[*scope_sites["id_code"], *further["id_code"]][:len(output)]))
            else:
                values.setdefault(kind, np.empty((len(sites), output.shape[1]), np.float32))[rows] = output
            facts[kind]["images"] += inference.images_sent - sent
            facts[kind]["seconds"] += time.perf_counter() - started
            facts[kind]["gathered"][how] = facts[kind]["gathered"].get(how, 0) + 1
            if kind == "auto":
                facts[kind].setdefault("plates", {})[_scope_name(scope_sites)] = f"{auto}: {reason}"
            sent, started = inference.images_sent, time.perf_counter()
    tables = {kind: _treatment_scores(values[kind], sites, config) for kind in values}
    if features:
        tables["embeddings"] = _well_embeddings(pd.concat(features), sites, controls if options.embed_controls else controls.iloc[:0])
    return {kind: (tables[kind], facts[kind]) for kind in kinds}


def _scope_name(sites: pd.DataFrame) -> str:
    return ", ".join(map(str, sorted(sites["plate"].unique())))


def score_images(model: nn.Module, config: ModelConfig, data: SiteImages, controls: SiteImages | None = None, *, scope: str = "plate",
                 precision: str = "auto") -> pd.DataFrame:
    """Scores of the treatment wells of `data`, whose images may be cached in memory, under adapted statistics.

    `controls`: control sites. Those on the experiments of `data` count for the statistics if their kind was in the training
    batches, and serve a network with control features. Returns index id_code, columns class numbers, log-probabilities float32.
    Weights, running statistics and random numbers do not change.
    """
    sets = [data] if controls is None else [data, controls]
    sites = pd.concat([images.sites for images in sets]).drop_duplicates("stem")
    sites = sites[sites["experiment"].isin(data.sites["experiment"])]
    options, read = InferenceOptions(scope=scope, precision=precision), _site_reader(sets)
    tables = [predict_experiment(model, config, data.root, experiment_sites, kinds=("adapted",), options=options, read=read)["adapted"][0]
              for _, experiment_sites in sites.groupby("experiment", sort=True)]
    return pd.concat(tables)


def well_scores(logits: np.ndarray, id_codes: pd.Series, *, class_numbers: list[int]) -> pd.DataFrame:
    """Mean log-probabilities over the sites of each treatment well, normalised again.

    Classes of controls are left out before normalisation: no treatment well holds a control.
    """
    columns = [column for column, number in enumerate(class_numbers) if number not in RXRX1.controls] or range(len(class_numbers))
    table = pd.DataFrame(log_softmax(logits[:, columns], axis=1), columns=[class_numbers[column] for column in columns])
    mean = table.groupby(id_codes.to_numpy(), sort=False).mean()
    mean[:] = log_softmax(mean.to_numpy(), axis=1)
    return mean.astype(np.float32).rename_axis("id_code")


def statistics_sites(sites: pd.DataFrame, config: ModelConfig) -> pd.DataFrame:
    """The sites of the well types that were in the training batches."""
    # Statistics must come from the same mixture of wells: on plates of 24 treatment and 62 control sites, controls in the
    # statistics of networks that were trained without them reduced the accuracy from 0.70 to 0.49.
    return sites[sites["well_type"].isin(config.well_types)].reset_index(drop=True)


def _treatment_scores(values: np.ndarray, sites: pd.DataFrame, config: ModelConfig) -> pd.DataFrame:
    treatment = (sites["well_type"] == "treatment").to_numpy()
    return well_scores(values[treatment], sites.loc[treatment, "id_code"], class_numbers=config.class_numbers)


def _well_embeddings(features: pd.DataFrame, sites: pd.DataFrame, controls: pd.DataFrame) -> pd.DataFrame:
    """The mean over the sites of each treatment well in `sites` and of each well in `controls` that has features, in this order."""
    id_codes = pd.concat([sites.loc[sites["well_type"] == "treatment", "id_code"], controls["id_code"]]).unique()
    table = features[features.index.isin(id_codes)].groupby(level=0, sort=False).mean()
    return table.reindex(id_codes[pd.Index(id_codes).isin(table.index)]).astype(np.float32).rename_axis("id_code")


def _further_controls(controls: pd.DataFrame, sites: pd.DataFrame, *, required: bool) -> pd.DataFrame:
    """The controls on the plates of `sites` that are not among them; InputError if statistics are `required` of fewer than two controls."""
    controls = controls[controls["plate"].isin(sites["plate"])]
    if required and len(controls) < 2:
        plates = ", ".join(map(str, sorted(sites["plate"].unique())))
        raise InputError(f"{len(controls)} control sites for the statistics", where=f"{sites['experiment'].iloc[0]}, plate {plates}",
                         cure="add the plate's controls to the tables, or set prediction.statistics: auto")
    return controls[~controls["stem"].isin(sites["stem"])].reset_index(drop=True)


def _with_controls(model: nn.Module, root: Path, sites: pd.DataFrame, further: pd.DataFrame, *, read: ReadSites, side_inputs: Mapping[str, torch.Tensor],
                   features: ControlSites | None, options: InferenceOptions) -> PlateInference:
    """Inference on `sites`, with `further` controls for statistics or embeddings, which are not scored."""
    both = sites
    if len(further):
        both, more = pd.concat([sites, further]), SideInputs(model, root, further)[np.arange(len(further))]
        side_inputs = {name: torch.cat([tensor, more[name]]) for name, tensor in side_inputs.items()}
        features = features and replace(features, scored_plates=torch.from_numpy(both["plate"].to_numpy(np.int64, copy=True)))
    return PlateInference(model, read(both), side_inputs=side_inputs, controls=features, precision=options.precision, count=len(sites),
                          control_rows=np.flatnonzero(both["well_type"].isin(CONTROL_TYPES)), embed_controls=options.embed_controls)


def _plate_controls(model: nn.Module, root: Path, controls: pd.DataFrame, sites: pd.DataFrame, *, read: ReadSites) -> ControlSites:
    """The controls on the plates of `sites`."""
    controls = controls[controls["plate"].isin(sites["plate"])].reset_index(drop=True)
    if len(controls) < 2:
        raise InputError(f"{len(controls)} control sites, and this network has control features", where=sites["experiment"].iloc[0],
                         cure="add the plate's controls to the tables, or train without control_features")
    channel_statistics = SideInputs(model, root, controls)[np.arange(len(controls))].get("channel_statistics")
    positive = torch.from_numpy((controls["well_type"] == CONTROL_TYPES[0]).to_numpy(copy=True))
    plates, scored_plates = (torch.from_numpy(table["plate"].to_numpy(np.int64, copy=True)) for table in (controls, sites))
    return ControlSites(read(controls), channel_statistics, positive, plates, scored_plates)


def _site_reader(sets: Sequence[SiteImages]) -> ReadSites:
    """Reads images from memory if all sets are cached, otherwise many at once from disk."""
    if any(images.cached is None for images in sets):
        return lambda sites: read_sites(sets[0].root, sites, channels=sets[0].channels)
    locations = {stem: (images, row) for images in sets for row, stem in enumerate(images.stems)}
    return lambda sites: np.stack([images.image(row) for images, row in map(locations.__getitem__, sites["stem"])])

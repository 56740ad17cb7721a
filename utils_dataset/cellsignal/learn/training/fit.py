"""Training through one phase: epochs, checkpoints, and the weights that are selected."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, Literal

import numpy as np
import torch

from cellsignal import code_identity
from cellsignal.budget import Budget, DeadlineMonitor, TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import sha256
from cellsignal.learn.batches.augment import Augment
from cellsignal.learn.batches.dataset import (
    SCOPES,
    SiteImages,
    concat_images,
    epoch_batches,
    group_batches,
    images_fingerprint,
    virtual_batches,
)
from cellsignal.learn.devices import free_memory, pick_device, resolve_precision
from cellsignal.learn.history import HELD_OUT_PREFIX, held_out_value
from cellsignal.learn.networks.checkpointing import Checkpointing
from cellsignal.learn.networks.classifier import Classifier, ModelConfig, check_sha256, read_tensors, recorded_sha256
from cellsignal.learn.networks.standardise import stats_source
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.checkpoint import CODE_KEY, Checkpoint, TrainingState
from cellsignal.learn.training.distributed import ProcessGroup, SendMessage, current_group, launch, process_count
from cellsignal.learn.training.epoch import evaluate, train_epoch
from cellsignal.learn.training.losses import LOSSES
from cellsignal.learn.training.optim import set_learning_rate
from cellsignal.learn.training.phase import Phase
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1

# The sites of a training, and whether they suit the network and the phase.


@dataclass(frozen=True)
class TrainingSites:
    """The sites of a training.

    `held_out`: labelled sites on which epochs are scored. `controls`: the control sites of all plates, for a network with
    control features. `unlabelled`: sites that also train in the last `pseudo_label_epochs` epochs. `relabel(network, config,
    epoch)` is called before each of these and returns their class indices, int64[N], -1 for sites without a label. Its answers
    must depend on weights and epoch alone, and it must leave the network unchanged; whatever else they depend on belongs into
    the attribute `relabel.facts`, which enters the fingerprint. `held_out_statistics`: those under which epochs are scored, of the
    held-out sites' own scope or running ones.
    """

    train: SiteImages
    held_out: SiteImages | None = None
    controls: SiteImages | None = None
    unlabelled: SiteImages | None = None
    relabel: "Relabel | None" = None
    task: str = RXRX1.name
    held_out_statistics: Literal["batch", "running"] = "batch"

    def fingerprint(self, phase: Phase) -> dict[str, Any]:
        """Fingerprints of the sites that a phase depends on, by name."""
        uses_unlabelled = phase.training.pseudo_label_epochs > 0
        sets = {"train": self.train, "held_out": self.held_out, "controls": self.controls,
                "unlabelled": self.unlabelled if uses_unlabelled else None}
        fingerprints = {name: images_fingerprint(images) for name, images in sets.items() if images is not None and len(images)}
        fingerprints |= {"held_out_statistics": "running"} if self.held_out_statistics == "running" else {}
        return fingerprints | ({"relabel": getattr(self.relabel, "facts", {})} if uses_unlabelled else {})


def check_training(model: Classifier, sites: TrainingSites, phase: Phase) -> None:
    """Raise InputError, which names the phase, if the network or the sites lack what the phase's settings need."""
    loss, where, settings = phase.losses, f"phase {phase.name}", phase.training
    if loss.uses_cosines and model.settings.cosine_head == "none":
        raise InputError(f"the loss {settings.loss!r} needs cosines, and the network has no cosine head", where=where,
                         cure="build it with cosine_head: auxiliary or only, or take another loss")
    if loss.single_label and sites.train.multilabel:
        raise InputError(f"the loss {settings.loss!r} needs one label per site, and these sites have several", where=where,
                         cure="use bce, focal or lovasz")
    if settings.pseudo_label_epochs and (sites.relabel is None or sites.unlabelled is None or sites.train.multilabel):
        raise InputError("nothing assigns pseudo-labels here", where=where, cure="set pseudo_label_epochs: 0")
    if model.settings.control_features and (sites.controls is None or settings.batch_scope != "plate"):
        raise InputError("control features need the controls of each plate, and batches from one plate", where=where,
                         cure="use batch_scope: plate on data with controls, or control_features: false")


# Sites without labels, which train with the network's own answers as labels.


# From a network, its config and an epoch (from 0) to the class index of each unlabelled site, int64[N], -1 for sites that
# are not used. It depends on these three alone and leaves the network unchanged.
Relabel = Callable[[Classifier, ModelConfig, int], np.ndarray]
LABELLING_SECONDS = "labelling_seconds"  # key in a row of the history
MIN_LABELLING_EPOCHS = 2  # the first labelling is expected to take at least as long as this many epochs
TRAINING_COST = 3  # training on an image takes about as long as this many forward passes


class UnlabelledSites:
    """Unlabelled sites that train beside labelled ones; `relabel` labels them before each epoch (Lee 2013, "Pseudo-Label")."""

    def __init__(self, labelled: SiteImages, unlabelled: SiteImages, relabel: Relabel) -> None:
        self.labelled, self.relabel, self.all_sites = labelled, relabel, concat_images(labelled, unlabelled)

    def labelling_seconds(self, rows: Sequence[dict], *, epoch_seconds: float) -> float:
        """How long a labelling may take: the longest in `rows`, or, before the first one, an estimate from the length of an epoch.

        `relabel.images_per_labelling`, if there is such an attribute, says how many images pass through the network.
        """
        images = getattr(self.relabel, "images_per_labelling", 0)
        estimate = max(MIN_LABELLING_EPOCHS, images / (TRAINING_COST * len(self.labelled))) * epoch_seconds
        return max((row[LABELLING_SECONDS] for row in rows if LABELLING_SECONDS in row), default=estimate)

    def label(self, model: Classifier, config: ModelConfig, epoch: int, *, process_group: ProcessGroup, scope: str) -> tuple[SiteImages, np.ndarray]:
        """All sites with the labels of this epoch, and the rows that train: all labelled sites and those with a pseudo-label.

        The main process computes the labels, and all processes use them. A pseudo-labelled site that would be the only one
        of its scope, and so have no batch statistics, is left out.
        """
        count, known = len(self.all_sites) - len(self.labelled), len(self.labelled)
        labels = torch.zeros(count, dtype=torch.float64, device=process_group.device)
        if process_group.is_main_process:
            labels += torch.from_numpy(self.relabel(model.eval(), config, epoch).astype(np.float64)).to(labels)
        labels = (process_group.sum(labels) if process_group.size > 1 else labels).long().cpu().numpy()
        self.all_sites.labels = np.concatenate([self.labelled.labels, labels])
        rows = np.concatenate([np.arange(known), known + np.flatnonzero(labels >= 0)])
        if keys := SCOPES[scope]:
            scope_sizes = self.all_sites.sites.iloc[rows].groupby(keys)["stem"].transform("size").to_numpy()
            rows = rows[(scope_sizes > 1) | (rows < known)]
        return self.all_sites, rows


History = list[dict]
TIME_MARGIN = 1.1  # an epoch is expected to take at most this many times the longest of the recent ones
RECENT_EPOCHS = 5
PACKAGE_CODE = code_identity.package_code("learn")  # as imported: the files may change during a training


def fit(
    model: Classifier, sites: TrainingSites, phase: Phase, *, weights: Path, machine: MachineSettings = MachineSettings(),
    budget: Budget | None = None, resume_folders: Sequence[Path] = (), on_epoch: Callable[[History], None] = lambda history: None,
) -> History:
    """Train `model` through one phase; the selected weights end up in it and in the file `weights`.

    Selected are the weights of the best epoch on the held-out sites, or of the last epoch (phase.keep, and always without
    held-out sites). Held-out sites are normalised with the statistics of the held-out sites of their scope: of whole plates
    where whole experiments are held out, as test plates are predicted (Brodt's solution); of a part of each plate with a
    random split.

    An interrupted phase resumes after its last complete epoch, from a checkpoint beside `weights` or in one of the
    `resume_folders` (read-only folders of attached runs), and ends with the same weights bit for bit. A finished phase is not
    repeated while phase, sites, classes, initial weights (model.origin) and code are the same. The code is that of this
    package, of the notebook's cells so far, and of the objects passed in (augmentation, losses, relabel, user classes).
    Weights of other code are trained again, unless they are copies of those in `resume_folders`; one line reports either case.

    `machine.num_processes`: the number of training processes, 0 for one per GPU. Several processes share the batches of each
    step, through Hugging Face Accelerate, and learn what one process learns within float error. Without a virtual batch a step
    takes one batch of each process, so that more processes take fewer and larger steps; a phase keeps the number of batches per
    step that it started with. A `model` that several processes are to train must not have been on a GPU.
    `machine.compile`: torch.compile for the body. `machine.gradient_checkpointing`: less memory, more time, the same gradients
    (`networks.checkpointing`); when memory runs out, a step is repeated with more of it. With `phase.training.ema_decay` the averaged weights are scored, selected and used for labels.

    Returns, as model.history and in the JSON beside the weights, the rows of earlier phases and one row per epoch: phase,
    epoch, loss, accuracy (of the training batches), held_out_accuracy (None where not measured), learning_rate, seconds.
    Multi-label sites have macro_f1 and held_out_macro_f1 instead; epochs with pseudo-labels add pseudo_labels (their number)
    and labelling_seconds (a part of the seconds).

    Raises TimeSpent before an epoch that would end after the deadline of `budget` (the checkpoint is written, `weights` is
    not); InputError for incompatible arguments and for a loss that is not finite; StepFailed when one of several processes dies.
    """
    check_training(model, sites, phase)
    data, network = sites.train, model.settings
    optional = stats_source(data.root, network.standardise) | ({"compile": True} if machine.compile else {})
    checkpoint = Checkpoint(weights, fingerprint={
        **phase.model_dump(), **sites.fingerprint(phase), **optional, "precision": machine.precision, "network": network.classifier.model_dump(),
        "covariates": model.covariates, "class_numbers": data.class_numbers, "origin": model.origin, CODE_KEY: _training_code(model, sites, phase)})
    process_group, earlier_history = current_group(machine.device), list(model.history)
    is_main = process_group is None or process_group.is_main_process
    finished = _load_finished(model, checkpoint, earlier_history=earlier_history, write=is_main, resume_folders=resume_folders)
    if finished is not None:
        on_epoch(finished)
        return finished
    if is_main:
        checkpoint.copy_latest(resume_folders)
        if differences := checkpoint.local_code_differences():
            print(f"{weights.name}: its checkpoint was written by other code ({', '.join(differences)}); the training starts again")
    log = _TrainingLog(earlier_history, phase, on_epoch if is_main else lambda history: None, visible=is_main)
    unlabelled = UnlabelledSites(data, sites.unlabelled, sites.relabel) if phase.training.pseudo_label_epochs else None
    training = _PhaseTraining(model, sites, phase, machine, checkpoint, budget or Budget(), earlier_history, unlabelled)
    with log:
        if process_group is not None or (processes := process_count(machine.device, machine.num_processes)) == 1:
            training.run(process_group or ProcessGroup(device=pick_device(machine.device)), log.receive)
        else:
            launch(training.run, device=machine.device, processes=processes, on_message=log.receive)
            if not log.time_spent and _load_finished(model, checkpoint, earlier_history=earlier_history) is None:
                raise StepFailed(f"{phase.name}: the training processes left no weights")
    model.history = log.history
    if stopped_at := training.time_spent or log.time_spent:  # the latter from processes of their own
        raise TimeSpent(stopped_at)
    return log.history


@dataclass
class _PhaseTraining:
    """The training of one phase in one process, of perhaps several."""

    model: Classifier
    sites: TrainingSites
    phase: Phase
    machine: MachineSettings
    checkpoint: Checkpoint
    budget: Budget
    earlier_history: History
    unlabelled: UnlabelledSites | None
    time_spent: str = ""  # the epoch before which the time was over

    def run(self, process_group: ProcessGroup, send_message: SendMessage) -> None:
        """Train in this process. The main process sends {"resumed_epoch": row}, {"epoch": row} and {"time_spent": epoch}."""
        process_group.barrier()  # the checkpoint is in its place
        saved = self.checkpoint.load()
        process_group.barrier()  # nothing replaces it before all processes have read it
        if not process_group.all_equal(saved[1]["epoch"] if saved else 0):
            raise InputError("the training processes read different checkpoints", where=self.checkpoint.weights.parent,
                             cure="give all machines one run folder, on a disk that they share")
        send = send_message if process_group.is_main_process else lambda message: None
        checkpointing = checkpointed(self.model, self.sites.train, self.phase, self.machine, process_group)
        state = TrainingState(self.model.to(process_group.device), self.phase, self.checkpoint, machine=self.machine, process_group=process_group,
                              saved=saved, checkpointing=checkpointing)
        for row in state.rows:
            send({"resumed_epoch": row})
        if self._train_epochs(state, process_group, send):
            state.finish(self._model_config(), earlier_history=self.earlier_history)

    def _train_epochs(self, state: TrainingState, process_group: ProcessGroup, send_message: SendMessage) -> bool:
        """Train until the phase ends (True) or the time is over (False)."""
        durations = [row["seconds"] - row.get(LABELLING_SECONDS, 0.0) for row in state.rows]
        for epoch in range(first := len(state.rows), self.phase.training.epochs):
            started, expected = time.perf_counter(), max(durations[-RECENT_EPOCHS:], default=0.0)
            if self.phase.uses_pseudo_labels(epoch):
                # An estimate alone must not stop a session before its first epoch: the next session would have no more time.
                expected += self.unlabelled.labelling_seconds(state.rows, epoch_seconds=expected * (epoch > first))
            too_late = not self.budget.fits(TIME_MARGIN * expected)
            row = None if process_group.any(too_late) else self._train_epoch(state, process_group, epoch)
            if row is None:
                self.time_spent = f"{self.phase.name}, epoch {epoch} of {self.phase.training.epochs}"
                send_message({"time_spent": self.time_spent})
                return False
            state.end_epoch(row)
            send_message({"epoch": row})
            durations.append(time.perf_counter() - started - row.get(LABELLING_SECONDS, 0.0))
        return True

    def _train_epoch(self, state: TrainingState, process_group: ProcessGroup, epoch: int) -> dict | None:
        """Train and score one epoch; returns its row of the history, or None if it would have ended too late."""
        phase, started = self.phase, time.perf_counter()
        learning_rate = set_learning_rate(state.optimizer, phase.learning_rate(epoch))
        data, batches, labelling = self._epoch_batches(state, process_group, epoch)
        virtual = phase.training.virtual_batch
        steps = virtual_batches(batches, virtual) if virtual else group_batches(batches, state.batches_per_step)
        monitor = DeadlineMonitor(self.budget, len(steps)) if self.budget.deadline is not None else None
        row = train_epoch(state.trainer, data, steps, epoch=epoch, controls=self.sites.controls, deadline_monitor=monitor)
        if row is None:
            return None
        if not math.isfinite(row["loss"]):
            raise InputError(f"the loss is {row['loss']} in epoch {epoch + 1}", where=f"phase {phase.name}",
                             cure="lower training.learning_rate, or set machine.precision: fp32")
        row[HELD_OUT_PREFIX + data.metric] = evaluate(state.network, self.sites.held_out, scope=phase.training.batch_scope, machine=self.machine,
                                                      process_group=process_group, controls=self.sites.controls,
                                                      running=self.sites.held_out_statistics == "running")
        seconds = time.perf_counter() - started
        return {"phase": phase.name, "epoch": epoch + 1, **row, **labelling, "learning_rate": learning_rate, "seconds": seconds}

    def _epoch_batches(self, state: TrainingState, process_group: ProcessGroup, epoch: int) -> tuple[SiteImages, list[np.ndarray], dict[str, float]]:
        """The sites of an epoch, the rows of its batches, and the number of pseudo-labels and the seconds that they took, if any."""
        phase, data, labelling = self.phase, self.sites.train, {}
        settings, rows = phase.training, np.arange(len(data))
        if phase.uses_pseudo_labels(epoch):
            started = time.perf_counter()
            data, rows = self.unlabelled.label(state.network, self._model_config(), epoch, process_group=process_group, scope=settings.batch_scope)
            count = len(rows) - len(self.sites.train)
            labelling = {LABELLING_SECONDS: time.perf_counter() - started} | ({"pseudo_labels": count} if count else {})
        batches = epoch_batches(data.sites.iloc[rows], batch_size=settings.batch_size, scope=settings.batch_scope, seed=phase.seed,
                                epoch=epoch)
        return data, [rows[batch] for batch in batches], labelling

    def _model_config(self) -> ModelConfig:
        data = self.sites.train
        well_types = sorted(data.sites["well_type"].unique().tolist()) if "well_type" in data.sites else []
        return ModelConfig.from_model(self.model, class_numbers=data.class_numbers, well_types=well_types,
                                      scope=self.phase.training.batch_scope, task=self.sites.task)


def checkpointed(model: Classifier, data: SiteImages, phase: Phase, machine: MachineSettings, process_group: ProcessGroup) -> Checkpointing:
    """The gradient checkpointing of a phase: as `machine` says, or for "auto" with which, by estimate, it fits into the free memory."""
    setting = machine.gradient_checkpointing
    parts = _fitting_parts(model, data, phase, machine, process_group) if setting == "auto" else int(setting)
    return Checkpointing(model.body, setting, parts=parts, compiled=machine.compile)


def _fitting_parts(model: Classifier, data: SiteImages, phase: Phase, machine: MachineSettings, process_group: ProcessGroup) -> int:
    from cellsignal.learn.networks.memory import SMALL_BATCH_PIXELS, fitting_parts, training_memory

    training, device = phase.training, process_group.device
    size = max(phase.image_size(epoch) or max(data.shape[1:]) for epoch in (0, training.epochs - 1))
    batch_size = min(training.batch_size, len(data))
    if phase.trainable == "head" or batch_size * size**2 <= SMALL_BATCH_PIXELS:
        return 0
    facts = {"size": size, "channels": len(data.channels), "classes": model.classes, "precision": resolve_precision(device, machine.precision),
             "training": training, "batch_size": batch_size * (1 + model.settings.control_features)}
    def bytes_in(parts: int) -> int:
        memory = training_memory(model.settings.backbone, **facts, parts=parts)
        return memory.total if device.type == "cuda" else memory.tensors * process_group.size
    parts = fitting_parts(free_memory(device), batch_size, bytes_in)
    if parts and machine.compile:
        raise InputError("the memory does not hold a training batch", where="machine.compile", cure="set it to false, or lower training.batch_size")
    if parts:
        how = "gradient checkpointing" if parts == 1 else f"gradient checkpointing in {parts} parts of a batch"
        print(f"{phase.name}: {how}, because {bytes_in(0) / 1e9:.1f} GB would not fit into the free memory; the gradients are the same")
    return parts


class _TrainingLog:
    """The growing history, a progress bar, and the callback for each new epoch."""

    def __init__(self, earlier_history: History, phase: Phase, on_epoch: Callable[[History], None], *, visible: bool) -> None:
        self.history, self.on_epoch, self.time_spent = earlier_history, on_epoch, ""
        self.bar = progress_bar(total=phase.training.epochs, desc=phase.name, unit="epoch", disable=not visible)

    def receive(self, message: dict[str, Any]) -> None:
        """Record a message of `_PhaseTraining.run`: an epoch of an earlier session, a new one, or where the time was over."""
        self.time_spent = message.get("time_spent", "")
        if "resumed_epoch" in message:
            self.history = [*self.history, message["resumed_epoch"]]
            self.bar.initial = self.bar.n = self.bar.n + 1
        elif "epoch" in message:
            row = message["epoch"]
            self.history = [*self.history, row]
            values = {"loss": row["loss"], "held out": held_out_value(row)}
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in values.items() if value is not None}, refresh=False)
            self.bar.update()
            self.on_epoch(self.history)

    def __enter__(self) -> "_TrainingLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def _training_code(model: Classifier, sites: TrainingSites, phase: Phase) -> dict[str, Any]:
    """The identity of the code that trains, by part."""
    data, relabel = sites.train, sites.relabel
    losses = {name: LOSSES[name] for _, name in phase.losses.terms if name in LOSSES}
    augment = data.augment.describe(data.shape[1:]) if isinstance(data.augment, Augment) else data.augment
    arguments = {"augmentation": augment, "losses": losses, "model": type(model), "data": type(data),
                 "relabel": relabel if isinstance(relabel, FunctionType | MethodType | partial) else type(relabel)}
    rooms = code_identity.package_code("learn", "decide") if phase.training.pseudo_label_epochs else PACKAGE_CODE
    return {**rooms, **PACKAGE_CODE, "notebook": code_identity.notebook.code(), "given": code_identity.describe(arguments)}


def _load_finished(model: Classifier, checkpoint: Checkpoint, *, earlier_history: Sequence[dict], write: bool = True,
                   resume_folders: Sequence[Path] = ()) -> History | None:
    """Load the weights of a finished phase into `model` and return its history; None if it is not finished."""
    weights = checkpoint.weights
    history = finished_history(checkpoint, earlier_history=earlier_history, write=write, resume_folders=resume_folders)
    if history is not None:
        model.load_state_dict(read_tensors(weights))
        model.origin, model.history = recorded_sha256(Receipt.read(weights.with_suffix(".json"))), history
    return history


def finished_history(checkpoint: Checkpoint, *, earlier_history: Sequence[dict] = (), write: bool = True,
                     resume_folders: Sequence[Path] = ()) -> History | None:
    """The history of a finished phase with the weights and the fingerprint of `checkpoint`, or None.

    `earlier_history`: the rows that precede the phase's own, in the JSON too (`write`): other earlier phases may have ended
    with the very weights that this one started from. Weights of other code count if they are a copy of those in one of the
    `resume_folders`.
    """
    weights = checkpoint.weights
    try:
        receipt = Receipt.read(weights.with_suffix(".json"))
        check_sha256(weights, recorded_sha256(receipt))
        if not receipt.is_current(checkpoint.fingerprint) and not _uses_attached_weights(checkpoint, receipt, resume_folders, report=write):
            return None
        rows = receipt.details["history"]
        history = [*earlier_history, *rows[len(rows) - receipt.identity["training"]["epochs"]:]]
    except (InputError, KeyError, TypeError):  # absent or damaged: the phase is not finished
        return None
    if write and history != rows:
        replace(receipt, details={**receipt.details, "history": history}).write()
    return history


def _uses_attached_weights(checkpoint: Checkpoint, receipt: Receipt, resume_folders: Sequence[Path], *, report: bool) -> bool:
    """Whether finished weights of other code are used as they are; with `report` a line says which, or that they are trained again."""
    if not (differences := checkpoint.code_differences(receipt.identity)):
        return False
    name, code = checkpoint.weights.name, ", ".join(differences)
    for folder in resume_folders:
        path = Path(folder) / name
        if path.is_file() and sha256(path) == recorded_sha256(receipt):
            if report:
                print(f"{name}: taken up from {folder}, although other code ({code}) trained it; without that folder it is trained again")
            return True
    if report:
        print(f"{name}: trained by other code ({code}), so it is trained again (`cellsignal run --from weights` keeps the existing weights)")
    return False

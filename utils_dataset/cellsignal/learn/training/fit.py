"""Phases of training: epochs, checkpoints, the weights that are kept."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch

from cellsignal import code_identity
from cellsignal.budget import Budget, DeadlineMonitor, TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import sha256
from cellsignal.learn.batches.augment import Augment
from cellsignal.learn.batches.dataset import SCOPES, SiteImages, concat, epoch_batches, group_batches, sites_fingerprint, virtual_batches
from cellsignal.learn.devices import pick_device
from cellsignal.learn.networks.checkpointing import checkpoint_blocks as recomputed
from cellsignal.learn.networks.classifier import Classifier, ModelConfig, check_sha256, read_tensors, recorded_sha256
from cellsignal.learn.networks.standardise import stats_source
from cellsignal.learn.settings import MachineSettings
from cellsignal.learn.training.checkpoint import CODE, HELD_OUT, Checkpoint, TrainingState, held_out_value
from cellsignal.learn.training.distributed import ProcessGroup, Tell, current_group, launch, process_count
from cellsignal.learn.training.epoch import evaluate, train_epoch
from cellsignal.learn.training.losses import LOSSES
from cellsignal.learn.training.optim import set_learning_rate
from cellsignal.learn.training.phase import Phase
from cellsignal.progress_bars import progress_bar
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1

# What trains, and whether a network, its sites and a way of training go together.


@dataclass(frozen=True)
class TrainingSites:
    """The sites of a training.

    `held_out`: labelled sites that measure and choose. `controls`: the control sites of all plates, for a network with control
    features. `unlabelled`: sites that train in the last `pseudo_label_epochs` epochs too, those to which `relabel(network, card,
    epoch)`, called before each of these, gives a class: their indices, int64[N], -1 for none. It must be a function of weights and
    epoch alone and leave the network as it was; what else its answers depend on it may tell as `relabel.facts`, for the fingerprint.
    """

    train: SiteImages
    held_out: SiteImages | None = None
    controls: SiteImages | None = None
    unlabelled: SiteImages | None = None
    relabel: "Relabel | None" = None
    task: str = RXRX1.name

    def fingerprint(self, phase: Phase) -> dict[str, Any]:
        """What of the sites a phase depends on."""
        pseudo = phase.training.pseudo_label_epochs > 0
        sets = {"train": self.train, "held_out": self.held_out, "controls": self.controls, "unlabelled": self.unlabelled if pseudo else None}
        known = {name: sites_fingerprint(some.sites) for name, some in sets.items() if some is not None}
        return known | ({"relabel": getattr(self.relabel, "facts", {})} if pseudo else {})


def check_training(model: Classifier, sites: TrainingSites, phase: Phase) -> None:
    """Raise InputError, which names the phase, for a network or sites that lack what the phase's settings need."""
    losses, where, settings = phase.losses, f"phase {phase.name}", phase.training
    if losses.cosines and model.settings.cosine_head == "none":
        raise InputError(f"the loss {settings.loss!r} looks at cosines, and the network has no head for them", where=where,
                         cure="build it with cosine_head: auxiliary or only, or take another loss")
    if losses.one_label and sites.train.multilabel:
        raise InputError(f"the loss {settings.loss!r} asks for one label, and sites have several", where=where,
                         cure="use bce, focal or lovasz")
    if settings.pseudo_label_epochs and (sites.relabel is None or sites.unlabelled is None or sites.train.multilabel):
        raise InputError("nobody gives labels to sites without one", where=where, cure="set pseudo_label_epochs: 0")
    if model.settings.control_features and (sites.controls is None or settings.batch_scope != "plate"):
        raise InputError("control features need the controls of each plate, and batches from one plate", where=where,
                         cure="use batch_scope: plate on data with controls, or control_features: false")


# Sites without labels that train under labels of the network's own making.


# From a network, its card and an epoch (from 0) to the class index of each site without a label, int64[N], -1 where it
# stays unused: a function of these alone, which leaves the network as it was.
Relabel = Callable[[Classifier, ModelConfig, int], np.ndarray]
SECONDS = "labelling_seconds"  # in a row of the history
FIRST = 2  # epochs that a first labelling may last, at least
THERE_AND_BACK = 3  # a picture that trains is about so much work as so many that are only looked at


class UnlabelledSites:
    """The sites `data` beside others without labels, which `relabel` names anew before an epoch (Lee 2013, "Pseudo-Label")."""

    def __init__(self, data: SiteImages, others: SiteImages, relabel: Relabel) -> None:
        self.data, self.relabel, self.both = data, relabel, concat(data, others)

    def seconds(self, rows: Sequence[dict], ordinary: float) -> float:
        """How long naming all sites may last: as in the epochs of `rows` at worst, or, before the first, by an `ordinary` epoch.

        A `relabel` may tell how many pictures it looks at, as `images`.
        """
        guess = max(FIRST, getattr(self.relabel, "images", 0) / (THERE_AND_BACK * len(self.data))) * ordinary
        return max((row[SECONDS] for row in rows if SECONDS in row), default=guess)

    def labelled(self, model: Classifier, card: ModelConfig, epoch: int, *, world: ProcessGroup, scope: str) -> tuple[SiteImages, np.ndarray]:
        """All sites with the labels of this epoch, and the rows that train: those of the data and those newly named.

        The first process names, and all take its labels. Sites that would be alone in their scope, and so
        without batch statistics, are left out.
        """
        count = len(self.both) - len(self.data)
        labels = torch.zeros(count, dtype=torch.float64, device=world.device)
        if world.first:
            labels += torch.from_numpy(self.relabel(model.eval(), card, epoch).astype(np.float64)).to(labels)
        labels = (world.sum(labels) if world.size > 1 else labels).long().cpu().numpy()
        self.both.labels = np.concatenate([self.data.labels, labels])
        rows = np.concatenate([np.arange(len(self.data)), len(self.data) + np.flatnonzero(labels >= 0)])
        return self.both, self._in_company(rows, scope)

    def _in_company(self, rows: np.ndarray, scope: str) -> np.ndarray:
        if not (keys := SCOPES[scope]):
            return rows
        company = self.both.sites.iloc[rows].groupby(keys)["stem"].transform("size").to_numpy()
        return rows[(company > 1) | (rows < len(self.data))]


History = list[dict]
MARGIN = 1.1  # an epoch is given this many times what the longest of the last ones took
LAST = 5
PACKAGE_CODE = code_identity.package_code("learn")  # as it is imported: the files may change while a training lasts


def fit(
    model: Classifier, sites: TrainingSites, phase: Phase, *, weights: Path, machine: MachineSettings = MachineSettings(),
    budget: Budget | None = None, elsewhere: Sequence[Path] = (), on_epoch: Callable[[History], None] = lambda history: None,
) -> History:
    """Train `model` through one phase; it and the file `weights` end with the weights that are kept.

    Kept are the best on the held-out sites, or the last (phase.keep, and always without held-out
    sites). Held-out sites are scored with the statistics of the held-out sites of their scope, whole
    plates where whole experiments are held out, because so test plates are predicted (Brodt's
    solution); with a random split they are only a part of each plate. A killed phase goes on at its
    last whole epoch, in this folder or in one `elsewhere` (read-only copies of it), and ends with the same weights bit for bit; a
    finished one is not repeated while phase, sites, classes, the weights it began with (model.origin) and the code are the same:
    this package's, the cells of the notebook so far, and what was given to train with (augmentation, losses, relabel, classes of
    one's own). Weights of other code are trained again, but for copies of those `elsewhere`; either is said in a line.

    Raises TimeSpent before an epoch that would end after the deadline of `budget`, when its checkpoint is
    written and `weights` is not.

    `machine.num_processes`: how many train together, 0 for one per GPU. Several
    share the batches of each step, through Hugging Face Accelerate, and learn what one process learns
    within float error. Without a virtual batch a step takes one batch of each process, so that more
    processes take fewer and larger steps; the phase keeps to what it began with. A `model` that several
    processes are to train must not have been on a GPU. `machine.compile`: torch.compile makes the body's kernels.
    `machine.gradient_checkpointing`: less memory, more time, the same gradients (`networks.checkpointing`).
    With `phase.training.ema_decay` the averaged weights are what is scored, kept and asked for labels.

    Returns, as model.history and into the JSON beside the weights, the rows of the phases before and
    one an epoch: phase, epoch, loss, accuracy (of the training batches), held_out_accuracy (None
    where not measured), learning_rate, seconds; sites of several labels have macro_f1 and
    held_out_macro_f1 instead, and epochs with labels of the network's own their number, pseudo_labels,
    and labelling_seconds, a part of the seconds. Raises InputError for what does not go together and when
    the loss is no longer a number, and StepFailed when one of several processes ends untimely.
    """
    check_training(model, sites, phase)
    data, network = sites.train, model.settings
    others = stats_source(data.root, network.standardise) | ({"compile": True} if machine.compile else {})
    checkpoint = Checkpoint(weights, fingerprint={
        **phase.model_dump(), **sites.fingerprint(phase), **others, "precision": machine.precision, "network": network.classifier.model_dump(),
        "covariates": model.covariates, "class_numbers": data.class_numbers, "origin": model.origin, CODE: _code(model, sites, phase)})
    world, before = current_group(machine.device), list(model.history)
    leads = world is None or world.first
    if (ended := _finished(model, checkpoint, before=before, leads=leads, elsewhere=elsewhere)) is not None:
        on_epoch(ended)
        return ended
    if leads:
        checkpoint.adopt(elsewhere)
        if other := checkpoint.left_by_other_code():
            print(f"{weights.name}: other code ({', '.join(other)}) began this training; it begins anew")
    story = _TrainingLog(before, phase, on_epoch if leads else lambda history: None, shown=leads)
    hidden = UnlabelledSites(data, sites.unlabelled, sites.relabel) if phase.training.pseudo_label_epochs else None
    training = _PhaseTraining(model, sites, phase, machine, checkpoint, budget or Budget(), before, hidden)
    with story:
        if world is not None or (processes := process_count(machine.device, machine.num_processes)) == 1:
            training.run(world or ProcessGroup(device=pick_device(machine.device)), story.take)
        else:
            launch(training.run, device=machine.device, processes=processes, told=story.take)
            training.collect(story)
    model.history = story.history
    if spent := training.spent or story.spent:  # the latter of processes of their own
        raise TimeSpent(spent)
    return story.history


@dataclass
class _PhaseTraining:
    """One phase on its way: what is trained on what, in one process of perhaps several."""

    model: Classifier
    sites: TrainingSites
    phase: Phase
    machine: MachineSettings
    checkpoint: Checkpoint
    budget: Budget
    before: History
    unlabelled: UnlabelledSites | None
    spent: str = ""  # where this process stopped because the time is over

    def run(self, world: ProcessGroup, tell: Tell) -> None:
        """Train in this process of the `world`; the first one tells {"old": row} and {"new": row} of each epoch, and {"spent": note}."""
        world.meet()  # the checkpoint lies in its place
        found = self.checkpoint.load()
        world.meet()  # and will not be replaced before all have read it
        if not world.agree(found[1]["epoch"] if found else 0):
            raise InputError("not all processes of the training find the same checkpoint", where=self.checkpoint.weights.parent,
                             cure="give all machines one run folder, on a disk that they share")
        tell = tell if world.first else lambda message: None
        if self.machine.gradient_checkpointing:
            recomputed(self.model.body)
        state = TrainingState(self.model.to(world.device), self.phase, self.checkpoint, machine=self.machine, world=world, found=found)
        for row in state.rows:
            tell({"old": row})
        if self._epochs(state, world, tell):
            state.finish(self._card(), before=self.before)

    def _epochs(self, state: TrainingState, world: ProcessGroup, tell: Tell) -> bool:
        """Train until the phase or the budget ends; tells which of them it was: True for the phase."""
        lasted = [row["seconds"] - row.get(SECONDS, 0.0) for row in state.rows]
        for epoch in range(first := len(state.rows), self.phase.training.epochs):
            began, ordinary = time.perf_counter(), max(lasted[-LAST:], default=0.0)
            # A mere guess stops no session that begins here: the next one would have no more time.
            naming = self.unlabelled.seconds(state.rows, ordinary * (epoch > first)) if self.phase.pseudo(epoch) else 0.0
            enough = self.budget.fits(MARGIN * (ordinary + naming))
            row = None if world.any(not enough) else self._epoch(state, world, epoch)
            if row is None:
                self.spent = f"{self.phase.name}, epoch {epoch} of {self.phase.training.epochs}"
                tell({"spent": self.spent})
                return False
            state.end_epoch(row)
            tell({"new": row})
            lasted.append(time.perf_counter() - began - row.get(SECONDS, 0.0))
        return True

    def _epoch(self, state: TrainingState, world: ProcessGroup, epoch: int) -> dict | None:
        """Train and score one epoch; returns its row of the history, or None when it would have been late."""
        phase, started = self.phase, time.perf_counter()
        rate = set_learning_rate(state.optimizer, phase.rate(epoch))
        data, batches, own = self._batches(state, world, epoch)
        virtual = phase.training.virtual_batch
        steps = virtual_batches(batches, virtual) if virtual else group_batches(batches, state.together)
        pace = DeadlineMonitor(self.budget, len(steps)) if self.budget.deadline is not None else None
        row = train_epoch(state.learner, data, steps, epoch=epoch, controls=self.sites.controls, pace=pace)
        if row is None:
            return None
        if not math.isfinite(row["loss"]):
            raise InputError(f"the loss is {row['loss']} in epoch {epoch + 1}", where=f"phase {phase.name}",
                             cure="lower training.learning_rate, or set machine.precision: fp32")
        row[HELD_OUT + data.metric] = evaluate(state.network, self.sites.held_out, scope=phase.training.batch_scope, machine=self.machine,
                                               world=world, controls=self.sites.controls)
        seconds = time.perf_counter() - started
        return {"phase": phase.name, "epoch": epoch + 1, **row, **own, "learning_rate": rate, "seconds": seconds}

    def _batches(self, state: TrainingState, world: ProcessGroup, epoch: int) -> tuple[SiteImages, list[np.ndarray], dict[str, float]]:
        """The sites that train in an epoch, the rows of its batches, and how many labels are the network's own, if any, after what time."""
        phase, data, own = self.phase, self.sites.train, {}
        settings, rows = phase.training, np.arange(len(data))
        if phase.pseudo(epoch):
            began = time.perf_counter()
            data, rows = self.unlabelled.labelled(state.network, self._card(), epoch, world=world, scope=settings.batch_scope)
            count = len(rows) - len(self.sites.train)
            own = {SECONDS: time.perf_counter() - began} | ({"pseudo_labels": count} if count else {})
        batches = epoch_batches(data.sites.iloc[rows], batch_size=settings.batch_size, scope=settings.batch_scope, seed=phase.seed,
                                epoch=epoch)
        return data, [rows[batch] for batch in batches], own

    def _card(self) -> ModelConfig:
        data = self.sites.train
        well_types = sorted(data.sites["well_type"].unique().tolist()) if "well_type" in data.sites else []
        return ModelConfig.of(self.model, class_numbers=data.class_numbers, well_types=well_types, scope=self.phase.training.batch_scope,
                              task=self.sites.task)

    def collect(self, story: "_TrainingLog") -> None:
        """Take over the weights that other processes wrote."""
        if not story.spent and _finished(self.model, self.checkpoint, before=self.before) is None:
            raise StepFailed(f"{self.phase.name}: the weights are not there")


class _TrainingLog:
    """The history as it grows, a bar, and whoever wants to be called for each new epoch."""

    def __init__(self, before: History, phase: Phase, on_epoch: Callable[[History], None], *, shown: bool) -> None:
        self.history, self.on_epoch, self.spent = before, on_epoch, ""
        self.bar = progress_bar(total=phase.training.epochs, desc=phase.name, unit="epoch", disable=not shown)

    def take(self, message: dict[str, Any]) -> None:
        """Note an epoch of an earlier run, {"old": row}, one that has just ended, {"new": row}, or where the time is {"spent": note}."""
        self.spent = message.get("spent", "")
        if "old" in message:
            self.history = [*self.history, message["old"]]
            self.bar.initial = self.bar.n = self.bar.n + 1
        elif "new" in message:
            row = message["new"]
            self.history = [*self.history, row]
            told = {"loss": row["loss"], "held out": held_out_value(row)}
            self.bar.set_postfix({name: f"{value:.4f}" for name, value in told.items() if value is not None}, refresh=False)
            self.bar.update()
            self.on_epoch(self.history)

    def __enter__(self) -> "_TrainingLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def _code(model: Classifier, sites: TrainingSites, phase: Phase) -> dict[str, Any]:
    """The identity of the code that trains, by part."""
    data, relabel = sites.train, sites.relabel
    losses = {name: LOSSES[name] for _, name in phase.losses.terms if name in LOSSES}
    augment = data.augment.written(data.shape[1:]) if isinstance(data.augment, Augment) else data.augment
    given = {"augmentation": augment, "losses": losses, "model": type(model), "data": type(data),
             "relabel": relabel if isinstance(relabel, FunctionType | MethodType | partial) else type(relabel)}
    rooms = code_identity.package_code("learn", "decide") if phase.training.pseudo_label_epochs else PACKAGE_CODE
    return {**rooms, **PACKAGE_CODE, "notebook": code_identity.notebook.code(), "given": code_identity.describe(given)}


def _finished(model: Classifier, checkpoint: Checkpoint, *, before: Sequence[dict], leads: bool = True,
              elsewhere: Sequence[Path] = ()) -> History | None:
    """Put the weights of a phase that already ended into `model`, and give its history; None when it has not."""
    weights = checkpoint.weights
    if (ended := finished_history(checkpoint, before=before, write=leads, elsewhere=elsewhere)) is not None:
        model.load_state_dict(read_tensors(weights))
        model.origin, model.history = recorded_sha256(Receipt.read(weights.with_suffix(".json"))), ended
    return ended


def finished_history(checkpoint: Checkpoint, *, before: Sequence[dict] = (), write: bool = True, elsewhere: Sequence[Path] = ()) -> History | None:
    """The history of a phase that already ended with the weights and the fingerprint of `checkpoint`, or None.

    In front of its own rows stand those of `before`, in the JSON too (`write`): other earlier phases
    may have ended with the very weights that this one began with. Weights of other code count when they are a copy of
    those in a folder `elsewhere`.
    """
    weights = checkpoint.weights
    try:
        receipt = Receipt.read(weights.with_suffix(".json"))
        check_sha256(weights, recorded_sha256(receipt))
        if not receipt.is_current(checkpoint.fingerprint) and not _taken_up(checkpoint, receipt, elsewhere, say=write):
            return None
        rows = receipt.details["history"]
        told = [*before, *rows[len(rows) - receipt.identity["training"]["epochs"]:]]
    except (InputError, KeyError, TypeError):  # absent or damaged: it is simply not finished
        return None
    if write and told != rows:
        replace(receipt, details={**receipt.details, "history": told}).write()
    return told


def _taken_up(checkpoint: Checkpoint, receipt: Receipt, elsewhere: Sequence[Path], *, say: bool) -> bool:
    """Whether finished weights of other code are taken as they are; `say` which, or that they are trained again."""
    if not (other := checkpoint.other_code(receipt.identity)):
        return False
    name, code = checkpoint.weights.name, ", ".join(other)
    for folder in elsewhere:
        path = Path(folder) / name
        if path.is_file() and sha256(path) == recorded_sha256(receipt):
            if say:
                print(f"{name}: taken up from {folder}, although other code ({code}) trained it; without that folder it is trained again")
            return True
    if say:
        print(f"{name}: other code ({code}) trained it; it is trained again (`cellsignal run --from weights` keeps what lies there)")
    return False

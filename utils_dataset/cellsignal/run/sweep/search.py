"""A search: Optuna suggests, weak trials are pruned early, and the study survives any kill."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cellsignal import files, shapes
from cellsignal.errors import InputError
from cellsignal.learn.training.checkpoint import held_out_value
from cellsignal.receipts import Receipt
from cellsignal.run.sweep.search_space import Range
from cellsignal.run.sweep.trials import DONE, PRUNED, UNFINISHED, Trial, unchanged

if TYPE_CHECKING:
    import optuna

# How far a running trial has come: its metric on held-out sites, epoch by epoch, from what training leaves on disk.


PHASE = "whole"  # the epochs on the treatments, of which the best is kept


def curve(run: Path) -> list[float]:
    """The best of the held-out sites so far after each epoch on the treatments, in the order in which the networks are trained.

    With several networks that is the mean over all of them, of which those to come count nothing: a value says as
    much at the same epoch of two trials, and never falls.
    """
    names = _networks(run)
    values: list[float] = []
    before = 0.0
    for name in names:
        rows, ended = _rows(run / "weights" / name)
        best = 0.0
        for row in rows:
            best = max(best, held_out_value(row) or 0.0)
            values.append((before + best) / len(names))
        before += best
        if not ended:
            break
    return values


def _networks(run: Path) -> list[str]:
    """The folders of weights that the run fills, in its order: `all` for a joint network, the cell types, else the folds."""
    try:
        parameters = files.read_json(run / "recipe.json", shapes.Description)["parameters"]
    except (OSError, InputError):
        parameters = {}
    wells = parameters.get("wells", {})
    folds = [f"fold-{fold}" for fold in range(wells.get("folds", 0))]
    return ["all"] if parameters.get("network", {}).get("one_network") else list(wells.get("cell_types", [])) or folds


def _rows(folder: Path) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of that phase of the network `model`, and whether it has ended."""
    ended, going_on = Receipt.find(folder / "model.json", shapes.Card), Receipt.find(folder / "model.checkpoint.json", shapes.Checkpoint)
    rows = ended.details.get("history", []) if ended else going_on.details.get("rows", []) if going_on else []
    return [row for row in rows if row.get("phase") == PHASE], ended is not None


STUDY = "study.db"  # SQLite, which no kill tears; nothing is pickled
STARTUP = 4  # whole trials before one may be pruned
WARMUP = 0.2  # of the recipe's epochs, before a trial may be pruned

Make = Callable[[str, Mapping[str, Any]], list[Trial]]


@dataclass
class _Candidate:
    """One suggestion on its way: a trial for each seed, and what those came to that have ended."""

    suggestion: "optuna.trial.Trial"
    trials: list[Trial]
    reported: int  # epochs of the first trial that the study knows of
    values: list[float] = field(default_factory=list)


class Search:
    """Trials that Optuna suggests (TPE), each with every seed; the first seed of each may be pruned by the median rule.

    After each epoch a trial is compared with earlier ones at the same epoch, by the held-out sites; in the end by the mean
    over the seeds of `measure` on the held-out wells. Akiba et al., Optuna, KDD 2019; Bergstra et al., Algorithms
    for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    compared = False

    def __init__(self, folder: Path, ranges: Sequence[Range], make: Make, *, about: Mapping[str, Any], trials: int, measure: str) -> None:
        """`about`: the recipe and all else that must stay the same while the search goes on; by dotted key; holds `seed`, `training.epochs`, `seeds`."""
        self.ranges, self.make, self.trials, self.measure = ranges, make, trials, measure
        self.candidates: dict[str, _Candidate] = {}
        self.queue: list[Trial] = []
        self.names: list[str] = []
        self.keys = tuple(each.key for each in ranges)
        self.seeds = len(about["seeds"])
        self.optuna = _optuna()
        self.study = self._open(folder / STUDY, {**about, "measure": measure, "ranges": [asdict(each) for each in ranges]})
        for frozen in self.study.get_trials(deepcopy=False):
            self._restore(frozen)

    def next(self) -> Trial | None:
        """The next seed of a suggestion, or the first of a new one."""
        while not self.queue and len(self.names) < self.trials:
            self._take(self.study.ask())
        return self.queue.pop(0) if self.queue else None

    def hopeless(self, trial: Trial) -> bool:
        """Whether a suggestion falls behind the median of those before it, or has ended with another seed."""
        candidate = self.candidates.get(trial.variant)
        if candidate is None:
            return True
        return trial is candidate.trials[0] and self._report(candidate) and candidate.suggestion.should_prune()

    def told(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Tell the study how a suggestion ended, once its last seed has, or one did not come to a value."""
        candidate = self.candidates.get(trial.variant)
        if candidate is None or record["status"] == UNFINISHED:
            return
        value = record.get(f"held_out_{self.measure}")
        if record["status"] != DONE or value is None:
            self._end(trial.variant, state="PRUNED" if record["status"] == PRUNED else "FAIL")
            return
        self._report(candidate)
        candidate.values.append(value)
        if len(candidate.values) == len(candidate.trials):
            self._end(trial.variant, value=sum(candidate.values) / len(candidate.values))

    def expected(self) -> int:
        """As many as there are when all come to their end."""
        return max(self.trials, len(self.names)) * self.seeds

    def variants(self) -> list[str]:
        """In the order in which they were suggested."""
        return self.names

    def _open(self, path: Path, about: Mapping[str, Any]) -> "optuna.Study":
        """The study in `path`, which must be about the same."""
        optuna = self.optuna
        # Without SQLite's locks, which file systems such as Google Drive's have not: the sweep's folder is ours already.
        storage = f"sqlite:///file:{quote(str(path))}?vfs=unix-none&uri=true"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=round(WARMUP * about["training.epochs"]))
        study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", pruner=pruner, load_if_exists=True)
        same = json.loads(json.dumps(about))
        if not unchanged(study.user_attrs.get("about", same), same):
            raise InputError("holds a search of other ranges, seeds or parameters", where=path.parent, cure="choose another --out")
        study.set_user_attr("about", same)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar, in older versions
            # After an interruption with another seed: the same one would suggest the first trials again.
            study.sampler = optuna.samplers.TPESampler(seed=about["seed"] + len(study.get_trials(deepcopy=False)), constant_liar=True)
        return study

    def _restore(self, frozen: "optuna.trial.FrozenTrial") -> None:
        """Take up a trial of an earlier call: to go on with it, or for the table alone."""
        if not frozen.state.is_finished():
            self._take(self.optuna.trial.Trial(self.study, frozen._trial_id), reported=len(frozen.intermediate_values))
            return
        for trial in self._made(frozen):
            trial.settled = True
            self.queue += [trial] * (trial.record() is not None)

    def _take(self, suggestion: "optuna.trial.Trial", *, reported: int = 0) -> None:
        trials = self._made(suggestion)
        self.candidates[trials[0].variant] = _Candidate(suggestion, trials, reported)
        self.queue += trials

    def _made(self, trial: "optuna.trial.BaseTrial") -> list[Trial]:
        """The trials of one suggestion, or of one that was made before."""
        self.names.append(f"trial-{trial.number:03d}")
        return self.make(self.names[-1], {each.key: each.suggest(trial) for each in self.ranges})

    def _report(self, candidate: _Candidate) -> bool:
        """Tell the study of the epochs that have ended since; whether there were any."""
        values = curve(candidate.trials[0].folder)
        for epoch in range(candidate.reported, len(values)):
            candidate.suggestion.report(values[epoch], epoch)
        new, candidate.reported = len(values) > candidate.reported, max(candidate.reported, len(values))
        return new

    def _end(self, variant: str, *, value: float | None = None, state: str = "COMPLETE") -> None:
        candidate = self.candidates.pop(variant)
        self.queue = [trial for trial in self.queue if trial.variant != variant]
        self.study.tell(candidate.suggestion, value, state=self.optuna.trial.TrialState[state])


def _optuna() -> ModuleType:
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError("a search needs Optuna", where="search", cure="pip install optuna, or list a `grid`") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

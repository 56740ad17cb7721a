"""A search: Optuna suggests trials, prunes the bad ones early, and keeps its study in a file that no interruption damages."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from cellsignal import files, json_schemas
from cellsignal.errors import InputError
from cellsignal.learn.history import held_out_value
from cellsignal.receipts import Receipt
from cellsignal.run.sweep.search_space import Range
from cellsignal.run.sweep.trials import DONE, PRUNED, UNFINISHED, Trial, same_values
from cellsignal.tasks import TASKS

if TYPE_CHECKING:
    import optuna

PHASE = "whole"  # the epochs on the treatments, of which the best is kept
STUDY = "study.db"  # SQLite, which no interruption damages; nothing is pickled
STARTUP_TRIALS = 4  # complete trials before one may be pruned
WARMUP_SHARE = 0.2  # of the recipe's epochs, before a trial may be pruned

MakeTrials = Callable[[str, Mapping[str, Any]], list[Trial]]


def learning_curve(run: Path) -> list[float]:
    """The best metric on the held-out sites so far, after each epoch on the treatments, in the order in which the networks are trained.

    It is read from the files that the training writes. With several networks it is the mean over all of them, with 0 for those
    not trained yet: so the values of two trials at the same epoch can be compared, and never fall.
    """
    folders = _weight_folders(run)
    values: list[float] = []
    sum_of_ended = 0.0
    for folder in folders:
        rows, ended = _epoch_rows(run / "weights" / folder)
        best = 0.0
        for row in rows:
            best = max(best, held_out_value(row) or 0.0)
            values.append((sum_of_ended + best) / len(folders))
        sum_of_ended += best
        if not ended:
            break
    return values


def _weight_folders(run: Path) -> list[str]:
    """The names of the folders of weights, in the order of the trainings: `all` for a joint network, a benchmark's task, the cell types, else the folds."""
    try:
        parameters = files.read_json(run / "recipe.json", json_schemas.Description)["parameters"]
    except (OSError, InputError):
        parameters = {}
    wells = parameters.get("wells", {})
    if (task := TASKS.get(parameters.get("task"))) is not None and task.plan == "one network":
        return [task.name]
    folds = [f"fold-{fold}" for fold in range(wells.get("folds", 0))]
    return ["all"] if parameters.get("network", {}).get("one_network") else list(wells.get("cell_types", [])) or folds


def _epoch_rows(folder: Path) -> tuple[list[Mapping[str, Any]], bool]:
    """The rows of PHASE of the network `model`, and whether its training has ended."""
    weights, checkpoint = Receipt.find(folder / "model.json", json_schemas.WeightDetails), Receipt.find(folder / "model.checkpoint.json", json_schemas.CheckpointDetails)
    rows = weights.details.get("history", []) if weights else checkpoint.details.get("rows", []) if checkpoint else []
    return [row for row in rows if row.get("phase") == PHASE], weights is not None


@dataclass
class _Candidate:
    """One suggestion: a trial for each seed, and the scores of those that have ended."""

    suggestion: "optuna.trial.Trial"
    trials: list[Trial]
    num_reported: int  # epochs of the first trial that the study knows
    scores: list[float] = field(default_factory=list)


class Search:
    """Trials that Optuna suggests (TPE), each with every seed; the first seed of each may be pruned by the median rule.

    A trial is compared with earlier ones at the same epoch by its metric on the held-out sites; a suggestion in the end by the mean
    over its seeds of `measure` on the held-out wells. Akiba et al., Optuna, KDD 2019; Bergstra et al., Algorithms
    for Hyper-Parameter Optimization, NeurIPS 2011.
    """

    compares_with_first = False

    def __init__(self, folder: Path, ranges: Sequence[Range], make: MakeTrials, *, identity: Mapping[str, Any], trials: int, measure: str) -> None:
        """`identity`: the recipe and all else that must not change when the search goes on, by dotted key, with `seed`, `training.epochs` and `seeds`."""
        self.ranges, self.make, self.trials, self.measure = ranges, make, trials, measure
        self.candidates: dict[str, _Candidate] = {}
        self.queue: list[Trial] = []
        self.names: list[str] = []
        self.keys = tuple(chosen.key for chosen in ranges)
        self.num_seeds = len(identity["seeds"])
        self.optuna = _optuna()
        self.study = self._open_study(folder / STUDY, {**identity, "measure": measure, "ranges": [asdict(chosen) for chosen in ranges]})
        for frozen in self.study.get_trials(deepcopy=False):
            self._restore(frozen)

    def next(self) -> Trial | None:
        """The next seed of a suggestion, or the first of a new one."""
        while not self.queue and len(self.names) < self.trials:
            self._add_candidate(self.study.ask())
        return self.queue.pop(0) if self.queue else None

    def should_prune(self, trial: Trial) -> bool:
        """Whether a suggestion is worse than the median of those before it, or has ended with another seed."""
        candidate = self.candidates.get(trial.variant)
        if candidate is None:
            return True
        return trial is candidate.trials[0] and self._report(candidate) and candidate.suggestion.should_prune()

    def ended(self, trial: Trial, record: Mapping[str, Any]) -> None:
        """Report to the study how a suggestion ended, when all its seeds have ended or one has no score."""
        candidate = self.candidates.get(trial.variant)
        if candidate is None or record["status"] == UNFINISHED:
            return
        score = record.get(f"held_out_{self.measure}")
        if record["status"] != DONE or score is None:
            self._end(trial.variant, state="PRUNED" if record["status"] == PRUNED else "FAIL")
            return
        self._report(candidate)
        candidate.scores.append(score)
        if len(candidate.scores) == len(candidate.trials):
            self._end(trial.variant, value=sum(candidate.scores) / len(candidate.scores))

    def num_expected(self) -> int:
        """The number of trials if all are run."""
        return max(self.trials, len(self.names)) * self.num_seeds

    def variants(self) -> list[str]:
        """The names of the suggestions, in their order."""
        return self.names

    def _open_study(self, path: Path, identity: Mapping[str, Any]) -> "optuna.Study":
        """The study in `path`; InputError when it has another identity."""
        optuna = self.optuna
        # Without SQLite's locks, which file systems such as Google Drive do not have: the sweep's folder is locked already.
        storage = f"sqlite:///file:{quote(str(path))}?vfs=unix-none&uri=true"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=round(WARMUP_SHARE * identity["training.epochs"]))
        study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", pruner=pruner, load_if_exists=True)
        stored = json.loads(json.dumps(identity))
        if not same_values(study.user_attrs.get("about", stored), stored):
            raise InputError("holds a search of other ranges, seeds or parameters", where=path.parent, cure="choose another --out")
        study.set_user_attr("about", stored)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar, in older versions
            # Another seed after an interruption: the same one would suggest the first trials again.
            study.sampler = optuna.samplers.TPESampler(seed=identity["seed"] + len(study.get_trials(deepcopy=False)), constant_liar=True)
        return study

    def _restore(self, frozen: "optuna.trial.FrozenTrial") -> None:
        """Restore a trial of an earlier call: to go on with it, or only for the table."""
        if not frozen.state.is_finished():
            self._add_candidate(self.optuna.trial.Trial(self.study, frozen._trial_id), num_reported=len(frozen.intermediate_values))
            return
        for trial in self._make_trials(frozen):
            trial.is_settled = True
            self.queue += [trial] * (trial.record() is not None)

    def _add_candidate(self, suggestion: "optuna.trial.Trial", *, num_reported: int = 0) -> None:
        trials = self._make_trials(suggestion)
        self.candidates[trials[0].variant] = _Candidate(suggestion, trials, num_reported)
        self.queue += trials

    def _make_trials(self, trial: "optuna.trial.BaseTrial") -> list[Trial]:
        """The trials of one suggestion, new or of an earlier call."""
        self.names.append(f"trial-{trial.number:03d}")
        return self.make(self.names[-1], {chosen.key: chosen.suggest(trial) for chosen in self.ranges})

    def _report(self, candidate: _Candidate) -> bool:
        """Report the epochs that have ended since the last call to the study; whether there were any."""
        values = learning_curve(candidate.trials[0].folder)
        for epoch in range(candidate.num_reported, len(values)):
            candidate.suggestion.report(values[epoch], epoch)
        has_new = len(values) > candidate.num_reported
        candidate.num_reported = max(candidate.num_reported, len(values))
        return has_new

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

"""The types of the JSON files that several rooms read back; `files.validated` checks content against them, because anybody may have written it.

A TypedDict has the keys that are read by name; a file may have others. The type of a file with a single reader is defined beside that.
"""

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

Seconds = dict[str, float]  # seconds.json: by step
Split = Literal["test", "held_out"]

# Of a run's parameters.
WellParameters = TypedDict("WellParameters", {"cell_types": list[str], "folds": int}, total=False)
NetworkParameters = TypedDict("NetworkParameters", {"one_network": bool, "pretrained": str}, total=False)
TrainingParameters = TypedDict("TrainingParameters", {"final_epochs": int, "ablate_virtual_batch": bool}, total=False)
MachineParameters = TypedDict("MachineParameters", {"num_processes": int}, total=False)


class Parameters(TypedDict, total=False):
    """The parameters of a run."""

    task: str
    data: str
    run: str
    seed: int
    cell_type: str
    network_name: str
    wells: WellParameters
    network: NetworkParameters
    training: TrainingParameters
    machine: MachineParameters


class Description(TypedDict):
    """recipe.json: the parameters and the software of a run."""

    parameters: Parameters
    notes: NotRequired[list[str]]  # steps that were made with other parameters
    code: NotRequired[str]
    commit: NotRequired[str]
    python: NotRequired[str]
    hardware: NotRequired[dict[str, Any]]
    libraries: NotRequired[dict[str, str]]


class Rung(TypedDict):
    """A row of the ladder in metrics.json."""

    rung: str
    split: Split
    kind: Literal["raw", "assigned"]
    accuracy: float
    by_cell_type: NotRequired[dict[str, float]]
    by_experiment: NotRequired[dict[str, float]]


class LabelRung(TypedDict):
    """A row of the ladder where sites have several labels."""

    rung: str
    split: Split
    macro_f1: float
    method: NotRequired[str]
    by_class: NotRequired[list[float]]


class SplitRow(TypedDict):
    """The accuracy of single sites in a split of a benchmark, in metrics.json."""

    rung: str
    split: Literal["val", "test", "id_test"]
    accuracy: float
    worst_cell_type: float
    sites: int
    well_accuracy: float
    wells: int
    by_cell_type: dict[str, float]
    by_experiment: dict[str, float]


class ExperimentDecision(TypedDict):
    """How a test experiment was decided, in metrics.json."""

    experiment: str
    route: str
    group_on_plate: list[int] | None
    group_posterior: float | None
    surprise_bits: float | None
    note: str


class EstimatedAccuracy(TypedDict):
    """The accuracy of raw answers to test wells, estimated without labels, in metrics.json."""

    rung: str
    level: Literal["all", "cell_type", "experiment"]
    name: str
    wells: int
    estimated_accuracy: float | None
    standard_error: float | None
    accuracy: float | None
    note: str


class SetCoverage(TypedDict):
    """The prediction sets of an experiment, or of all, at one nominal coverage, in metrics.json."""

    split: Split
    experiment: str
    coverage: float
    wells: int
    mean_size: float
    covered: float | None


class SurestWells(TypedDict):
    """The surest wells, a share of all, in metrics.json."""

    share: float
    stated: float
    accuracy: float | None


LinearBaseline = TypedDict("LinearBaseline", {"accuracy": float})  # in metrics.json


class ControlSeparation(TypedDict):
    """How far the controls of a plate are apart, and whether they differ as on other plates."""

    experiment: str
    plate: int
    cell_type: str
    untreated: int
    positive: int
    effect_size: float | None
    chance: float | None
    agreement: float | None


class Metrics(TypedDict, total=False):
    """metrics.json: the results of a run."""

    metric: Literal["accuracy", "macro_f1", "split_accuracy"]
    task: str
    ladder: list[Rung]
    rungs: list[LabelRung]
    splits: list[SplitRow]
    linear_baseline: LinearBaseline | None
    notes: list[str]
    brodt: dict[str, list[float]]
    calibration_error: float | None
    experiments: list[ExperimentDecision]
    plate_groups: list[list[int]] | None
    estimated_accuracy: list[EstimatedAccuracy]
    prediction_sets: list[SetCoverage]
    most_confident_wells: list[SurestWells]
    controls: dict[str, list[ControlSeparation]]
    data: str
    thresholds: str
    counts: list[int]
    simulated: bool
    statistics_note: str


class Epoch(TypedDict):
    """A row of a network's history."""

    epoch: NotRequired[int]
    phase: NotRequired[str]
    loss: NotRequired[float]
    accuracy: NotRequired[float | None]
    held_out_accuracy: NotRequired[float | None]
    macro_f1: NotRequired[float | None]
    held_out_macro_f1: NotRequired[float | None]
    learning_rate: NotRequired[float | None]


WeightDetails = TypedDict("WeightDetails", {"history": list[Epoch]}, total=False)  # of the receipt of weights, <network>.json


class ScoreDetails(TypedDict):
    """The details of the receipt of scores, metadata.json."""

    experiments: dict[str, dict[str, Any]]
    device: NotRequired[str]


class CheckpointDetails(TypedDict):
    """The details of the receipt of a checkpoint, <network>.checkpoint.json: the progress of its training."""

    epoch: int
    phase: NotRequired[str]
    epochs: NotRequired[int]
    rows: NotRequired[list[Epoch]]

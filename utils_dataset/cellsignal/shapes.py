"""The shape of each kind of JSON file that is read back, because anybody may have written it; `files.shaped` holds content against one."""

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict  # pydantic needs this one before Python 3.12

Seconds = dict[str, float]  # seconds.json: by step
Split = Literal["test", "held_out"]


class WellParameters(TypedDict, total=False):
    """Of the group `wells`."""

    cell_types: list[str]
    folds: int


class NetworkParameters(TypedDict, total=False):
    """Of the group `network`."""

    one_network: bool
    pretrained: str


class TrainingParameters(TypedDict, total=False):
    """Of the group `training`."""

    final_epochs: int
    ablate_virtual_batch: bool


class MachineParameters(TypedDict, total=False):
    """Of the group `machine`."""

    num_processes: int


class Parameters(TypedDict, total=False):
    """Those of a run's parameters that are read back by name."""

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
    """recipe.json: what made a run."""

    parameters: Parameters
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
    """The same where sites have several labels."""

    rung: str
    split: Split
    macro_f1: float
    method: NotRequired[str]
    by_class: NotRequired[list[float]]


class Floor(TypedDict):
    """What a linear model reaches."""

    accuracy: float


class Decided(TypedDict):
    """How a test experiment was decided."""

    experiment: str
    route: str
    group_on_plate: list[int] | None
    group_posterior: float | None
    surprise_bits: float | None
    note: str


class Metrics(TypedDict, total=False):
    """metrics.json: what a run came to."""

    metric: Literal["accuracy", "macro_f1"]
    task: str
    ladder: list[Rung]
    rungs: list[LabelRung]
    floor: Floor | None
    notes: list[str]
    brodt: dict[str, list[float]]
    calibration_error: float | None
    experiments: list[Decided]
    plate_groups: list[list[int]] | None
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


class Card(TypedDict, total=False):
    """Details of weights' receipts, <network>.json: as far as they tell how those were learnt."""

    history: list[Epoch]


class ScoreDetails(TypedDict):
    """Details of the receipt in a folder of scores, metadata.json."""

    experiments: dict[str, dict[str, Any]]
    device: NotRequired[str]


class Checkpoint(TypedDict):
    """Details of <network>.checkpoint.json, as far as they tell how far a training has come."""

    epoch: int
    phase: NotRequired[str]
    epochs: NotRequired[int]
    rows: NotRequired[list[Epoch]]


class Trial(TypedDict):
    """Details of the receipt of a sweep's trial: how it ended."""

    variant: str
    seed: int
    changes: dict[str, Any]
    status: str
    error: str
    seconds: NotRequired[float]


class StorePart(TypedDict):
    """A part of a store, as store.json tells it."""

    folder: str
    bytes: dict[str, int]
    digest: str


class Store(TypedDict):
    """Identity and details of store.json, the receipt of a packed store."""

    codec: str
    suffixes: list[str]
    shapes: dict[str, list[int]]
    parts: dict[str, StorePart]


class StoreIndex(TypedDict):
    """Details of sites.json, the receipt of one part of a store; by size, a row for each site."""

    folder: str
    bytes: dict[str, int]
    sites: list[str]
    missing: dict[str, list[int]]
    crc32: dict[str, list[int]]
    places: dict[str, list[int]]
    chunks: dict[str, list[str]]


class Upload(TypedDict):
    """Details of the receipt of an upload of the package: its version on Kaggle, and the code of all that were uploaded."""

    version: int
    codes: list[str]

"""The parameters of a run: one flat YAML file, every key known, every value of its type."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from cellsignal.errors import InputError
from cellsignal.files import is_plain
from cellsignal.run import environment

# What the parameters of a run that are names, or lists of names, may be.


# Spelt out, because learn.backbones would bring PyTorch; a test keeps the two equal.
BACKBONES = (
    "densenet121", "densenet161", "densenet201", "densenet-small", "densenet-deep-small", "resnet34", "resnet50", "resnet-small",
    "se-resnext50", "se-resnext-small", "vgg19", "vgg-small", "inception", "xception", "xception-small", "plain-cnn",
)  # fmt: skip
EXAMPLES = {
    "cell_types": "[HUVEC, U2OS]", "experiments": "[U2OS-01, U2OS-02]", "ensemble": "[densenet121]", "covariates": "[plate, site]",
    "scored": "[U2OS-03]", "runs": "[runs/demo, runs/second]",
}  # fmt: skip
COVARIATES = ("cell_type", "experiment", "plate", "well", "site")
LOSSES = ("bce", "cross-entropy", "focal", "lovasz", "arcface", "cosface")
TERM = re.compile(rf"\s*(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?\s+)?(?:{'|'.join(LOSSES)})\s*")


# YAML of parameters: the line of every key, limits on what a file may hold, and no number that YAML's versions read differently.


LARGEST = 1_000_000  # characters of a file
DEEPEST = 20  # lists and mappings inside each other
MOST = 10_000  # values, those that an alias repeats counted each time
DIGITS = 40  # characters of a number
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML reads YAML 1.1, where 010 is 8, 1:30 is 90, 0b11 is 3 and 1_000 is 1000; in YAML 1.2 they are 10 and three texts.
_AMBIGUOUS = re.compile(r".*[_:].*|[-+]?0[b0-9]+")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key and `file:line` by key; InputError with file, line and cure when it is no list of `key: value`."""
    node, values = load_file(path)
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure="write one parameter a line, such as `seed: 0`")
    places: dict[str, str] = {}
    for key, _ in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.value in places:
            raise InputError(f"{key.value!r} is set twice", where=place, cure=f"keep this or {places[key.value]}")
        places[str(key.value)] = place
    return {str(key): value for key, value in values.items()}, places


def load_file(path: Path) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML file, which knows its lines, and its content; InputError names the line at fault."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="name one of papermill_params/*.yaml") from None
    except IsADirectoryError:
        raise InputError("is a folder", where=path, cure="name one of the YAML files in it") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", where=path, cure="save it as UTF-8") from None
    if len(text) > LARGEST:
        raise InputError(f"more than {LARGEST:,} characters", where=path, cure="name a file of parameters")
    try:
        return _load(text, place=lambda mark: f"{path}:{mark.line + 1}")
    except yaml.MarkedYAMLError as error:
        place = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise InputError(f"not YAML ({error.problem})", where=place, cure="write `key: value`, one a line") from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})", where=path, cure="write `key: value`, one a line") from None


def read_override(text: str) -> tuple[str, Any]:
    """Key and value of a `key=value` text; InputError when it is none."""
    place = f"-p {text}" if len(text) < 200 else f"-p {text[:100]}…"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("not key=value", where=place, cure="write for example -p seed=1")
    try:
        return key.strip(), _load(value, place=lambda mark: place)[1] if value.strip() else ""
    except yaml.YAMLError:
        raise InputError("the value is not YAML", where=place, cure="write for example -p 'cell_types=[U2OS]'") from None


def _load(text: str, *, place: Callable[[yaml.Mark], str]) -> tuple[yaml.Node | None, Any]:
    """The tree of a text and its content; `place` says where a mark lies. Raises YAMLError, and InputError for what YAML allows."""
    _check_size(text, place)
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    for scalar in _scalars(node):
        where = place(scalar.start_mark)
        if scalar.tag in NUMBERS and len(scalar.value) > DIGITS:
            raise InputError(f"a number of {len(scalar.value):,} characters", where=where, cure=f"write at most {DIGITS}")
        try:
            scalar.value.encode()  # "\\udcff" is a text for YAML, and none that can be written
            value = loader.construct_object(scalar)
        except (ValueError, LookupError, AttributeError) as error:  # 2001-99-99 is a date for YAML, and none for Python
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=scalar.start_mark) from None
        if scalar.tag in NUMBERS and scalar.style is None and _AMBIGUOUS.fullmatch(scalar.value):
            what = f"{scalar.value} is {value} in YAML 1.1, and something else in YAML 1.2"
            raise InputError(what, where=where, cure="write a number without leading zeros, `_` and `:`, or a text in quotes")
    return node, None if node is None else loader.construct_document(node)


def _check_size(text: str, place: Callable[[yaml.Mark], str]) -> None:
    """Refuse what would grow beyond all measure, before a tree is made of it."""
    sizes: dict[str, int] = {}  # of the nodes that an alias may repeat
    within: list[tuple[str | None, int]] = []  # the nodes around: their anchors, and what had been counted before
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            within.append((event.anchor, count))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in within):
                raise InputError(f"*{event.anchor} stands inside itself", where=place(event.start_mark), cure="write out what it shall be")
            count += sizes.get(event.anchor, 0)  # one that nobody defined is found later
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            count += 1
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            sizes[event.anchor] = 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = within.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if len(within) > DEEPEST:
            raise InputError(f"more than {DEEPEST} lists or mappings inside each other", where=place(event.start_mark), cure="write it flat")
        if count > MOST:
            raise InputError(f"more than {MOST:,} values, aliases written out", where=place(event.start_mark), cure="write fewer")


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The single values of a tree, keys too; what an alias repeats comes once."""
    waiting, seen = [node], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, yaml.ScalarNode):
            yield each
        elif isinstance(each, yaml.MappingNode):
            waiting += [part for pair in each.value for part in pair]
        elif isinstance(each, yaml.SequenceNode):
            waiting += each.value


Names = list[str]
PATHS = ("data", "run", "pretrained")


class Recipe(BaseModel):
    """Every parameter a run may set; names and meanings are those of the notebooks' parameters cells."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    task: Literal["rxrx1", "protein-atlas"] = Field("rxrx1", description="what is asked of the pictures")
    data: str = Field("", description="folder of the data set; empty means <run>/data")
    preset: str = Field("", description="virtual microscope that fills `data` when it is not there yet")
    run: str = Field("", description="run folder; empty means runs/<name of the YAML file>")
    seed: int = Field(0, ge=0, lt=2**32, description="one seed for plates, splits, weights and batches")
    # What is learnt from
    cell_types: Names = Field([], description="cell types to train; empty means all")
    experiments: Names = Field([], description="experiments to use; empty means all")
    split: Literal["experiment", "random"] = Field("experiment", description="what is held out from training")
    held_out: int = Field(1, ge=1, description="held-out experiments per cell type, but never all of them")
    folds: int = Field(5, ge=2, description="of the Protein Atlas, a network each")
    drop_edge_wells: bool = Field(False, description="leave out wells in a plate's outer rows and columns")
    classes: Literal["treatments", "all"] = Field("treatments", description="siRNAs told apart; all: the controls of every experiment too")
    # The network
    joint: bool = Field(False, description="one network for all cell types, and not one each")
    backbone: str = Field("densenet121", description="network, by name; timm:NAME for any of timm's")
    ensemble: Names = Field([], description="backbones of further networks, whose scores are averaged")
    pretrained: str = Field("", description="weights to begin with: imagenet, or a .safetensors file")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the features dropped before the head")
    standardise: Literal["none", "image", "plate", "experiment"] = Field(
        "none", description="whose mean and deviation per channel are taken out of a picture"
    )
    covariates: Names = Field([], description="what the network is told beside the picture")
    heads: Literal["shared", "cell_type", "both"] = Field("shared", description="one head, one per cell type, or their sum")
    cosine: Literal["none", "beside", "alone"] = Field("none", description="head of cosines, for arcface and cosface: it teaches, or answers")
    control_features: bool = Field(False, description="multiply features by those of the plate's controls (seed 004)")
    # Which wells share a batch
    batch_size: int = Field(16, ge=2, description="sites per batch; one alone has no batch statistics")
    batches: Literal["plate", "experiment", "mixed"] = Field("plate", description="which wells share a batch")
    virtual_batch: int = Field(0, ge=0, description="sites per step of the optimiser; 0 means one batch")
    compare_batches: bool = Field(False, description="train once more from the same pretraining, without the virtual batch, for its rung")
    # Training
    pretrain_epochs: int = Field(100, ge=0, description="epochs on the 31 control classes")
    head_epochs: int = Field(0, ge=0, description="epochs on the treatments that train the new head only")
    epochs: int = Field(375, ge=0, description="epochs on the treatments, the whole network")
    final_epochs: int = Field(0, ge=0, description="last epochs on all labelled wells, the held-out ones too")
    optimizer: Literal["adam", "adamw", "sgd", "radam"] = Field("adam", description="rule of the steps")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    learning_rate: float = Field(1.0e-3, gt=0, description="of the optimiser, before its schedule")
    final_learning_rate: float = Field(1.0e-4, gt=0, description="of the last epochs, constant")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["steps", "cosine", "cyclic", "constant"] = Field("steps", description="how the learning rate falls")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which the learning rate rises to its value")
    decay_epochs: list[int] = Field([], description="epochs at which `steps` divides by 10; empty means Brodt's shares")
    cycles: int = Field(1, ge=1, description="cosines of the schedule `cyclic`")
    loss: str = Field("bce", description="sum of weighted terms, such as 0.8 cross-entropy + 0.1 arcface")
    margin: float = Field(0.5, ge=0, description="of arcface (radians) and cosface")
    margin_scale: float = Field(30.0, gt=0, description="by which cosines become logits")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that all classes divide")
    ema: float = Field(0.0, ge=0, lt=1, description="of the weights, kept at each step in their moving average; 0 means none")
    # What happens to a picture
    augment: Literal["d4", "none"] = Field("d4", description="flips and quarter turns, or nothing")
    crop: float = Field(1.0, gt=0, le=1, description="side of a random crop, as a share of the picture's")
    resized_crop: float = Field(1.0, gt=0, le=1, description="least share of the area in a random crop that is resized to the whole")
    channel_scale: float = Field(0.0, ge=0, description="deviation of a random factor per picture and channel")
    channel_shift: float = Field(0.0, ge=0, description="deviation of a random summand per picture and channel")
    mixup: float = Field(0.0, ge=0, description="alpha of MixUp; 0 means none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 means none")
    mix_phases: Literal["final", "all"] = Field("final", description="when pictures are mixed: the last epochs, or all on treatments")
    sizes: list[int] = Field([], description="sides, in px, of pictures in equal parts of the epochs; empty means as they are")
    # Pseudo-labels
    pseudo_epochs: int = Field(0, ge=0, description="last epochs on the treatments that learn from test wells too, as they are assigned")
    pseudo_share: float = Field(0.4, gt=0, le=1, description="of the test wells, the surest first, in the first of these epochs")
    pseudo_step: float = Field(0.015, ge=0, le=1, description="by which that share grows with each epoch")
    # Prediction
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="of the arithmetic; auto asks the GPU")
    statistics: Literal["running", "batch", "adapted"] = Field(
        "adapted", description="whose batch-normalisation statistics the prediction uses"
    )
    scope: Literal["plate", "experiment"] = Field("plate", description="wells that share statistics")
    smallest_batch: int = Field(32, ge=2, description="of the batches over whose sizes `batch` averages")
    largest_batch: int = Field(128, ge=2, description="of the batches over whose sizes `batch` averages")
    passes: int = Field(1, ge=1, description="sizes from smallest to largest batch; Brodt took all 97")
    views: Literal[1, 2, 4, 8] = Field(1, description="flips and quarter turns of a picture whose answers are averaged")
    combine: Literal["mean", "max"] = Field("mean", description="of a site's probabilities in several views and networks (Protein Atlas)")
    prototypes: float = Field(0.0, ge=0, le=1, description="weight of the likeness to each siRNA's mean features; 0 means none")
    prototype_scale: float = Field(0.0, ge=0, description="by which likenesses become logits; 0 means fitted on held-out wells")
    # Decision
    assignment: Literal["raw", "greedy", "exact", "expected"] = Field("expected", description="how siRNAs are chosen")
    groups: bool = Field(True, description="allow only the siRNAs of a plate's group")
    rotation_prior: float = Field(0.99, gt=0, lt=1, description="probability that groups lie rotated as in training")
    certainty: float = Field(0.95, gt=0, lt=1, description="least probability at which groups are believed")
    known_layouts: bool = Field(False, description="solve an experiment outright whose controls repeat a known layout")
    thresholds: Literal["fitted", "shares", "half"] = Field("fitted", description="of the Protein Atlas: on held-out folds, by class shares, or 0.5")
    # The machine
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where networks run")
    workers: int = Field(0, ge=0, description="threads that read images ahead; 0 means none")
    parallel: int = Field(2, ge=1, description="notebooks at once")
    processes: int = Field(0, ge=0, description="training processes; 0 means one per GPU")
    compile: bool = Field(False, description="train with kernels that torch.compile makes, after minutes of making them")
    recompute: bool = Field(False, description="train with less memory and more time: blocks are computed again on the way back")
    pages: bool = Field(True, description="look at the plates first, and write HTML pages and a report")
    time_budget_minutes: float = Field(
        0.0, ge=0, description="work stops cleanly in time and goes on at the next call; 0 means 11 hours on Kaggle, no limit elsewhere"
    )

    _places: dict[str, str] = PrivateAttr({})

    def place(self, key: str) -> str:
        """Where a parameter was set, such as `demo.yaml:3`, for a check that comes later."""
        return self._places.get(key, "parameters")

    @field_validator(*PATHS)
    @classmethod
    def _path(cls, name: str) -> str:
        if "\0" in name:
            raise ValueError("no path has a NUL character")
        try:
            return environment.expanded(name)
        except InputError as fault:
            raise ValueError(str(fault).removeprefix(f"{name}: ")) from None

    @field_validator("virtual_batch")
    @classmethod
    def _holds_a_batch(cls, sites: int, info: ValidationInfo) -> int:
        if 0 < sites < info.data.get("batch_size", 0):
            raise ValueError(f"a virtual batch holds whole batches, here of {info.data['batch_size']}; 0 means none")
        return sites

    @field_validator("largest_batch")
    @classmethod
    def _at_least_the_smallest(cls, sites: int, info: ValidationInfo) -> int:
        if sites < info.data.get("smallest_batch", 0):
            raise ValueError(f"it is below smallest_batch, {info.data['smallest_batch']}")
        return sites

    @field_validator("compare_batches")
    @classmethod
    def _something_to_compare(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and not info.data.get("virtual_batch"):
            raise ValueError("without a virtual_batch there is nothing to compare")
        return wanted

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        if name not in BACKBONES and not (name.startswith("timm:") and is_plain(name[5:])):
            raise ValueError(f"no such backbone; choose from {', '.join(BACKBONES)}, or timm:NAME")
        return name

    @field_validator("ensemble")
    @classmethod
    def _known_backbones(cls, names: Names) -> Names:
        return [cls._known_backbone(name) for name in names]

    @field_validator("loss")
    @classmethod
    def _known_terms(cls, loss: str, info: ValidationInfo) -> str:
        wrong = next((term for term in loss.split("+") if not TERM.fullmatch(term)), None)
        if wrong is not None:
            raise ValueError(f"{wrong.strip()!r} is no [weight] name; names are {', '.join(LOSSES)}")
        if "face" in loss and info.data.get("cosine") == "none":
            raise ValueError("arcface and cosface need the head of cosines: cosine: beside, or alone")
        return loss

    @field_validator("covariates")
    @classmethod
    def _known_covariates(cls, names: Names) -> Names:
        if unknown := set(names) - set(COVARIATES):
            raise ValueError(f"{min(unknown)!r} is none of {', '.join(COVARIATES)}")
        return cls._named_once(names)

    @field_validator("heads")
    @classmethod
    def _told_cell_types(cls, heads: str, info: ValidationInfo) -> str:
        if heads != "shared" and "cell_type" not in info.data.get("covariates", []):
            raise ValueError("a head per cell type must know the cell type: covariates: [cell_type]")
        return heads

    @field_validator("cosine")
    @classmethod
    def _cosines_alone_know_the_picture_only(cls, cosine: str, info: ValidationInfo) -> str:
        if cosine == "alone" and (info.data.get("covariates") or info.data.get("heads") != "shared"):
            raise ValueError("cosines alone answer by the picture; use cosine: beside, or leave covariates and other heads out")
        return cosine

    @field_validator("batches")
    @classmethod
    def _plates_have_their_controls(cls, batches: str, info: ValidationInfo) -> str:
        if info.data.get("control_features") and batches != "plate":
            raise ValueError("with control_features a batch lies beside the controls of its plate: batches: plate")
        return batches

    @field_validator("control_features")
    @classmethod
    def _controls_are_references_only(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and (info.data.get("classes") == "all" or info.data.get("cosine") == "alone"):
            raise ValueError("it wants classes: treatments, and a head that is not of cosines alone")
        return wanted

    @field_validator("pseudo_epochs")
    @classmethod
    def _within_the_epochs(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs > info.data.get("epochs", epochs):
            raise ValueError(f"there are only {info.data['epochs']} epochs")
        return epochs

    @field_validator("decay_epochs", "sizes")
    @classmethod
    def _rising(cls, numbers: list[int]) -> list[int]:
        if min(numbers, default=1) < 1 or numbers != sorted(numbers):
            raise ValueError("write whole numbers above 0, the smallest first")
        return numbers

    @field_validator("cell_types", "experiments")
    @classmethod
    def _named_once(cls, names: Names) -> Names:
        if len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        odd = next((name for name in names if not is_plain(name)), None)
        if odd is not None:
            raise ValueError(f"{odd!r} cannot be the name of a folder: letters, digits and any of _.+- do, a letter or digit first")
        return names


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML file, let `key=value` texts override it, and check all before anything runs.

    An empty `run` becomes runs/<stem of the file>. Raises InputError with file, line and cure.
    """
    values, places = read(path, overrides)
    values["run"] = values.get("run", "") or f"runs/{Path(path).stem}"
    return check(values, places=places, where=str(path))


def read(path: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """What a YAML file and the `key=value` texts that override it set, unchecked, and where each key stands."""
    values, places = read_yaml(Path(path))
    for text in overrides:
        key, value = read_override(text)
        values[key], places[key] = value, f"-p {text}"
    return values, places


def check(
    values: Mapping[str, Any],
    *,
    places: Mapping[str, str] = {},
    where: str = "parameters",
    model: type[Recipe] = Recipe,
    example: Callable[[str, Any], str] = lambda key, value: "",
) -> Recipe:
    """Make a Recipe (a `model`) of `values`; the first fault becomes an InputError that says where and how to mend it.

    `example` adds to the cure how the value of a key is passed.
    """
    unknown = next((key for key in values if key not in model.model_fields), None)
    if unknown is not None:
        raise InputError(f"unknown key {unknown!r}", where=places.get(unknown, where), cure=nearest(unknown, model.model_fields))
    try:
        checked = model.model_validate(dict(values))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = str(fault["loc"][0])
        reason = fault["msg"].removeprefix("Value error, ")
        what = f"{key} is {values[key]!r}: {reason[0].lower()}{reason[1:]}"
        cure = _cure(model, key, values[key]) + example(key, values[key])
        raise InputError(what, where=places.get(key, where), cure=cure) from None
    checked._places.update(places)
    return checked


def nearest(key: str, known: Iterable[str]) -> str:
    """The cure for a key that is not among the known ones."""
    near = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _cure(model: type[Recipe], key: str, value: Any) -> str:
    """How to write `value` so that it fits `key`."""
    field = model.model_fields[key]
    kind = field.annotation
    if value is None:
        return f"give it a value, or leave the line out for {field.default!r}"
    if kind in (float, int) and isinstance(value, str):
        return _number(value, kind)
    if key in PATHS and isinstance(value, str):
        return "" if "\0" not in value else "name another folder"  # the reason tells it
    if kind is str and isinstance(value, str):
        return f"write for example {key}: {field.default or 'imagenet'}"
    if kind is str:
        return f'write it in quotes: {key}: "{value}"'
    if kind in (Names, list[int]):
        return f"write a list of {'different names' if kind == Names else 'rising numbers'}, such as {key}: {list_example(key)}"
    if kind is bool:
        return f"write {key}: true or {key}: false"
    return f"write for example {key}: {field.default!r}" if field.default == "" else f"write for example {key}: {field.default}"


def list_example(key: str) -> str:
    """A list as YAML that fits a key."""
    return EXAMPLES.get(key, "[15, 25]")


def _number(text: str, kind: type) -> str:
    """YAML reads 1e-3 as text, because its numbers need a dot: say how to write the same number."""
    try:
        number = kind(float(text))
    except (ValueError, OverflowError):
        return "write a number without quotes"
    mantissa, e, exponent = text.strip().lower().partition("e")
    dotted = f"{float(mantissa)}e{exponent if exponent[:1] in '+-' else '+' + exponent}" if e else number
    return f"write {number if kind is int else dotted}" if isfinite(number) else "write a finite number"

"""The parameters of a run: one YAML file in groups, every key known, every value of its type."""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from cellsignal import settings
from cellsignal.code_identity import cell_trees, imported_run_modules, parse
from cellsignal.data.settings import WellSettings
from cellsignal.decide.settings import AssignmentSettings, PredictionSettings
from cellsignal.errors import InputError
from cellsignal.files import open_regular
from cellsignal.learn.settings import MARGIN_LOSSES, AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings, loss_terms
from cellsignal.run import environment
from cellsignal.settings import Settings, rule_error

ALL = "all"  # the cell type of a network that serves all of them
PATHS_AND_SPEED = {  # parameters that change no result
    "run", "data", "machine.num_workers", "machine.parallel_notebooks", "machine.num_processes", "machine.gradient_checkpointing",
    "machine.html_pages", "machine.time_budget_minutes",
}  # fmt: skip

# YAML files of parameters: the line of every key, limits on the content, and no number that YAML's versions read differently.

MAX_CHARACTERS = 1_000_000  # of a file
MAX_DEPTH = 20  # lists and mappings inside each other
MAX_VALUES = 10_000  # those that an alias repeats are counted each time
MAX_DIGITS = 40  # characters of a number
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML reads YAML 1.1, where 010 is 8, 1:30 is 90, 0b11 is 3 and 1_000 is 1000; in YAML 1.2 they are 10 and three texts.
_AMBIGUOUS_NUMBER = re.compile(r".*[_:].*|[-+]?0[b0-9]+")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key, and `file:line` by dotted key; InputError with file, line and cure when it is no list of `key: value`."""
    node, values = load_yaml(path)
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure="write one parameter a line, such as `seed: 0`")
    locations: dict[str, str] = {}
    for key, location in key_locations(node, path):
        if key in locations:
            raise InputError(f"{key!r} is set twice", where=location, cure=f"keep this or {locations[key]}")
        locations[key] = location
    return {str(name): {str(key): item for key, item in value.items()} if isinstance(value, dict) else value for name, value in values.items()}, locations


def key_locations(node: yaml.Node | None, path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a node, joined by dots with the keys above it, and its `file:line`."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}{key.value}"
        yield name, f"{path}:{key.start_mark.line + 1}"
        yield from key_locations(value, path, f"{name}.")


def load_yaml(path: Path) -> tuple[yaml.Node | None, Any]:
    """The tree of a YAML file, which has line numbers, and its content; InputError names the invalid line."""
    try:
        if path.is_dir():
            raise InputError("is a folder", where=path, cure="name one of the YAML files in it")
        with open_regular(path, "r", encoding="utf-8") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=path, cure="name one of papermill_params/*.yaml") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text", where=path, cure="save it as UTF-8") from None
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"more than {MAX_CHARACTERS:,} characters", where=path, cure="name a file of parameters")
    try:
        return _load_text(text, location_of=lambda mark: f"{path}:{mark.line + 1}")
    except yaml.MarkedYAMLError as error:
        location = f"{path}:{error.problem_mark.line + 1}" if error.problem_mark else path
        raise InputError(f"not YAML ({error.problem})", where=location, cure="write `key: value`, one a line") from None
    except yaml.YAMLError as error:
        raise InputError(f"not YAML ({error})", where=path, cure="write `key: value`, one a line") from None


def read_override(text: str) -> tuple[str, Any]:
    """Key and value of a `key=value` text; InputError for any other text."""
    location = f"-p {text}" if len(text) < 200 else f"-p {text[:100]}…"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError("not key=value", where=location, cure="write for example -p seed=1")
    try:
        return key.strip(), _load_text(value, location_of=lambda mark: location)[1] if value.strip() else ""
    except yaml.YAMLError:
        raise InputError("the value is not YAML", where=location, cure="write for example -p 'wells.cell_types=[U2OS]'") from None


def _load_text(text: str, *, location_of: Callable[[yaml.Mark], str]) -> tuple[yaml.Node | None, Any]:
    """The tree of a text and its content; YAMLError for invalid YAML, InputError for valid YAML that is not accepted here."""
    _check_size(text, location_of)
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    for scalar in _scalars(node):
        where = location_of(scalar.start_mark)
        if scalar.tag in NUMBER_TAGS and len(scalar.value) > MAX_DIGITS:
            raise InputError(f"a number of {len(scalar.value):,} characters", where=where, cure=f"write at most {MAX_DIGITS}")
        try:
            scalar.value.encode()  # "\\udcff" is a valid YAML text that cannot be written to a file
            value = loader.construct_object(scalar)
        except (ValueError, LookupError, AttributeError) as error:  # 2001-99-99 is a date for YAML, and none for Python
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=scalar.start_mark) from None
        if scalar.tag in NUMBER_TAGS and scalar.style is None and _AMBIGUOUS_NUMBER.fullmatch(scalar.value):
            what = f"{scalar.value} is {value} in YAML 1.1, and something else in YAML 1.2"
            raise InputError(what, where=where, cure="write a number without leading zeros, `_` and `:`, or a text in quotes")
    return node, None if node is None else loader.construct_document(node)


def _check_size(text: str, location_of: Callable[[yaml.Mark], str]) -> None:
    """Refuse a text whose tree would be too large, before the tree is made."""
    anchor_sizes: dict[str, int] = {}  # values in the nodes that an alias may repeat
    open_nodes: list[tuple[str | None, int]] = []  # anchors of the surrounding nodes, and the count when each began
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise InputError(f"*{event.anchor} stands inside itself", where=location_of(event.start_mark), cure="write out what it shall be")
            count += anchor_sizes.get(event.anchor, 0)  # an undefined anchor is an error later
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            count += 1
        if isinstance(event, yaml.ScalarEvent) and event.anchor:
            anchor_sizes[event.anchor] = 1
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, count_at_start = open_nodes.pop()
            anchor_sizes |= {anchor: count - count_at_start} if anchor else {}
        if len(open_nodes) > MAX_DEPTH:
            raise InputError(f"more than {MAX_DEPTH} lists or mappings inside each other", where=location_of(event.start_mark), cure="write it flat")
        if count > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} values, aliases written out", where=location_of(event.start_mark), cure="write fewer")


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """The single values of a tree, keys too; a node that aliases repeat comes once."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            yield node
        elif isinstance(node, yaml.MappingNode):
            waiting += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


RENAMED_KEYS = {  # the new keys of version 0.1's flat recipes, by old key, where the word changed
    "held_out": "wells.validation_experiments", "joint": "network.one_network", "cosine": "network.cosine_head",
    "batches": "training.batch_scope", "compare_batches": "training.ablate_virtual_batch", "ema": "training.ema_decay",
    "pseudo_epochs": "training.pseudo_label_epochs", "pseudo_share": "training.pseudo_label_share",
    "pseudo_step": "training.pseudo_label_increment", "augment": "augmentation.symmetries", "mixup": "augmentation.mixup_alpha",
    "cutmix": "augmentation.cutmix_alpha", "sizes": "augmentation.progressive_sizes", "scope": "prediction.statistics_scope",
    "passes": "prediction.num_batch_sizes", "views": "prediction.tta_views", "prototypes": "prediction.prototype_weight",
    "groups": "assignment.plate_groups", "certainty": "assignment.min_group_posterior", "workers": "machine.num_workers",
    "parallel": "machine.parallel_notebooks", "processes": "machine.num_processes", "recompute": "machine.gradient_checkpointing",
    "pages": "machine.html_pages",
}  # fmt: skip


class Recipe(Settings):
    """Every parameter a run may set; a group is defined in the room that uses it."""

    task: Literal["rxrx1", "protein-atlas", "rxrx1-wilds"] = Field("rxrx1", description="what is asked of the images")
    data: str = Field("", description="folder of the data set; empty means <run>/data")
    preset: str = Field("", description="virtual microscope that fills `data` when it is not there yet")
    run: str = Field("", description="run folder; empty means runs/<name of the YAML file>")
    seed: int = Field(0, ge=0, lt=2**32, description="one seed for plates, splits, weights and batches")
    wells: WellSettings = Field(default_factory=WellSettings, description="which wells are learnt from, and what is held out")
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="what the networks are")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="how they are trained")
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings, description="what happens to a training image")
    prediction: PredictionSettings = Field(default_factory=PredictionSettings, description="how scores are made")
    assignment: AssignmentSettings = Field(default_factory=AssignmentSettings, description="how siRNAs are chosen by the scores")
    machine: MachineSettings = Field(default_factory=MachineSettings, description="on what it works, and for how long")

    _locations: dict[str, str] = PrivateAttr({})

    def location(self, key: str) -> str:
        """Where a dotted key was set, such as `demo.yaml:3`, for a later check."""
        return self._locations.get(key, self._locations.get(key.partition(".")[0], "parameters"))

    @field_validator("data", "run")
    @classmethod
    def _expand_path(cls, name: str) -> str:
        return _expanded(name, "")

    @field_validator("network")
    @classmethod
    def _check_control_features(cls, network: NetworkSettings, info: ValidationInfo) -> NetworkSettings:
        if network.control_features and "wells" in info.data and info.data["wells"].classes == "all":
            raise rule_error("network.control_features", "the controls are references, so they cannot be classes too: set wells.classes: treatments")
        return network.model_copy(update={"pretrained": _expanded(network.pretrained, "network.pretrained")})

    @field_validator("training")
    @classmethod
    def _check_network(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        network = info.data.get("network", NetworkSettings(cosine_head="auxiliary"))
        if network.control_features and training.batch_scope != "plate":
            raise rule_error("training.batch_scope", "with control_features a batch refers to the controls of its plate: batch_scope: plate")
        if network.cosine_head == "none" and any(name in MARGIN_LOSSES for _, name in loss_terms(training.loss)):
            raise rule_error("training.loss", "arcface and cosface need a head of cosines: network.cosine_head: auxiliary, or only")
        return training


def _expanded(name: str, key: str) -> str:
    """A path with `~` and `$NAME` replaced; the error of a rule where they are unknown."""
    try:
        if "\0" in name:
            raise InputError("no path has a NUL character")
        return environment.expand_path(name)
    except InputError as error:
        reason = str(error).removeprefix(f"{name}: ")
        raise rule_error(key, reason) if key else ValueError(reason) from None


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML file, apply `key=value` texts to it, and check everything before anything runs.

    An empty `run` becomes runs/<stem of the file>. Raises InputError with file, line and cure.
    """
    values, locations = read(path, overrides)
    values["run"] = values.get("run", "") or f"runs/{Path(path).stem}"
    return check(values, locations=locations, where=str(path))


def read(path: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a YAML file and of the `key=value` texts that override it, unchecked and in groups, and the location of each dotted key."""
    values, locations = read_yaml(Path(path))
    for text in overrides:
        key, value = read_override(text)
        values = settings.update(values, {key: value})
        locations |= dict.fromkeys(settings.flatten({key: value}), f"-p {text}")
    return values, locations


def check(
    values: Mapping[str, Any],
    *,
    locations: Mapping[str, str] = {},
    where: str = "parameters",
    model: type[Recipe] = Recipe,
    example: Callable[[str, Any], str] = lambda key, value: "",
) -> Recipe:
    """Make a Recipe (a `model`) of `values`; the first invalid value raises InputError with its location and a cure.

    `example` adds to the cure how the value of a key is passed.
    """
    try:
        checked = model.model_validate(dict(values))
    except ValidationError as error:
        raise settings.first_error(model, values, error, locations=locations, where=where, renamed=RENAMED_KEYS, example=example) from None
    checked._locations.update(locations)
    return checked


def settings_table() -> str:
    """Every key as a Markdown table: type and range, default, meaning. It is papermill_params/SETTINGS.md."""
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key in settings.keys(Recipe):
        field = settings.field(Recipe, key)
        default = json.dumps(field.get_default(call_default_factory=True))
        rows.append(f"| `{key}` | {_values(field)} | `{default}` | {field.description} |")
    return "\n".join(rows) + "\n"


def _values(field: FieldInfo) -> str:
    """The type of a setting and its range, or the words that it takes."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{str(word).lower()}`" for word in get_args(field.annotation))
    types = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}
    bounds = [f"{sign}{getattr(rule, name):g}" for rule in field.metadata for name, sign in signs.items() if hasattr(rule, name)]
    return ", ".join([types.get(field.annotation, "list"), *bounds])


def without_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values as a notebook gets them: of each group only what is not at its default."""
    default = Recipe().model_dump()
    return {name: {key: item for key, item in value.items() if item != default[name][key]} if settings.group_of(Recipe, name) else value
            for name, value in values.items()}


# Which keys of a recipe a notebook reads, found in its code.


def keys_read_by_cells(cells: Iterable[str]) -> set[str]:
    """The dotted keys that the cells of a notebook read, and those that the functions of `cellsignal.run` read which the cells name.

    Such a function takes the session under this name and reads `session.recipe`; a cell that passes on the recipe itself reads all of
    it. A method counts where any attribute of its name occurs. A cell that is not Python, such as %%bash, reads nothing.
    """
    trees = cell_trees(cells)
    names = set().union(*map(_names, trees))
    texts = (path.read_text(encoding="utf-8") for path in set().union(*map(imported_run_modules, trees)))
    module_nodes = [node for text in texts if "session" in text for node in _reachable_nodes(parse(text), names)]
    return _keys_in_trees(trees, in_notebook=True) | _keys_in_trees(module_nodes, in_notebook=False)


def _reachable_nodes(module: ast.Module, names: set[str]) -> list[ast.AST]:
    """The nodes of a module that may run for code that uses `names`: all but the functions and methods that nothing names."""
    reachable: list[ast.AST] = []
    functions: list[tuple[str, ast.AST]] = []
    for class_name, body in (("", module.body), *((node.name, node.body) for node in module.body if isinstance(node, ast.ClassDef))):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((class_name if class_name and node.name.startswith("__") else node.name, node))
            elif class_name or not isinstance(node, ast.ClassDef):
                reachable.append(node)
    names = names.union(*map(_names, reachable))
    while newly_named := [node for name, node in functions if name in names]:
        reachable += newly_named
        functions = [function for function in functions if function[1] not in newly_named]
        names = names.union(*map(_names, newly_named))
    return reachable


def _names(tree: ast.AST) -> set[str]:
    """The names, attributes and imported names in a tree."""
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def _keys_in_trees(trees: Iterable[ast.AST], *, in_notebook: bool) -> set[str]:
    """The dotted keys that code reads, as `recipe.training.epochs`, or as a plain parameter's name such as `seed`.

    `recipe.training.head`, a subset of a group, means its fields, and a group by itself all of its keys; `session.time_budget`
    means `machine.time_budget_minutes`. `in_notebook`: plain parameters are variables there.
    """
    keys: set[str] = set()
    waiting = list(trees)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "recipe" and _are_recipes(node.targets):
            continue  # recipe = session.recipe
        keys |= {"machine.time_budget_minutes"} if isinstance(node, ast.Attribute) and node.attr == "time_budget" else set()
        path = _recipe_path(node)
        if path is not None:
            keys |= _keys_of_path(path)
        elif in_notebook and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in Recipe.model_fields:
            keys |= _keys_of_path([node.id])
        else:
            waiting += ast.iter_child_nodes(node)
    return keys


def _are_recipes(targets: Iterable[ast.expr]) -> bool:
    """Whether all targets of an assignment are called `recipe` or `….recipe`."""
    return all(isinstance(target, ast.Name | ast.Attribute) and (target.id if isinstance(target, ast.Name) else target.attr) == "recipe" for target in targets)


def _recipe_path(node: ast.AST) -> list[str] | None:
    """The attributes of `recipe` in an expression such as `recipe.training.epochs`; None for other expressions."""
    if isinstance(node, ast.Name):
        return [] if node.id == "recipe" and isinstance(node.ctx, ast.Load) else None
    if not isinstance(node, ast.Attribute):
        return None
    path = _recipe_path(node.value)
    return [*path, node.attr] if path is not None else [] if node.attr == "recipe" else None


def _keys_of_path(path: list[str]) -> set[str]:
    """The keys that `recipe.path` may read."""
    if not path or path[0] not in Recipe.model_fields:
        return set(settings.keys(Recipe))
    group = settings.group_of(Recipe, path[0])
    if group is None:
        return {path[0]}
    names = [path[1]] if path[1:] and path[1] in group.model_fields else group.subsets.get("".join(path[1:2]), group.model_fields)
    return {f"{path[0]}.{name}" for name in names}


# The names of a run's networks and of their weights: `model`, further members of its ensemble, and `plain` for comparison.


def ensemble_members(backbone: str, ensemble: Sequence[str] = ()) -> dict[str, str]:
    """The backbone of each network whose scores are averaged, by name: `model`, `model-2`, `model-3`, …"""
    return {"model": backbone, **{f"model-{number}": name for number, name in enumerate(ensemble, start=2)}}


def network_seed(seed: int, network: str) -> int:
    """The seed of a network's weights and batches: each member of an ensemble has the next one."""
    return seed + _member_number(network) - 1


def pretrained_weights_name(network: str) -> str:
    """The name of the weights from the controls with which a network starts: `plain` takes those of `model`, members have their own."""
    return "pretrain" if _member_number(network) == 1 else f"pretrain-{_member_number(network)}"


def last_weights_name(network: str, *, final: bool) -> str:
    """The name of a network's last weights; `final`: after further training on all labelled wells."""
    return f"{phase_prefix(network)}final" if final else network


def phase_prefix(network: str) -> str:
    """The prefix of the names of a network's other phases; empty for `model`."""
    return "" if network == "model" else f"{network}-"


def _member_number(network: str) -> int:
    return int(network.removeprefix("model-")) if network.startswith("model-") else 1

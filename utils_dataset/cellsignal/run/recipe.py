"""The parameters of a run: one YAML file in groups, every key known, every value of its type."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from cellsignal import settings
from cellsignal.code_identity import parsed, run_modules
from cellsignal.data.settings import WellSettings
from cellsignal.decide.settings import AssignmentSettings, PredictionSettings
from cellsignal.errors import InputError
from cellsignal.learn.settings import MARGIN_LOSSES, AugmentationSettings, MachineSettings, NetworkSettings, TrainingSettings, parse_loss
from cellsignal.run import environment
from cellsignal.settings import Settings, broken

# YAML of parameters: the line of every key, limits on what a file may hold, and no number that YAML's versions read differently.


LARGEST = 1_000_000  # characters of a file
DEEPEST = 20  # lists and mappings inside each other
MOST = 10_000  # values, those that an alias repeats counted each time
DIGITS = 40  # characters of a number
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# PyYAML reads YAML 1.1, where 010 is 8, 1:30 is 90, 0b11 is 3 and 1_000 is 1000; in YAML 1.2 they are 10 and three texts.
_AMBIGUOUS = re.compile(r".*[_:].*|[-+]?0[b0-9]+")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Values by key, and `file:line` by dotted key; InputError with file, line and cure when it is no list of `key: value`."""
    node, values = load_file(path)
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError("not a list of `key: value` lines", where=path, cure="write one parameter a line, such as `seed: 0`")
    places: dict[str, str] = {}
    for key, place in key_places(node, path):
        if key in places:
            raise InputError(f"{key!r} is set twice", where=place, cure=f"keep this or {places[key]}")
        places[key] = place
    return {str(name): {str(key): each for key, each in value.items()} if isinstance(value, dict) else value for name, value in values.items()}, places


def key_places(node: yaml.Node | None, path: Path, before: str = "") -> Iterator[tuple[str, str]]:
    """Every key below a node, by the names on the way to it joined by dots, and its `file:line`."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{before}{key.value}"
        yield name, f"{path}:{key.start_mark.line + 1}"
        yield from key_places(value, path, f"{name}.")


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
        raise InputError("the value is not YAML", where=place, cure="write for example -p 'wells.cell_types=[U2OS]'") from None


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


FORMERLY = {  # keys of the flat recipes of version 0.1, by what they are called now where that is another word
    "held_out": "wells.validation_experiments", "joint": "network.one_network", "cosine": "network.cosine_head",
    "batches": "training.batch_scope", "compare_batches": "training.ablate_virtual_batch", "ema": "training.ema_decay",
    "pseudo_epochs": "training.pseudo_label_epochs", "pseudo_share": "training.pseudo_label_share",
    "pseudo_step": "training.pseudo_label_step", "augment": "augmentation.symmetries", "mixup": "augmentation.mixup_alpha",
    "cutmix": "augmentation.cutmix_alpha", "sizes": "augmentation.progressive_sizes", "scope": "prediction.statistics_scope",
    "passes": "prediction.num_batch_sizes", "views": "prediction.tta_views", "prototypes": "prediction.prototype_weight",
    "groups": "assignment.plate_groups", "certainty": "assignment.min_group_posterior", "workers": "machine.num_workers",
    "parallel": "machine.parallel_notebooks", "processes": "machine.num_processes", "recompute": "machine.gradient_checkpointing",
    "pages": "machine.html_pages",
}  # fmt: skip


class Recipe(Settings):
    """Every parameter a run may set; a group is defined in the room that uses it."""

    task: Literal["rxrx1", "protein-atlas"] = Field("rxrx1", description="what is asked of the pictures")
    data: str = Field("", description="folder of the data set; empty means <run>/data")
    preset: str = Field("", description="virtual microscope that fills `data` when it is not there yet")
    run: str = Field("", description="run folder; empty means runs/<name of the YAML file>")
    seed: int = Field(0, ge=0, lt=2**32, description="one seed for plates, splits, weights and batches")
    wells: WellSettings = Field(default_factory=WellSettings, description="which wells are learnt from, and what is held out")
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="what the networks are")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="how they are trained")
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings, description="what happens to a picture that trains")
    prediction: PredictionSettings = Field(default_factory=PredictionSettings, description="how scores are made")
    assignment: AssignmentSettings = Field(default_factory=AssignmentSettings, description="how siRNAs are chosen by the scores")
    machine: MachineSettings = Field(default_factory=MachineSettings, description="on what it works, and for how long")

    _places: dict[str, str] = PrivateAttr({})

    def place(self, key: str) -> str:
        """Where a dotted key was set, such as `demo.yaml:3`, for a check that comes later."""
        return self._places.get(key, self._places.get(key.partition(".")[0], "parameters"))

    @field_validator("data", "run")
    @classmethod
    def _path(cls, name: str) -> str:
        return _expanded(name, "")

    @field_validator("network")
    @classmethod
    def _controls_are_references_only(cls, network: NetworkSettings, info: ValidationInfo) -> NetworkSettings:
        if network.control_features and "wells" in info.data and info.data["wells"].classes == "all":
            raise broken("network.control_features", "the controls are references, and no classes: wells.classes: treatments")
        return network.model_copy(update={"pretrained": _expanded(network.pretrained, "network.pretrained")})

    @field_validator("training")
    @classmethod
    def _fits_the_network(cls, training: TrainingSettings, info: ValidationInfo) -> TrainingSettings:
        network = info.data.get("network", NetworkSettings(cosine_head="auxiliary"))
        if network.control_features and training.batch_scope != "plate":
            raise broken("training.batch_scope", "with control_features a batch refers to the controls of its plate: batch_scope: plate")
        if network.cosine_head == "none" and any(name in MARGIN_LOSSES for _, name in parse_loss(training.loss)):
            raise broken("training.loss", "arcface and cosface need a head of cosines: network.cosine_head: auxiliary, or only")
        return training


def _expanded(name: str, key: str) -> str:
    """A path with what `~` and `$NAME` stand for; a broken rule where that is not known."""
    try:
        if "\0" in name:
            raise InputError("no path has a NUL character")
        return environment.expanded(name)
    except InputError as fault:
        reason = str(fault).removeprefix(f"{name}: ")
        raise broken(key, reason) if key else ValueError(reason) from None


def load(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a YAML file, let `key=value` texts override it, and check all before anything runs.

    An empty `run` becomes runs/<stem of the file>. Raises InputError with file, line and cure.
    """
    values, places = read(path, overrides)
    values["run"] = values.get("run", "") or f"runs/{Path(path).stem}"
    return check(values, places=places, where=str(path))


def read(path: Path, overrides: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """What a YAML file and the `key=value` texts that override it set, unchecked and in groups, and where each dotted key stands."""
    values, places = read_yaml(Path(path))
    for text in overrides:
        key, value = read_override(text)
        values = settings.changed(values, {key: value})
        places |= dict.fromkeys(settings.flat({key: value}), f"-p {text}")
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
    try:
        checked = model.model_validate(dict(values))
    except ValidationError as error:
        raise settings.fault(model, values, error, places=places, where=where, known_as=FORMERLY, example=example) from None
    checked._places.update(places)
    return checked


def shortened(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values as a notebook is given them: of each group what is not its default."""
    default = Recipe().model_dump()
    return {name: {key: each for key, each in value.items() if each != default[name][key]} if settings.group_of(Recipe, name) else value
            for name, value in values.items()}


def keys_read_by_cells(cells: Iterable[str]) -> set[str]:
    """The dotted keys that the cells of a notebook read, and those that the functions read which they name of modules of `cellsignal.run`.

    Such a function takes the session under this name and reads `session.recipe`; a cell that hands on the recipe itself reads all of
    it. Methods count where any attribute of their name occurs. A cell that is not Python, such as %matplotlib, reads nothing.
    """
    trees: list[ast.AST] = []
    for cell in cells:
        with suppress(SyntaxError):
            trees.append(parsed(cell))
    names = set().union(*map(_names, trees))
    texts = (path.read_text(encoding="utf-8") for path in set().union(*map(run_modules, trees)))
    modules = [node for text in texts if "session" in text for node in _reached(parsed(text), names)]
    return _read(trees, variables=True) | _read(modules, variables=False)


def _reached(module: ast.Module, names: set[str]) -> list[ast.AST]:
    """What of a module runs for who uses `names`: all but the functions and methods that nothing names."""
    reached: list[ast.AST] = []
    functions: list[tuple[str, ast.AST]] = []
    for name, body in (("", module.body), *((node.name, node.body) for node in module.body if isinstance(node, ast.ClassDef))):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((name if name and node.name.startswith("__") else node.name, node))
            elif name or not isinstance(node, ast.ClassDef):
                reached.append(node)
    names = names.union(*map(_names, reached))
    while new := [node for name, node in functions if name in names]:
        reached += new
        functions = [each for each in functions if each[1] not in new]
        names = names.union(*map(_names, new))
    return reached


def _names(tree: ast.AST) -> set[str]:
    """The names, attributes and imported names in a tree."""
    nodes = list(ast.walk(tree))
    found = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return found | {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}


def keys_read(code: str) -> set[str]:
    """The dotted keys that code reads, as `recipe.training.epochs`, or as a plain parameter's name such as `seed`.

    `recipe.training.head`, a part of a group, stands for its fields, and a group by itself for all of its keys; `session.time_budget`
    comes of `machine.time_budget_minutes`.
    """
    return _read([parsed(code)], variables=True)


def _read(trees: Iterable[ast.AST], *, variables: bool) -> set[str]:
    """The keys that code reads; `variables`: whether parameters are variables of it, as they are in a notebook."""
    found: set[str] = set()
    waiting = list(trees)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and node.value.attr == "recipe" and _are_recipes(node.targets):
            continue  # recipe = session.recipe
        found |= {"machine.time_budget_minutes"} if isinstance(node, ast.Attribute) and node.attr == "time_budget" else set()
        path = _path(node)
        if path is not None:
            found |= _keys(path)
        elif variables and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in Recipe.model_fields:
            found |= _keys([node.id])
        else:
            waiting += ast.iter_child_nodes(node)
    return found


def _are_recipes(targets: Iterable[ast.expr]) -> bool:
    """Whether what is assigned can only be read as `recipe` or `….recipe`."""
    return all(isinstance(each, ast.Name | ast.Attribute) and (each.id if isinstance(each, ast.Name) else each.attr) == "recipe" for each in targets)


def _path(node: ast.AST) -> list[str] | None:
    """The attributes of `recipe` that an expression goes through; None for another one."""
    if isinstance(node, ast.Name):
        return [] if node.id == "recipe" and isinstance(node.ctx, ast.Load) else None
    if not isinstance(node, ast.Attribute):
        return None
    before = _path(node.value)
    return [*before, node.attr] if before is not None else [] if node.attr == "recipe" else None


def _keys(path: list[str]) -> set[str]:
    """The keys that `recipe.path` may read."""
    if not path or path[0] not in Recipe.model_fields:
        return set(settings.keys(Recipe))
    group = settings.group_of(Recipe, path[0])
    if group is None:
        return {path[0]}
    names = [path[1]] if path[1:] and path[1] in group.model_fields else group.parts.get("".join(path[1:2]), group.model_fields)
    return {f"{path[0]}.{name}" for name in names}

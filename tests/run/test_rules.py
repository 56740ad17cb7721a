"""Every rule of every group, both ways: through a recipe, and through the group that the rooms take."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from cellsignal.errors import InputError
from cellsignal.learn.training.losses import LOSSES, MARGINS
from cellsignal.run import recipe
from cellsignal.run.recipe import Recipe
from cellsignal.settings import Settings, flatten, group_of, keys

GROUPS = {name: group_of(Recipe, name) for name in Recipe.model_fields if group_of(Recipe, name)}
# Rules that more than one field knows: dotted key at fault, what is set of its group, and the reason.
RULES: list[tuple[str, dict[str, Any], str]] = [
    ("wells.cell_types", {"cell_types": ["RPE", "RPE"]}, "a name stands there twice"),
    ("wells.experiments", {"experiments": ["../x"]}, "cannot be the name of a folder"),
    ("network.backbone", {"backbone": "densenet1"}, "no such backbone"),
    ("network.ensemble", {"ensemble": ["timm:../../x"]}, "no such backbone"),
    ("network.covariates", {"covariates": ["plates"]}, "'plates' is none of cell_type, experiment"),
    ("network.covariates", {"covariates": ["site", "site"]}, "a name stands there twice"),
    ("network.heads", {"heads": "both"}, "a head per cell type needs the cell type"),
    ("network.cosine_head", {"cosine_head": "only", "covariates": ["site"]}, "a cosine head alone uses the image alone"),
    ("network.control_features", {"cosine_head": "only", "control_features": True}, "control features need a linear head"),
    ("training.virtual_batch", {"virtual_batch": 8}, "use at least the batch size, 16"),
    ("training.ablate_virtual_batch", {"ablate_virtual_batch": True}, "without a virtual_batch there is nothing to compare"),
    ("training.loss", {"loss": "0.5 zebra"}, "'0.5 zebra' is no [weight] name"),
    ("training.loss", {"loss": "1e999 bce"}, "'1e999 bce' is no [weight] name"),
    ("training.pseudo_label_epochs", {"epochs": 3, "pseudo_label_epochs": 4}, "there are only 3 epochs"),
    ("training.decay_epochs", {"decay_epochs": [3, 2]}, "write whole numbers above 0, the smallest first"),
    ("augmentation.progressive_sizes", {"progressive_sizes": [0]}, "write whole numbers above 0, the smallest first"),
    ("prediction.tta_views", {"tta_views": True}, "input should be 1, 2, 4 or 8"),  # equal to 1
    ("machine.gradient_checkpointing", {"compile": True, "gradient_checkpointing": True}, "torch.compile computes no blocks again"),
    ("prediction.max_batch_size", {"min_batch_size": 64, "max_batch_size": 32}, "it is below min_batch_size, 64"),
]
# The faults that passed a recipe once and ended a training after hours.
LATE = [("training.label_smoothing", 0.95), ("training.margin", 2.0), ("training.margin_scale", 0.5), ("augmentation.channel_scale", 1.5)]
BETWEEN = {  # rules between groups, which only the recipe knows
    "training.loss": ({"training": {"loss": "0.5 bce + arcface"}}, "arcface and cosface need a head of cosines"),
    "training.batch_scope": ({"network": {"control_features": True}, "training": {"batch_scope": "mixed"}}, "with control_features a batch refers to the controls"),
    "network.control_features": ({"wells": {"classes": "all"}, "network": {"control_features": True}}, "the controls are references, so they cannot be classes too"),
}


def limits(group: type[Settings], name: str) -> Iterator[Any]:
    """Values just beyond what a field allows, and of another type."""
    field = group.model_fields[name]
    for rule in field.metadata:
        for bound, step in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            if (limit := getattr(rule, bound, None)) is not None:
                yield type(field.default)(limit + step)
    yield "nonsense" if get_origin(field.annotation) is Literal else {"a": "mapping"}


SIMPLE = [(f"{name}.{key}", value) for name, group in GROUPS.items() for key in group.model_fields for value in limits(group, key)]


def refused(key: str, values: dict[str, Any], folder: Path) -> str:
    """What both ways say of values of a group: key, value, reason and cure."""
    name, _, leaf = key.partition(".")
    path = folder / "bad.yaml"
    path.write_text(yaml.safe_dump({"seed": 0, name: values}, sort_keys=False))
    with pytest.raises(InputError) as of_recipe:
        recipe.load(path)
    with pytest.raises(InputError) as of_group:
        GROUPS[name](**values)
    place, said = f"{path}:{3 + list(values).index(leaf)}: ", str(of_recipe.value)
    assert said.startswith(f"{place}{key} is "), said
    assert said.removeprefix(f"{place}{name}.") == str(of_group.value).removeprefix(f"{GROUPS[name].__name__}: ")
    assert ";" in said and "\n" not in said
    return said


@pytest.mark.parametrize(("key", "value"), [*SIMPLE, *LATE], ids=lambda each: str(each)[:40])
def test_a_value_beyond_its_field(key: str, value: Any, tmp_path: Path) -> None:
    refused(key, {key.partition(".")[2]: value}, tmp_path)


@pytest.mark.parametrize(("key", "values", "reason"), RULES, ids=[f"{key} {number}" for number, (key, *_) in enumerate(RULES)])
def test_a_rule_of_a_group(key: str, values: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in refused(key, values, tmp_path)


@pytest.mark.parametrize("key", BETWEEN)
def test_a_rule_between_groups(key: str, tmp_path: Path) -> None:
    values, reason = BETWEEN[key]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=f"bad.yaml:[0-9]: {key} is .*: {reason}"):
        recipe.load(tmp_path / "bad.yaml")


def test_every_rule_is_taken() -> None:
    """A new rule of several fields wants a line above."""
    ruled = {f"{name}.{field}" for name, group in GROUPS.items() for rule in group.__pydantic_decorators__.field_validators.values() for field in rule.info.fields}
    assert ruled == {key for key, *_ in RULES}
    assert len(Recipe.__pydantic_decorators__.field_validators) == 3, "paths, and two groups that know earlier ones"


@pytest.mark.parametrize("loss", [".5 bce", "0.5*bce", "1e-1 bce", "5E-1 focal + 1e+1 bce", "bce+2 focal"])
def test_losses_that_one_of_two_grammars_refused(loss: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(yaml.safe_dump({"training": {"loss": loss}}))
    assert recipe.load(tmp_path / "good.yaml").training == GROUPS["training"](loss=loss)


@pytest.mark.parametrize("name", GROUPS)
def test_an_unknown_key_names_the_nearest(name: str, tmp_path: Path) -> None:
    key = next(iter(GROUPS[name].model_fields))
    (tmp_path / "bad.yaml").write_text(f"{name}:\n  {key}x: 1\n")
    with pytest.raises(InputError) as caught:
        recipe.load(tmp_path / "bad.yaml")
    assert str(caught.value) == f"{tmp_path / 'bad.yaml'}:2: unknown key '{name}.{key}x'; did you mean '{name}.{key}'?"
    with pytest.raises(InputError, match=f"unknown key '{key}x'; did you mean '{key}'"):
        GROUPS[name](**{f"{key}x": 1})


@pytest.mark.parametrize(("key", "cure"), [("Training", "did you mean 'training'?"), ("predictions", "did you mean 'prediction'?"),
                                           ("training.epochs", "write it in its group: training: {epochs: 375}"),
                                           ("machine.html_pages", "write it in its group: machine: {html_pages: true}")])
def test_a_group_that_is_misspelt_or_written_with_a_dot_is_named(key: str, cure: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe.check({key: {}})
    assert str(caught.value) == f"parameters: unknown key '{key}'; {cure}"


def test_keys_of_flat_recipes_are_told_their_names(tmp_path: Path) -> None:
    known = set(keys(Recipe))
    assert set(recipe.RENAMED_KEYS.values()) <= known and not set(recipe.RENAMED_KEYS) & known
    for key, name in {**recipe.RENAMED_KEYS, "epochs": "training.epochs", "backbone": "network.backbone"}.items():
        with pytest.raises(InputError, match=f"unknown key '{key}'; .*'{name}'"):
            recipe.check({key: 1})


def test_losses_and_backbones_are_those_that_can_be_built() -> None:
    from cellsignal.learn import settings
    from cellsignal.learn.networks.backbones import BACKBONES

    assert {*LOSSES, *MARGINS} == set(settings.LOSS_NAMES) and tuple(MARGINS) == settings.MARGIN_LOSSES
    assert set(BACKBONES) - {"one-norm"} == set(settings.BACKBONES) - {"one-norm"}


@pytest.mark.parametrize("name", GROUPS)
def test_parts_are_of_fields_and_have_a_property(name: str) -> None:
    for part, fields in GROUPS[name].subsets.items():
        assert set(fields) <= set(GROUPS[name].model_fields) and isinstance(getattr(GROUPS[name](), part), GROUPS[name])


def test_every_parameter_is_described() -> None:
    for model in (Recipe, *GROUPS.values()):
        assert all(field.description for field in model.model_fields.values())
    assert len(set(key.rpartition(".")[2] for key in keys(Recipe))) == len(list(keys(Recipe))) == len(flatten(Recipe().model_dump())), "no name twice"
    assert all(get_args(field.annotation) or field.annotation in (bool, int, float, str) for group in GROUPS.values() for field in group.model_fields.values())

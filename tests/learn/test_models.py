"""Networks in three steps, their heads, and the files they live in."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from building import make_network
from cellsignal.errors import InputError
from cellsignal.files import read_json, sha256
from cellsignal.learn.networks.classifier import ModelConfig, Classifier, load_body, load_weights, save_weights
from cellsignal.learn.networks.classifier import read_config
from cellsignal.learn.settings import NetworkSettings
from cellsignal.receipts import Receipt

PLATES = {"plate": ["1", "2", "3", "4"]}
RICH = {"levels": {"site": ["1", "2"], "cell_type": ["HUVEC", "RPE"]}, "heads": "both", "cosine_head": "auxiliary", "dropout": 0.5,
        "standardise": "image", "control_features": True}


def saved(path: Path, *, classes: int = 4, **options: object) -> Classifier:
    model = make_network("densenet-small", channels=6, classes=classes, seed=3, **options)
    save_weights(path, model.state_dict(), ModelConfig.from_model(model, class_numbers=list(range(classes)), well_types=["treatment"], scope="experiment"))
    return model


@pytest.mark.parametrize("options", [{}, {"levels": PLATES}, RICH], ids=["image", "plate", "rich"])
def test_weights_come_back_with_all_the_card_says(tmp_path: Path, options: dict) -> None:
    model = saved(tmp_path / "model.safetensors", **options)
    loaded, card = load_weights(tmp_path / "model.safetensors")
    assert (card.class_numbers, card.well_types, card.scope, card.task) == ([0, 1, 2, 3], ["treatment"], "experiment", "rxrx1")
    assert loaded.settings == model.settings and loaded.covariates == model.covariates == options.get("levels", {})
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.origin == "seed 3" and loaded.origin == read_json(tmp_path / "model.json")["outputs"]["model.safetensors"]


def test_a_card_of_an_older_version_still_says_enough(tmp_path: Path) -> None:
    model = saved(tmp_path / "model.safetensors")
    new = Receipt.read(tmp_path / "model.json")
    replace(new, details={name: new.details[name] for name in ("backbone", "channels", "class_numbers", "well_types", "scope")}).write()
    loaded, card = load_weights(tmp_path / "model.safetensors")
    assert loaded.settings == model.settings and card.cosine_head == "none"


@pytest.mark.parametrize("absent", ["scope", "one file's SHA-256", "backbone"])
def test_a_card_that_lacks_a_fact_is_refused_in_one_line(tmp_path: Path, absent: str) -> None:
    saved(tmp_path / "model.safetensors")
    card = Receipt.read(tmp_path / "model.json")
    details = {name: value for name, value in card.details.items() if name != absent}
    replace(card, details=details, outputs={} if "SHA" in absent else card.outputs).write()
    with pytest.raises(InputError, match=f"model.json: does not say {absent}; train again"):
        load_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "kernel"),
    [("U2OS/pretrain", "2-pretrain-controls"), ("U2OS/pretrain-2", "2-pretrain-controls"), ("U2OS/model", "3-train-cell-type"),
     ("all/plain", "3-train-cell-type"), ("fold-0/model", "protein-atlas")],
)  # fmt: skip
def test_weights_that_no_step_has_written_name_the_step(tmp_path: Path, name: str, kernel: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    expected = f"{path}: no such weights; run {kernel}, which writes them"
    with pytest.raises(InputError) as refused:
        load_weights(path)
    assert str(refused.value) == expected
    saved(path)
    path.unlink()
    with pytest.raises(InputError) as refused:
        load_weights(path)
    assert str(refused.value) == expected


def test_a_card_that_is_no_card_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text("[]")
    with pytest.raises(InputError, match="model.json: not as it was written; train again"):
        load_weights(tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.ci
def test_every_bit_of_a_card_counts(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors")
    whole = (tmp_path / "model.json").read_bytes()
    accepted = []
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (tmp_path / "model.json").write_bytes(content)
        try:
            read_config(tmp_path / "model.safetensors")
            accepted.append(place)
        except InputError as error:
            assert "\n" not in str(error)
    assert accepted == []


@pytest.mark.parametrize("options", [{}, RICH], ids=["image", "rich"])
def test_the_body_moves_and_the_head_stays(tmp_path: Path, options: dict) -> None:
    taught = saved(tmp_path / "pretrain.safetensors", levels=PLATES)
    model = make_network("densenet-small", channels=6, classes=9, seed=5, **options)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    assert load_body(model, tmp_path / "pretrain.safetensors") == model.origin == read_json(tmp_path / "pretrain.json")["outputs"]["pretrain.safetensors"]
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.head.state_dict().items())
    for name, tensor in model.body.state_dict().items():
        assert torch.equal(tensor, taught.body.state_dict()[name]), name


def test_a_body_of_another_backbone_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "pretrain.safetensors")
    with pytest.raises(InputError, match="these weights of a densenet-small do not fit the resnet-small"):
        load_body(make_network("resnet-small", channels=6, classes=4), tmp_path / "pretrain.safetensors")


def test_the_body_does_not_depend_on_the_number_of_classes() -> None:
    few, many = (make_network("densenet-small", channels=6, classes=classes, seed=2) for classes in (3, 30))
    assert all(torch.equal(tensor, many.body.state_dict()[name]) for name, tensor in few.body.state_dict().items())


@torch.inference_mode()
def test_a_call_is_its_three_steps() -> None:
    model = make_network("densenet-small", channels=6, classes=5, **RICH).eval()
    images, told = torch.randint(0, 255, (3, 6, 32, 32), dtype=torch.uint8), torch.eye(4)[:3]
    references = torch.rand(model.features), torch.rand(3, model.features)
    features = model.embed(model.prepare(images))
    assert features.shape == (3, model.features) and model.cosines(features).abs().max() <= 1
    assert torch.equal(model.classify(features, told, references), model(images, covariates=told, references=references))


def test_images_are_standardised_as_asked() -> None:
    images = torch.randint(0, 255, (3, 6, 40, 32), dtype=torch.uint8)
    images[1, 2] = 7  # a channel without spread
    def prepared(standardise: str, *channel_statistics: torch.Tensor) -> torch.Tensor:
        model = make_network("densenet-small", channels=6, classes=2, standardise=standardise)
        found = model.prepare(images, *channel_statistics)
        assert found.is_contiguous(memory_format=torch.channels_last) and found.isfinite().all()
        torch.testing.assert_close(model.prepare(images.float(), *channel_statistics), found)  # mixed images come as floats
        return found
    assert torch.equal(prepared("none"), images.float() / 255)
    scores = prepared("image")
    flat = torch.ones(3, 6, dtype=torch.bool)
    flat[1, 2] = False
    torch.testing.assert_close(scores.mean((2, 3)), torch.zeros(3, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std((2, 3), correction=0), flat.float(), atol=1e-4, rtol=0)
    given = torch.rand(3, 6, 2) * 100 + 1
    for by in ("plate", "experiment"):
        torch.testing.assert_close(prepared(by, given), (images - given[:, :, 0, None, None]) / given[:, :, 1, None, None])


def test_what_lacks_is_named() -> None:
    images = torch.zeros((2, 6, 32, 32), dtype=torch.uint8)
    def build(**options: object) -> Classifier:
        return make_network("densenet-small", channels=6, classes=5, **options)
    with pytest.raises(InputError, match="covariates: this network needs plate of each site"):
        build(levels=PLATES)(images)
    with pytest.raises(InputError, match="covariates: this network needs plate"):
        build(levels=PLATES)(images, torch.zeros(2, 3))
    with pytest.raises(InputError, match="channel_statistics: this network needs images standardised by plate"):
        build(standardise="plate")(images)
    with pytest.raises(InputError, match="control_features: this network needs the controls"):
        build(control_features=True)(images)
    with pytest.raises(InputError, match="cosine_head: this network has no cosine head"):
        build().cosines(torch.zeros(2, 136))
    with pytest.raises(InputError, match="images of 16 px are too small for the densenet-small; use images of 32 px or more"):
        build()(images[:, :, :16])
    blind = build().eval()
    assert torch.equal(blind(images), blind(images, torch.eye(2))), "not asked, not read"


def test_levels_are_those_of_the_covariates() -> None:
    for settings, levels in ((NetworkSettings(), PLATES), (NetworkSettings(covariates=["plate", "site"]), PLATES)):
        with pytest.raises(InputError, match="^covariates: covariates are .*, and levels are given for plate; give covariate_levels"):
            Classifier(settings, channels=6, classes=5, levels=levels)


def test_weights_that_are_no_safetensors_or_of_another_network_are_refused(tmp_path: Path) -> None:
    """Their JSON vouches for them all the same: both may come from anybody."""
    path = tmp_path / "model.safetensors"
    saved(path)
    card = Receipt.read(tmp_path / "model.json")
    for content in (b"", (10**18).to_bytes(8, "little"), (1).to_bytes(8, "little") + b"{", path.read_bytes()[:-9]):
        path.write_bytes(content)
        replace(card, outputs={path.name: sha256(path)}).write()
        with pytest.raises(InputError, match=f"^{path}: is no safetensors file .*; train again$"):
            load_weights(path)
    saved(path, classes=5)
    replace(card, outputs={path.name: sha256(path)}).write()
    with pytest.raises(InputError, match=f"^{path}: does not fit the network that its JSON describes .size mismatch for head.*; train again$"):
        load_weights(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="no such weights"):
        load_weights(path)

"""What the training notebooks work on, on the smallest plates."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from building import in_groups
from cellsignal.budget import Budget
from cellsignal.data.microscope.simulate import simulate
from cellsignal.data.tables.splits import training_sites
from cellsignal.decide.predict import inference
from cellsignal.errors import InputError
from cellsignal.learn.settings import TrainingSettings
from cellsignal.learn.training.phase import Phase
from cellsignal.run.chain import notebooks
from cellsignal.run.recipe import Recipe
from cellsignal.run.kernels.training import NetworkTraining
from cellsignal.settings import flatten

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "plates"
    simulate(folder, preset="tiny", experiments=["RPE-01", "RPE-02", "RPE-03"])
    return folder


def work_of(plates: Path, folder: Path, *, network_name: str = "model", cell_type: str = "RPE", **chosen: Any) -> NetworkTraining:
    values = in_groups({"data": str(plates), "backbone": "plain-cnn", "pretrain_epochs": 0, "epochs": 1, **chosen})
    session = SimpleNamespace(recipe=Recipe(**values), folder=folder, time_budget=Budget(), resume_folders=lambda *parts: [])
    return NetworkTraining(session, cell_type=cell_type, network_name=network_name)


def test_sites_are_whole_and_split_by_experiment(plates: Path, tmp_path: Path) -> None:
    work = work_of(plates, tmp_path, network_name="model-2", seed=3)
    assert work.sites.groupby("experiment")["split"].unique().map(list).to_dict().keys() == {"RPE-01", "RPE-02", "RPE-03"}
    assert set(work.sites["split"]) == {"train", "held_out", "test"} and work.seed == 4
    assert work.notes == "every site is complete" or "its well is read without this site" in work.notes
    with pytest.raises(InputError, match="no cell_type 'HUVEC'; choose from RPE, or all"):
        work_of(plates, tmp_path, cell_type="HUVEC")


@pytest.mark.parametrize(("phase", "network", "stem"), [
    ("controls", "model", "pretrain"), ("controls", "model-2", "pretrain-2"), ("controls", "plain", "pretrain"), ("head", "model", "head"), ("whole", "plain", "plain"),
    ("final", "model-2", "model-2-final"),
])
def test_weights_lie_where_the_chain_looks_for_them(plates: Path, tmp_path: Path, phase: str, network: str, stem: str) -> None:
    assert work_of(plates, tmp_path, network_name=network).weights_path(phase) == tmp_path / f"weights/RPE/{stem}.safetensors"


def test_controls_and_test_wells_are_there_for_what_needs_them(plates: Path, tmp_path: Path) -> None:
    def sites_of(**chosen: Any) -> tuple[NetworkTraining, Any]:
        work = work_of(plates, tmp_path, **chosen)
        return work, work.with_controls_and_test_wells(*work.data_sets(training_sites(work.sites)))

    assert [sites_of()[1].controls, sites_of()[1].unlabelled] == [None, None]
    _, relating = sites_of(control_features=True)
    assert set(relating.controls.sites["well_type"]) == {"positive_control", "negative_control"} and relating.relabel is None
    _, labelling = sites_of(pseudo_label_epochs=1)
    assert labelling.controls is None and labelling.relabel.controls is not None and labelling.relabel.held_out is labelling.held_out
    assert set(labelling.unlabelled.sites["split"]) == {"test"} and labelling.unlabelled.augment is labelling.train.augment
    work, without = sites_of(pseudo_label_epochs=1, experiments=["RPE-01", "RPE-02"])
    assert without.unlabelled is None
    history = work.fit(work.treatment_network(without.train), without, Phase(name="whole", training=work.session.recipe.training.whole, seed=work.seed))
    assert len(history) == 1, "no test wells to label, and no error"


@pytest.mark.parametrize("classes", ["treatments", "all"])
def test_held_out_wells_are_predicted_under_statistics_of_the_wells_that_trained(
        plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: str) -> None:
    seen: list[Any] = []
    real = inference.score_images
    monkeypatch.setattr(inference, "score_images", lambda model, card, wells, controls, **how: seen.append(controls) or real(model, card, wells, controls, **how))
    work = work_of(plates, tmp_path, classes=classes, backbone="densenet-small", device="cpu")
    train, held_out = work.data_sets(training_sites(work.sites, classes=classes))
    sites = work.with_controls_and_test_wells(train, held_out)
    work.fit(work.treatment_network(train), sites, Phase(name="whole", training=TrainingSettings(epochs=1), seed=work.seed))
    predicted = work.predict(held_out)
    assert set(predicted.index) == set(held_out.sites["id_code"]) and predicted.between(0, 1107).all()
    [controls] = seen
    assert (controls is None) == (classes == "treatments")
    assert controls is None or set(controls.sites["experiment"]) == set(held_out.sites["experiment"])
    assert work.predict(replace(sites, held_out=work.data_sets(train.sites)[1]).held_out).empty, "nothing is held out"


def test_a_notebook_hangs_on_the_settings_of_its_own_phases_only() -> None:
    read = {name: notebooks.parameters_read(KERNELS / f"{name}/{name}.ipynb") for name in ("2-pretrain-controls", "3-train-cell-type")}
    controls, treatments = read.values()
    assert not {key for key in controls if key.startswith(("assignment.", "prediction.")) or key in ("training.epochs", "training.loss", "network.covariates")}
    assert {"training.epochs", "training.loss", "network.covariates", "assignment.plate_groups", "wells.drop_edge_wells"} <= treatments <= {*flatten(Recipe().model_dump()), "cell_type", "network_name"}

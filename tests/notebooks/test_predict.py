"""The prediction's notebook in sessions that are too short: each goes on where the last one stopped, to the same submission."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from building import in_groups, make_network
from cellsignal.budget import Budget
from cellsignal.decide.predict import predict
from cellsignal.files import read_json
from cellsignal.learn.networks.classifier import ModelConfig, save_weights
from cellsignal.run import environment
from cellsignal.run.chain import script
from cellsignal.run.record import step_receipts, session

NOTEBOOK = Path(__file__).resolve().parents[2] / "kernels/4-predict-assign/4-predict-assign.ipynb"
STEP = "4-predict-assign"
VALUES = {"run": "runs/tiny", "preset": "", "ablate_virtual_batch": True, "virtual_batch": 32, "final_epochs": 1, "num_batch_sizes": 2, "min_batch_size": 3, "max_batch_size": 5}
Session = Callable[..., Path]


class Parts(Budget):
    """Time for so many experiments."""

    def __init__(self, count: float) -> None:
        super().__init__()
        self.count = count

    def fits_part(self, units: float) -> bool:
        self.count -= 1
        return self.count >= 0


@pytest.fixture(scope="module")
def plates(tiny_plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny plates, and weights of untrained networks beside them."""
    root = tmp_path_factory.mktemp("plates")
    shutil.copytree(tiny_plates, root, dirs_exist_ok=True)
    for seed, name in enumerate(("plain", "model", "final")):
        for cell_type in ("HUVEC", "RPE"):
            state = make_network("densenet-small", channels=6, classes=8, seed=seed).state_dict()
            save_weights(root / f"weights/{cell_type}/{name}.safetensors", state, ModelConfig("densenet-small", 6, list(range(8)), ["treatment"]))
    return root


@pytest.fixture
def one_session(plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """one_session(name, experiments, earlier=output, key=value) is a session on Kaggle; gives its run folder, and keeps its `variables`."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.delenv("CELLSIGNAL_CHAIN", raising=False)

    def go(name: str, experiments: float = float("inf"), *, earlier: Path | None = None, **values: Any) -> Path:
        monkeypatch.setattr(environment, "KAGGLE", tmp_path / name)
        monkeypatch.setattr(session, "Budget", lambda deadline: Parts(experiments))
        folder = environment.run_folder(VALUES["run"])
        shutil.copytree(plates / "weights", folder / "weights")
        if earlier:
            shutil.copytree(earlier, tmp_path / name / "input/notebooks/alice/predict/runs/tiny", ignore=shutil.ignore_patterns("weights"))
        go.variables = script.execute(NOTEBOOK, in_groups({**VALUES, "data": str(plates), **values}))
        environment.unlock_run_folder(folder)
        plt.close("all")
        return folder

    return go


def answers(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("submission*.csv")}


@pytest.mark.slow
@pytest.mark.ci
def test_short_sessions_end_with_the_same_submission(one_session: Session) -> None:
    whole = one_session("whole")
    assert len(answers(whole)) == 2 and step_receipts.read(whole, STEP).complete
    notes, folder = [], None
    for number in range(8):
        folder = one_session(str(number), 2, earlier=folder)
        written = step_receipts.read(folder, STEP)
        notes.append(written.details["progress"])
        if written.complete:
            break
        assert not answers(folder) and not (folder / "metrics.json").exists(), "nothing that looks like a result"
        assert any(name.endswith(".parquet") for name in written.outputs), "what the next session takes up"
    assert notes == [f"scored {done} of 4 experiments with {name}" for name, done in (
        ("plain", 2), ("model", 0), ("model", 2), ("final", 0), ("final", 2))] + [""]
    assert answers(folder) == answers(whole)
    assert one_session.variables["embeddings"] == {}, "a map is not worth another session"
    assert read_json(folder / "metrics.json") == read_json(whole / "metrics.json")
    assert read_json(whole / "metrics.json")["simulated"] is True
    assert set(written.outputs) == set(step_receipts.read(whole, STEP).outputs)
    assert read_json(whole / "metrics.json")["statistics_note"] == ""  # this network has batch normalisation


@pytest.mark.slow
@pytest.mark.ci
def test_stored_scores_are_decided_on_without_an_image(one_session: Session, plates: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for path in plates.glob("*.csv"):
        shutil.copy(path, tables)
    whole = one_session("whole", ablate_virtual_batch=False)
    stored = one_session("stored", 0, earlier=whole, ablate_virtual_batch=False, data=str(tables), start_from="scores")
    assert len(answers(stored)) == 2 and answers(stored) == answers(whole)
    assert read_json(stored / "metrics.json")["ladder"] == read_json(whole / "metrics.json")["ladder"]
    embeddings = [folder / "embeddings.parquet" for folder in (whole, stored)]
    table = pd.read_parquet(embeddings[0])
    assert embeddings[0].read_bytes() == embeddings[1].read_bytes() and set(table["Metadata_Network"]) == {"HUVEC/final", "RPE/final"}
    assert set(table["Metadata_Batch"]) == {"HUVEC-02", "HUVEC-03", "RPE-01", "RPE-03"} and table["Metadata_Control_Type"].value_counts()["negcon"] == 16
    assert len(read_json(whole / "metrics.json")["controls"]["embeddings"]) == 16, "one row a plate"
    shutil.rmtree(stored / "scores/final/embeddings")
    older = one_session("older", 0, earlier=stored, ablate_virtual_batch=False, data=str(tables), start_from="scores")
    assert answers(older) == answers(whole) and one_session.variables["predictor"].embeddings.empty
    assert one_session.variables["embeddings"] == {} and one_session.variables["predictor"].images.empty


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.filterwarnings("ignore:statistics are gathered")
def test_an_earlier_submission_does_not_outlive_an_unfinished_session(one_session: Session) -> None:
    whole = one_session("whole")
    again = one_session("again", earlier=whole, method="greedy")
    assert answers(again) != answers(whole) and step_receipts.read(again, STEP).complete
    other = one_session("other", 3, earlier=whole, statistics_scope="experiment")
    assert not answers(other) and set(step_receipts.read(other, STEP).outputs) == {
        f"scores/plain/{kind}/{name}" for kind in ("running", "batch", "adapted") for name in (
            "HUVEC-02.parquet", "HUVEC-03.parquet", "RPE-01.parquet", "metadata.json")}


@pytest.mark.slow
@pytest.mark.ci
def test_many_batch_sizes_are_spent_where_answers_are_known(
    one_session: Session, plates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = shutil.copytree(plates, tmp_path / "unknown")
    (unknown / "solution.csv").unlink()
    scored: list[tuple[str, list[str]]] = []
    mapped: list[str] = []
    really = predict.predict_experiment

    def told(*arguments: Any, **options: Any) -> dict:
        experiment = arguments[3]["experiment"].iloc[0]
        if "embeddings" in options["kinds"] and not options["options"].embed_controls:
            mapped.append(experiment)
        else:
            scored.append((experiment, options["kinds"]))
        return really(*arguments, **options)

    monkeypatch.setattr(predict, "predict_experiment", told)
    knobs = {"data": str(unknown), "ablate_virtual_batch": False, "final_epochs": 0}
    folder = one_session("adapted", **knobs)
    assert dict(scored) == {
        "HUVEC-02": ["running", "batch", "adapted", "embeddings"], "HUVEC-03": ["running", "adapted", "embeddings"],
        "RPE-01": ["running", "batch", "adapted", "embeddings"], "RPE-03": ["running", "adapted", "embeddings"]}
    assert mapped == ["HUVEC-01", "HUVEC-02", "HUVEC-01"], "a map of what is known, running and adapted; the held-out experiment is in embeddings.parquet already"
    rungs = {(row["split"], row["rung"]): row["accuracy"] for row in read_json(folder / "metrics.json")["ladder"]}
    assert ("held_out", "batch") in rungs and len(answers(folder)) == 2
    known = one_session.variables["known"]
    assert {name.split("_")[0] for name in known.index} == {"HUVEC-02", "RPE-01"}, "held-out wells stand in for test wells"
    assert known["right"].mean() == rungs["held_out", "groups+expected"]
    scored.clear()
    one_session("batch", **knobs, statistics="batch")
    assert all("batch" in kinds for _, kinds in scored) and len(scored) == 4

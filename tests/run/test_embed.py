"""`cellsignal embed`: the wells of a finished run as its network sees them, or one with random weights."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from building import in_groups, make_network

from cellsignal.cli.embed import Statistics
from cellsignal.decide.settings import PLATE_STATISTICS
from cellsignal.files import read_json, sha256, write_json
from cellsignal.learn.networks.classifier import ModelConfig, save_weights
from cellsignal.receipts import Receipt
from cellsignal.run.chain import steps
from cellsignal.run.kernels.embed import embed_run, open_predictor


@pytest.fixture(scope="module")
def run(tiny_plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the tiny plates, further trained on all labelled wells; its networks are untrained."""
    folder = tmp_path_factory.mktemp("run")
    for seed, name in enumerate(("model", "final")):
        for cell_type in ("HUVEC", "RPE"):
            state = make_network("densenet-small", channels=6, classes=8, seed=seed).state_dict()
            save_weights(folder / f"weights/{cell_type}/{name}.safetensors", state, ModelConfig("densenet-small", 6, list(range(8)), ["treatment"]))
    steps.write_receipt(folder, steps.Step("trainings", extras=("weights/*/*",)), identity={}, seconds=1.0)
    describe(folder, in_groups({"data": str(tiny_plates), "preset": "", "final_epochs": 1}))
    return folder


def describe(folder: Path, parameters: dict[str, Any]) -> None:
    """Let a run say that it is complete, and of these parameters."""
    write_json(folder / "recipe.json", {"parameters": parameters})
    steps.write_receipt(folder, steps.Step("record", outputs=("recipe.json",)), identity={}, seconds=0.0)


def test_a_table_of_some_experiments_and_the_same_network_untrained(run: Path, tmp_path: Path) -> None:
    before = sorted(run.rglob("*"))
    table, said = embed_run(run, tmp_path / "e.parquet", experiments=["HUVEC-02", "RPE-03"])
    assert sorted(run.rglob("*")) == before and sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "e.parquet.json"]
    assert "8 untreated and 240 positive control wells on 8 plates" in said and "compare within one only" in said
    splits = table.groupby("Metadata_Batch")["Metadata_Split"].agg(set).to_dict()
    assert splits == {"HUVEC-02": {"train"}, "RPE-03": {"test"}}, "held-out wells, too, have taught the final network"
    solved = table[table["Metadata_Batch"] == "RPE-03"]["Metadata_Perturbation"]
    assert solved.notna().all(), "the solution of simulated plates is known"
    receipt = Receipt.read(tmp_path / "e.parquet.json")
    assert receipt.details["network"] == "final" and set(receipt.identity["embeddings"]) == {"HUVEC-02", "RPE-03"}
    assert embed_run(run, tmp_path / "e.parquet", experiments=["HUVEC-02", "RPE-03"])[0] is None
    tables = [embed_run(run, tmp_path / f"r{seed}.parquet", experiments=["HUVEC-02"], random_seed=seed, statistics="running")[0] for seed in (5, 6)]
    assert set(tables[0]["Metadata_Network"]) == {"HUVEC/random-5"} and Receipt.read(tmp_path / "r5.parquet.json").details["basis"] == "adapted"
    values = [other.filter(like="embedding_") for other in (*tables, table[table["Metadata_Batch"] == "HUVEC-02"])]
    assert all(not values[0].reset_index(drop=True).equals(other.reset_index(drop=True)) for other in values[1:])


def test_an_edited_recipe_is_refused_and_draws_no_other_plates(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    recipe = copied / "recipe.json"
    write_json(recipe, {"parameters": in_groups({"data": "", "preset": "tiny", "final_epochs": 1, "seed": 0})})
    Receipt(copied / "receipts/record.json", outputs={"recipe.json": sha256(recipe)}).write()
    recipe.write_text(recipe.read_text().replace('"seed": 0', '"seed": 7'))
    before = sorted(copied.rglob("*"))
    assert f"{recipe}: not as the run left it; run the command" in refused("embed", copied, "--out", tmp_path / "e.parquet")
    assert sorted(copied.rglob("*")) == before and not (tmp_path / "e.parquet").exists()


def test_an_edited_table_of_the_runs_own_plates_is_refused(run: Path, tiny_plates: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    shutil.copytree(tiny_plates, copied / "data", ignore=shutil.ignore_patterns("train", "test"))
    write_json(copied / "recipe.json", {"parameters": in_groups({"data": "", "preset": "tiny", "final_epochs": 1})})
    steps.write_receipt(copied, steps.Step("record", outputs=("recipe.json",)), identity={}, seconds=0.0)
    table = pd.read_csv(copied / "data/train.csv")
    table.assign(sirna=table["sirna"].to_numpy()[::-1]).to_csv(copied / "data/train.csv", index=False)
    said = refused("embed", copied, "--out", tmp_path / "e.parquet")
    assert f"{copied}/data/train.csv: not as the virtual microscope left it; give the command that began the run again" in said


def test_the_table_of_the_run_stays(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    own = copied / "embeddings.parquet"
    own.write_text("of the run")
    Receipt(own.with_name("embeddings.parquet.json")).write()
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    assert f"{own}: is the run's own table, which stays as it is; choose another name" in refused("embed", copied, "--out", own)
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.ci
def test_a_run_of_the_notebook_is_taken_over(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that lie in scores/ are not computed again, and a killed call goes on with those it has."""
    from cellsignal.decide.predict import predict

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    computed: list[str] = []
    original = predict.predict_experiment
    monkeypatch.setattr(predict, "predict_experiment", lambda model, config, root, sites, **options: computed.append(sites["experiment"].iloc[0]) or original(model, config, root, sites, **options))
    embed_run(run, tmp_path / "a.parquet", experiments=["RPE-03"], network="model")
    embedded = embed_run(run, tmp_path / "b.parquet", experiments=["RPE-03"], network="model")[0]
    assert computed == ["RPE-03"] * 2
    monkeypatch.setattr("cellsignal.run.kernels.embed.write_embeddings", lambda *values, **options: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed_run(run, tmp_path / "c.parquet", experiments=["RPE-03"], network="model")
    monkeypatch.undo()
    shutil.copytree(tmp_path / "c.parquet.parts", copied / "scores/model")
    monkeypatch.setattr(predict, "predict_experiment", lambda *values, **options: pytest.fail("predicted again"))
    for out, folder in ((tmp_path / "c.parquet", run), (tmp_path / "d.parquet", copied)):
        pd.testing.assert_frame_equal(embed_run(folder, out, experiments=["RPE-03"], network="model")[0], embedded)


def test_the_map_takes_over_the_embeddings_that_are_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, and only experiments that are not in the table are computed."""
    predictor = open_predictor(run)
    monkeypatch.setattr(predictor, "embedded_network", "model")
    own = predictor.embed()
    predictor.embeddings = embed_run(run, tmp_path / "e.parquet", experiments=["HUVEC-02", "HUVEC-03"], network="model")[0]
    from cellsignal.run.kernels import prediction

    computed: list[tuple[str, set[str]]] = []
    original = prediction.embed_experiments
    monkeypatch.setattr(prediction, "embed_experiments", lambda root, sites, scoring, **options: computed.append(
        (*options["statistics"], set(sites["experiment"]))) or original(root, sites, scoring, **options))
    taken = predictor.embed()
    experiments = {name[:8] for name in own["running"].index}
    assert computed == [("running", experiments), ("adapted", experiments - {"HUVEC-02", "HUVEC-03"})] and experiments > {"HUVEC-02"}
    for kind in own:
        pd.testing.assert_frame_equal(taken[kind], own[kind], check_exact=True)


def test_bad_input_is_one_line(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out = tmp_path / "e.parquet"
    assert "no such run folder" in refused("embed", tmp_path / "nowhere", "--out", out)
    assert "no experiment 'X'; choose all, scored or some of HUVEC-01" in refused("embed", run, "--out", out, "--experiments", "X")
    assert "no experiment 'huvec-01'; did you mean HUVEC-01?" in refused("embed", run, "--out", out, "--experiments", "huvec-01")
    (tmp_path / "notes").write_text("mine")
    assert f"{tmp_path}/notes: is a file, and no folder; name another" in refused("embed", run, "--out", tmp_path / "notes/new/e.parquet")
    (tmp_path / "f.parquet").write_text("mine")
    assert "f.parquet: is there, and has no receipt that says it is a table of emb" in refused("embed", run, "--out", tmp_path / "f.parquet")
    assert "no network 'model-2' in this run; choose from model, final" in refused("embed", run, "--out", out, "--network", "model-2")
    assert "is no name for h5ad; call it e.h5ad" in refused("embed", run, "--out", out, "--format", "h5ad")
    assert "no experiment is named; choose all" in refused("embed", run, "--out", out, "--experiments", "")
    assert "--seed: trained weights have no seed; add --weights random, or leave it out" in refused("embed", run, "--out", out, "--seed", 3)
    (tmp_path / "other/weights").mkdir(parents=True)
    describe(tmp_path / "other", {"of.another_version": 1})
    assert "unknown key" in refused("embed", tmp_path / "other", "--out", out)
    assert "no weights in this folder; name a finished run" in refused("embed", tmp_path, "--out", out)
    describe(tmp_path / "other", {"task": "protein-atlas"})
    assert "a run of protein-atlas has no plates" in refused("embed", tmp_path / "other", "--out", out)


def test_a_run_is_embedded_only_as_it_was_left(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    copied, out = tmp_path / "run", tmp_path / "e.parquet"
    shutil.copytree(run, copied)
    parameters = read_json(copied / "recipe.json")["parameters"]
    write_json(copied / "recipe.json", {"parameters": {**parameters, "prediction": {"statistics": "running"}}})
    assert "recipe.json: not as the run left it; run" in refused("embed", copied, "--out", out)
    describe(copied, parameters)
    state = make_network("densenet-small", channels=6, classes=8, seed=5).state_dict()  # with a receipt of its own
    save_weights(copied / "weights/HUVEC/final.safetensors", state, ModelConfig("densenet-small", 6, list(range(8)), ["treatment"]))
    assert "weights/HUVEC/final.safetensors: not as the run left it; run" in refused("embed", copied, "--out", out, "--experiments", "HUVEC-02")
    assert not out.exists() and embed_run(copied, out, experiments=["RPE-03"])[0] is not None


def test_a_table_goes_where_a_link_leads_and_its_receipt_too(run: Path, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "e.parquet").symlink_to("disk/real.parquet")
    said = embed_run(run, tmp_path / "e.parquet", experiments=["HUVEC-02"])[1]
    assert said.startswith(f"wrote {tmp_path}/disk/real.parquet") and (tmp_path / "e.parquet").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["real.parquet", "real.parquet.json"]
    assert embed_run(run, tmp_path / "e.parquet", experiments=["HUVEC-02"])[0] is None
    os.mkfifo(tmp_path / "fifo.parquet")
    capsys.readouterr()  # the progress
    for name in ("fifo.parquet", "/dev/null"):
        assert f"{tmp_path / name}: is a device or a FIFO, beside which no receipt can lie; name a file" in refused("embed", run, "--out", tmp_path / name)
    for name in ("", ".", "disk"):
        assert ": is a folder; name a file in it" in refused("embed", run, "--out", tmp_path / name if name else "")


@pytest.mark.slow
@pytest.mark.ci
def test_plates_that_another_version_drew_stay(run: Path, tiny_plates: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    shutil.copytree(tiny_plates, copied / "data")
    describe(copied, in_groups({"data": "", "preset": "tiny", "final_epochs": 1}))
    Receipt(copied / "data/.simulate-code.json", {"data": "another version"}, {}, details={"own_design": True}).write()
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    embed_run(copied, tmp_path / "e.parquet", experiments=["RPE-03"])
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_the_command_knows_every_kind_of_statistics() -> None:
    assert [kind.value for kind in Statistics] == list(PLATE_STATISTICS)

"""Embeddings of wells and their controls, and the table of them that image-based profiling reads."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from building import add_backbone, make_network
from torch import nn

from cellsignal.data.images.reader import read_sites, whole_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide import embeddings
from cellsignal.decide.embeddings import embedding_table, is_current, table_identity, write_embeddings
from cellsignal.decide.predict import inference
from cellsignal.decide.predict.inference import PlateInference, log_probabilities
from cellsignal.decide.predict.predict import ScoringOptions, embedding_identities, score_experiments
from cellsignal.decide.scores.cache import read_receipt
from cellsignal.decide.settings import PLATE_STATISTICS, PredictionSettings
from cellsignal.errors import InputError
from cellsignal.learn.networks.backbones import Backbone
from cellsignal.learn.networks.classifier import ModelConfig, save_weights
from cellsignal.receipts import Receipt


@pytest.fixture(scope="module")
def plates(tiny_plates: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Folder, wells with their split, and the complete sites of one experiment."""
    tables = read_tables(tiny_plates)
    return tiny_plates, tables.wells.assign(split="test"), whole_sites(tables.root, tables.sites[tables.sites["experiment"] == "HUVEC-03"])[0]


@pytest.fixture(scope="module")
def scored(plates: tuple, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScoringOptions, Path]:
    """How an untrained network embeds the wells, and the folder where it did."""
    root, _, sites = plates
    folder = tmp_path_factory.mktemp("scored")
    state = make_network("densenet-small", channels=6, classes=8).state_dict()
    save_weights(folder / "weights/HUVEC/model.safetensors", state, ModelConfig("densenet-small", 6, list(range(8)), ["treatment"]))
    scoring = ScoringOptions(folder / "weights", settings=PredictionSettings(), all_statistics=False, embedded_sites=sites, embed_controls=True)
    score_experiments(root, sites, scoring, out=folder)
    return scoring, folder


def test_a_control_is_normalised_as_the_scored_wells_are(plates: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls with the images of scored sites have their features, under statistics that the controls did not change."""
    root, _, sites = plates
    images = read_sites(root, sites.iloc[:12])
    layers = [layer for inputs in (6, 8, 8) for layer in (nn.Conv2d(inputs, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())]
    add_backbone("three-layers", Backbone(lambda channels: (nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)))
    model = make_network("three-layers", channels=6, classes=8)
    for statistics, in_one_batch in [(kind, whole) for kind in PLATE_STATISTICS if kind != "auto" for whole in (True, False)]:
        monkeypatch.setattr(inference, "max_batch_pixels", lambda device: images.shape[-1] ** 2 * (64 if in_one_batch else 5))
        plate = PlateInference(model, np.concatenate([images, images[:6]]), count=12, control_rows=np.arange(12, 18), embed_controls=True)
        alone = log_probabilities(plate, statistics, batch_sizes=[12], refinements=3)[0]
        plate.embed = True
        output = log_probabilities(plate, statistics, batch_sizes=[12], refinements=3)[0]
        assert output.shape == (18, 8 + model.features) and alone.shape == (12, 8)
        np.testing.assert_array_equal(output[:12, :8], alone, err_msg=f"{statistics}: the scores are the same with embeddings")
        np.testing.assert_allclose(output[12:], output[:6], atol=2e-4, err_msg=f"{statistics}, in one batch: {in_one_batch}")
    assert not np.allclose(log_probabilities(plate, "running")[0][:12, 8:], output[:12, 8:], atol=1e-2)  # the kinds differ


def test_controls_change_no_score_and_no_embedding_of_a_treatment(plates: tuple, scored: tuple, tmp_path: Path) -> None:
    root, wells, sites = plates
    scoring, folder = scored
    without = score_experiments(root, sites, ScoringOptions(scoring.weights, all_statistics=False, embedded_sites=sites), out=tmp_path)
    assert (tmp_path / "adapted/HUVEC-03.parquet").read_bytes() == (folder / "adapted/HUVEC-03.parquet").read_bytes()
    both = pd.read_parquet(folder / "embeddings/HUVEC-03.parquet").set_index("id_code").rename(columns=int)
    pd.testing.assert_frame_equal(both.loc[without["embeddings"].index], without["embeddings"])
    assert set(both.index) == set(wells.loc[wells["experiment"] == "HUVEC-03", "id_code"]) and len(both) > 2 * len(without["embeddings"])
    assert embedding_identities(root, sites, scoring) == read_receipt(folder / "embeddings").identity


def table_of(embeddings: pd.DataFrame, wells: pd.DataFrame) -> pd.DataFrame:
    return embedding_table(embeddings, wells, network="model", one_network=False, simulated=True)


def test_the_table_keeps_the_contract_of_image_based_profiling(plates: tuple, scored: tuple, tmp_path: Path) -> None:
    """What mantispy 0.1.0a1 wants of profiles (`io.read_profiles`, `io.validate`), which tests/profiles/test_contract_mantispy.py asks itself."""
    _, wells, _ = plates
    write_embeddings(tmp_path / "embeddings.parquet", scored[1] / "embeddings", wells, network="model", one_network=False, simulated=True)
    table = pd.read_parquet(tmp_path / "embeddings.parquet").set_index("Metadata_Id")
    assert table.groupby(["Metadata_Plate", "Metadata_Well"]).size().max() == 1 and table.index.is_unique
    assert table.loc["HUVEC-03_2_B02", ["Metadata_Plate", "Metadata_Well", "Metadata_Batch", "Metadata_CellType"]].tolist() == ["HUVEC-03_2", "B02", "HUVEC-03", "HUVEC"]
    assert set(table["Metadata_Control_Type"]) == {"negcon", "poscon", "treatment"}, "mantispy refuses trt"
    assert table["Metadata_Control"].dtype == bool and table["Metadata_Control"].eq(table["Metadata_Control_Type"] != "treatment").all()
    known = wells.set_index("id_code").loc[table.index, "sirna"]
    assert table["Metadata_Perturbation"].isna().equals(known.isna()) and known.isna().sum() == (table["Metadata_Control_Type"] == "treatment").sum()
    assert set(table.loc[table["Metadata_Control_Type"] == "negcon", "Metadata_Perturbation"]) == {"1138"}
    features = table.filter(like="embedding_")
    assert list(features) == [f"embedding_{number}" for number in range(features.shape[1])] and set(features.dtypes) == {np.dtype("float32")}
    assert not set(table) - set(features) - {name for name in table if name.startswith("Metadata_")} and table["Metadata_Simulated"].all()
    assert "Metadata_CellCount" not in table, "unknown here; an invented one would be worse than mantispy's warning"
    assert features.to_numpy().std(axis=0).min() > 0


def test_a_table_is_kept_only_if_all_that_decides_it_is_the_same(plates: tuple, scored: tuple, tmp_path: Path) -> None:
    _, wells, _ = plates
    out, folder = tmp_path / "embeddings.parquet", scored[1] / "embeddings"
    write = lambda wells: write_embeddings(out, folder, wells, network="model", one_network=False, simulated=True)  # noqa: E731
    write(wells)
    receipt, first = Receipt.read(tmp_path / "embeddings.parquet.json"), out.stat().st_mtime_ns
    assert receipt.details["weights"]["HUVEC"] == Receipt.read(scored[1] / "weights/HUVEC/model.json").outputs["model.safetensors"]
    assert (receipt.details["basis"], receipt.details["scope"], receipt.details["wells"]) == ("adapted", "plate", len(pd.read_parquet(out)))
    write(wells)
    assert out.stat().st_mtime_ns == first
    labelled = wells.assign(sirna=wells["sirna"].fillna(3))
    assert not is_current(out, table_identity(read_receipt(folder).identity, labelled, network="model", format="parquet"))
    assert write(labelled)["Metadata_Perturbation"].notna().all() and out.stat().st_mtime_ns != first
    out.write_bytes(out.read_bytes() + b" ")
    write(labelled)
    assert pd.read_parquet(out)["Metadata_Perturbation"].notna().all() and not out.read_bytes().endswith(b" ")


def test_faults_are_named(plates: tuple, scored: tuple, tmp_path: Path) -> None:
    _, wells, _ = plates
    values = pd.read_parquet(scored[1] / "embeddings/HUVEC-03.parquet").set_index("id_code")
    with pytest.raises(InputError, match="1 wells that the tables do not have, such as HUVEC-09_1_B02"):
        table_of(values.rename(index={values.index[0]: "HUVEC-09_1_B02"}), wells)
    with pytest.raises(InputError, match=f"no numbers in 1 wells, such as {values.index[4]}"):
        table_of(values.assign(**{"0": values["0"].where(values.index != values.index[4])}), wells)
    with pytest.raises(InputError, match="no embeddings of these wells and their controls"):
        write_embeddings(tmp_path / "e.parquet", tmp_path, wells, network="model", one_network=False, simulated=True)
    with pytest.raises(InputError, match=r"is no name for h5ad; call it e.h5ad, or give --format parquet"):
        embeddings.checked_output(tmp_path / "e.parquet", "h5ad")


def test_h5ad_needs_a_package_and_says_which(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    with pytest.raises(InputError, match=r"h5ad needs the package anndata; pip install -e \"utils_dataset\[h5ad\]\""):
        embeddings.checked_output(tmp_path / "e.h5ad", "h5ad")

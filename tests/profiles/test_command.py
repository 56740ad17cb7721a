"""The command `cellsignal profile`, as a user calls it."""

import json
import os
import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from tables import make_table

from cellsignal import files
from cellsignal.cli import profiles as cli
from cellsignal.cli.main import main
from cellsignal.profiles import commands
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import from_frame, read_profiles
from cellsignal.receipts import Receipt


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cellsignal", "profile", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture
def table(tmp_path: Path) -> Path:
    make_table(batches=4, plate_effect=8.0, features=12, treatments=10).to_parquet(tmp_path / "table.parquet")
    return tmp_path / "table.parquet"


def test_a_table_is_corrected_measured_and_written(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    random = make_table(batches=4, plate_effect=8.0, features=9, treatments=10, effect=0.0)
    random.sample(frac=1, random_state=0).to_csv(tmp_path / "random.csv", index=False)
    out = tmp_path / "out"
    assert run(monkeypatch, table, "--out", out, "--random", tmp_path / "random.csv", "--permutations", 499) == 0
    printed = capsys.readouterr().out
    assert "recall@1" in printed and "random weights, corrected" in printed and printed.endswith(f"wrote {out}\n") and "simulated" not in printed

    record = files.read_json(out / "profile.json")
    assert record["settings"]["permutations"] == 499 and record["simulated"] is False and record["random_table"] == "random.csv"
    [network] = record["networks"]
    precision = {row["profiles"]: row["mean_average_precision"] for row in network["retrieval"] if row["restriction"] == "not the same batch"}
    assert list(precision) == ["uncorrected", "corrected", "random weights, uncorrected", "random weights, corrected"]
    assert precision["corrected"] > max(precision["uncorrected"], precision["random weights, corrected"]) + 0.3
    assert {row["profiles"]: row["active"] for row in network["activity"]}["corrected"] > 0.8

    corrected = read_profiles(out / "profiles.parquet")
    assert corrected.features.shape == (112, 12) and corrected.wells.equals(read_profiles(table).wells), "the same wells, in their order"
    perturbations = pd.read_csv(out / "perturbations.csv")
    assert len(perturbations) == 10 and {"distance", "none:p_value", "not_the_same_batch:mean_average_precision"} <= set(perturbations)
    assert len(pd.read_csv(out / "neighbours.csv")) == 10 * 5
    receipt = Receipt.read(out / "receipt.json")
    assert receipt.identity["table"] == files.sha256(table)
    receipt.check_outputs(out, made_by="profile", cure="")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"profiles.parquet", "perturbations.csv", "neighbours.csv", "profile.json", "receipt.json"}
    run(monkeypatch, table, "--out", out, "--random", tmp_path / "random.csv", "--permutations", 499)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before, "the same table gives the same bytes"


def test_networks_are_measured_one_by_one_and_simulated_plates_say_so(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_parquet(table).assign(Metadata_Simulated=True)
    frame["Metadata_Network"] = np.where(frame["Metadata_Batch"].isin(["batch-0", "batch-1"]), "RPE/model", "U2OS/model")
    frame.to_parquet(table)
    assert run(monkeypatch, table, "--out", tmp_path / "out", "--permutations", 99, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record == files.read_json(tmp_path / "out/profile.json") and record["simulated"] is True
    assert [(each["network"], each["wells"]) for each in record["networks"]] == [("RPE/model", 56), ("U2OS/model", 56)]
    assert set(pd.read_csv(tmp_path / "out/perturbations.csv")["network"]) == {"RPE/model", "U2OS/model"}
    assert len(pd.read_parquet(tmp_path / "out/profiles.parquet")) == 112


def test_folders_whose_names_are_no_text_hold_tables_and_results(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xfcll"))
    folder.mkdir()
    moved = table.rename(folder / table.name)
    assert run(monkeypatch, moved, "--out", folder / "out", "--random", moved, "--permutations", 99) == 0
    assert (folder / "out/profiles.parquet").is_file()


def test_what_cannot_be_measured_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_table(batches=1, plates=1).to_csv(tmp_path / "table.csv", index=False)
    assert run(monkeypatch, tmp_path / "table.csv", "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "note: retrieval is not measured: no treatment is in two wells" in printed and "note: activity is not measured: 4 untreated wells" in printed


def test_too_few_permutations_are_a_note(table: Path) -> None:
    """The smallest p-value of 10 treatments is 10 / 100 after correction with 99 permutations."""
    notes = {count: commands.profile_table(table, ProfileSettings(permutations=count), progress=False)[0].notes for count in (99, 198, 199)}
    assert notes[99] == notes[198] == ["no single perturbation among 10 can be significant after correction; give --permutations 199 or more"] and not notes[199]


def test_networks_of_different_sizes_can_be_read_again(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.read_parquet(table)
    frame["Metadata_Network"] = np.where(frame["Metadata_Batch"].isin(["batch-0", "batch-1"]), "RPE/model", "U2OS/model")
    frame.loc[frame["Metadata_Network"] == "RPE/model", ["embedding_10", "embedding_11"]] = np.nan
    frame.to_parquet(table)
    assert run(monkeypatch, table, "--out", tmp_path / "out", "--random", table) == 0
    assert run(monkeypatch, tmp_path / "out/profiles.parquet", "--out", tmp_path / "again") == 0
    assert [each["features"]["uncorrected"] for each in files.read_json(tmp_path / "again/profile.json")["networks"]] == [10, 12]


@pytest.mark.parametrize("design", [{"batches": 1, "plates": 1}, {"treatments": 1}, {"batches": 1, "plates": 1, "treatments": 1, "untreated": 6}])
def test_what_the_notebook_shows_is_there_where_nothing_can_be_measured(design: dict[str, int]) -> None:
    result = commands.profile(from_frame(make_table(**design)), ProfileSettings(permutations=99), progress=False)
    assert result.retrieval.set_index(["restriction", "profiles"]).sort_index(level=0, sort_remaining=False).round(3).empty
    assert result.strongest in {f"t{number}" for number in range(8)} and result.notes


def test_other_wells_of_the_random_network_are_refused_in_one_line(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(batches=3, features=12, treatments=10).to_parquet(tmp_path / "random.parquet")
    assert run(monkeypatch, table, "--out", tmp_path / "out", "--random", tmp_path / "random.parquet") == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cellsignal: error")]
    assert f"random.parquet: lacks 28 wells of {table}, such as " in line and not (tmp_path / "out").exists()


def test_the_command_offers_every_choice_of_the_settings() -> None:
    for enum in (cli.Scale, cli.Center, cli.Controls, cli.Sphering):
        assert tuple(choice.value for choice in enum) == get_args(ProfileSettings.model_fields[enum.__name__.lower()].annotation)
    defaults = {name: parameter.default for name, parameter in signature(cli.profile).parameters.items() if name in ProfileSettings.model_fields}
    assert len(defaults) == 8 and ProfileSettings(**{name: getattr(value, "value", value) for name, value in defaults.items()}) == ProfileSettings()


def test_nothing_is_written_that_is_not_whole_or_overwrites_the_table(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        assert run(monkeypatch, *arguments, "--permutations", 99) == 2
        return capsys.readouterr().err.splitlines()[-1]

    unnamed, out = tmp_path / "unnamed.parquet", tmp_path / "out"
    pd.read_parquet(table).assign(Metadata_Perturbation=None).to_parquet(unnamed)
    assert "no well with a known treatment" in refused(unnamed, "--out", out) and not out.exists()
    assert f"{table}: is a file; name a folder with --out" in refused(table, "--out", table)
    assert f"{table}: is a file, and no folder" in refused(table, "--out", table / "new")
    out.mkdir()
    (out / "neighbours.csv").write_text("mine")
    assert f"{out}/neighbours.csv: is there, and no receipt says that `cellsignal profile` wrote it; remove it if it is the unfinished result of an earlier call" in refused(table, "--out", out)
    (tmp_path / "round").symlink_to("round")
    assert f"{tmp_path}/round: File exists; choose another path" in refused(table, "--out", tmp_path / "round")
    own = table.rename(tmp_path / "profiles.parquet")
    before = own.read_bytes()
    assert "profiles.parquet: would be overwritten by its results; name another folder" in refused(own, "--out", tmp_path)
    assert own.read_bytes() == before

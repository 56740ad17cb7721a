"""A rehearsal takes real steps of each phase of a recipe, and its rates are those of the forecast."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from wilds_plates import write_wilds

from building import recipe_of
from cellsignal.cli.main import main
from cellsignal.files import read_json
from cellsignal.run import forecast as forecasts
from cellsignal.run import rehearse as rehearsals
from cellsignal.run.forecast import HERE, forecast
from cellsignal.run.rehearse import rehearse

QUICK = {"preset": "tiny", "backbone": "plain-cnn", "batch_size": 4, "pretrain_epochs": 0, "epochs": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsals, "SECONDS", 0.02)


@pytest.mark.slow
@pytest.mark.ci
def test_every_phase_of_every_network_has_its_row(tmp_path: Path) -> None:
    rehearsal = rehearse(recipe_of({
        **QUICK, "backbone": "densenet-small", "ensemble": ["densenet-small", "plain-cnn"], "pretrain_epochs": 1, "head_epochs": 1, "final_epochs": 1,
        "progressive_sizes": [32, 64], "ema_decay": 0.9, "cosine_head": "auxiliary", "loss": "0.8 cross-entropy + 0.1 arcface", "covariates": ["cell_type"], "heads": "both",
        "standardise": "image", "mixup_alpha": 0.4, "tta_views": 4, "precision": "bf16", "run": str(tmp_path / "run")}))
    phases = ["controls", "head", "final", "whole, 32 px", "whole, 64 px", "prediction"]
    assert [(row.network, row.phase) for row in rehearsal.rows] == [(network, phase) for network in ("2 densenet-small", "plain-cnn") for phase in phases]
    assert [row.image_size for row in rehearsal.rows[:6]] == [32, 32, 32, 32, 64, 32] and {row.batch for row in rehearsal.rows} == {4}
    assert all(row.images_per_second > 0 and row.loader > 0 for row in rehearsal.rows) and rehearsal.precision == "bf16"
    assert rehearsal.forecast.host.name == HERE and len(rehearsal.forecast.networks) == 6
    assert "drawn by the virtual microscope" in str(rehearsal) and not (tmp_path / "run").exists()


def test_the_forecast_divides_its_sites_by_these_rates() -> None:
    recipe = recipe_of({**QUICK, "epochs": 100})
    rehearsal = rehearse(recipe)
    [whole, prediction] = rehearsal.rows
    size = forecasts.count_sites(recipe)[0]["HUVEC"]
    seconds = 100 * (size.train / whole.images_per_second + size.held_out / prediction.images_per_second)
    fixed = forecast(recipe_of({**QUICK, "epochs": 0}), lambda backbone: rehearsal.forecast.host).networks[0].hours
    assert 3600 * (rehearsal.forecast.networks[0].hours - fixed) == pytest.approx(seconds, rel=0.05)


@pytest.mark.slow
@pytest.mark.ci
def test_sites_of_the_recipes_data_are_used_where_they_are(tiny_plates: Path, tmp_path: Path) -> None:
    own = {**QUICK, "preset": "", "data": str(tiny_plates), "control_features": True, "standardise": "plate"}
    rehearsal = rehearse(recipe_of(own))
    assert rehearsal.origin == f"of {tiny_plates} (simulated data)" and {row.image_size for row in rehearsal.rows} == {32}
    packed = rehearse(recipe_of({**QUICK, "preset": "", "data": str(tiny_plates), "packed_size": 32}))
    assert packed.origin == f"from {tiny_plates} (simulated data), packed at 32 px" and {row.image_size for row in packed.rows} == {32}
    wilds = recipe_of({**QUICK, "task": "rxrx1-wilds", "preset": "", "data": str(write_wilds(tiny_plates, tmp_path / "wilds")), "statistics": "adapted"})
    assert [row.phase for row in rehearse(wilds).rows] == ["whole", "prediction"]


@pytest.mark.parametrize("task", [{"task": "protein-atlas", "preset": "atlas-tiny", "folds": 3}, {"task": "rxrx1-wilds", "preset": ""}])
def test_other_tasks_are_rehearsed_on_drawn_images(task: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forecasts, "WILDS_IMAGE_SIZE", 32)
    rehearsal = rehearse(recipe_of({**QUICK, **task}))
    assert [row.phase for row in rehearsal.rows] == ["whole", "prediction"] and "drawn" in rehearsal.origin


@pytest.mark.slow
@pytest.mark.ci
def test_what_does_not_fit_is_one_line_that_names_the_setting(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("network: {backbone: densenet121}\ntraining: {batch_size: 24}\nmachine: {device: cpu, gradient_checkpointing: false}\n")
    monkeypatch.setattr(rehearsals, "free_memory", lambda device: 8e9)
    said = refused("rehearse", recipe)
    assert "needs" in said and said.endswith("set machine.gradient_checkpointing: auto")
    assert "set training.batch_size: " in refused("rehearse", recipe, "-p", "machine.gradient_checkpointing=auto", "-p", "training.batch_size=300")


def test_the_command_prints_the_table_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("preset: tiny\nnetwork: {backbone: plain-cnn}\ntraining: {batch_size: 4, pretrain_epochs: 0, epochs: 2}\nmachine: {device: cpu}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cellsignal", "rehearse", str(recipe), "--out", "found.json"])
    with pytest.raises(SystemExit) as ended:
        main()
    printed, found = capsys.readouterr().out, read_json(tmp_path / "found.json")
    assert ended.value.code == 0 and printed.endswith("wrote found.json\n") and "forecast for this machine" in printed
    assert [row["phase"] for row in found["rows"]] == ["whole", "prediction"] and found["text"] == printed.splitlines()[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "mine.yaml"]


def test_a_few_steps_on_noise_measure_this_machine() -> None:
    recipe = recipe_of({"preset": "tiny", "backbone": "plain-cnn", "pretrain_epochs": 2, "epochs": 2, "device": "cpu"})
    needed = forecast(recipe, rehearsals.this_machine(recipe))
    assert needed.host.name == HERE and "measured by a few steps" in str(needed) and "sessions" not in str(needed)
    assert 0 < needed.hours < 0.1 and all(each.memory > forecasts.PROCESS_BYTES for each in needed.networks)

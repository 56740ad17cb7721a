"""What a recipe needs is forecast before it runs, and what cannot fit is refused with the setting that makes it fit."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from building import dataset_size, recipe_of
from cellsignal.bench import cost
from cellsignal.cli.main import main
from cellsignal.cli.run import Machine
from cellsignal.data.microscope.layout import draw_design
from cellsignal.data.microscope.simulate import PRESETS
from cellsignal.data.tables.splits import split_sites
from cellsignal.data.tables.wells import read_tables, select
from cellsignal.errors import InputError
from cellsignal.run import environment
from cellsignal.run import forecast as forecasts
from cellsignal.run import recipe as recipes
from cellsignal.run.forecast import HERE, count_sites, forecast, gpu_host, recipes_table

RECIPES = Path(__file__).parents[2] / "papermill_params"
SMALL = {"backbone": "densenet-small", "batch_size": 16, "pretrain_epochs": 2, "epochs": 4}


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_sites_are_counted_as_a_run_has_them(preset: str) -> None:
    drawn = PRESETS[preset]
    wells = draw_design(0, drawn.cell_types, classes=drawn.classes, train=drawn.train, test=drawn.test, repeats=drawn.repeats, missing=drawn.missing)
    sites = pd.concat([wells, wells])
    sites["split"] = split_sites(wells, sites).to_numpy()
    counted, image_size = count_sites(recipe_of({"preset": preset}))
    assert image_size == drawn.image_size and set(counted) == set(drawn.cell_types)
    for name, size in counted.items():
        for kind, count in vars(dataset_size(sites[sites["cell_type"] == name])).items():
            assert getattr(size, kind) == pytest.approx(count, rel=0.05, abs=4), (name, kind)


def test_the_real_screen_is_that_of_the_cost_page() -> None:
    counted, _ = count_sites(recipe_of({}))
    for kind, count in vars(cost.RXRX1_SIZE).items():
        if kind != "plate":
            assert sum(getattr(size, kind) for size in counted.values()) == pytest.approx(count, rel=0.02), kind
    only = count_sites(recipe_of({"experiments": ["U2OS-01", "U2OS-03", "U2OS-04"], "cell_types": ["U2OS"]}))[0]["U2OS"]
    assert only.test == only.train == only.held_out > 2000, "one experiment each"
    atlas, _ = count_sites(recipe_of({"task": "protein-atlas", "preset": "atlas-demo", "folds": 3}))
    assert [(size.train, size.held_out, size.test) for size in atlas.values()] == [(1200, 600, 600)] * 3


def test_sites_of_the_users_own_tables_are_counted(tiny_plates: Path) -> None:
    own = {"data": str(tiny_plates), "cell_types": ["RPE"], "validation_experiments": 2}
    [(name, counted)] = count_sites(recipe_of(own))[0].items()
    tables = select(read_tables(tiny_plates), cell_types=["RPE"])
    sites = tables.sites.assign(split=split_sites(tables.wells, tables.sites, recipe_of(own).wells.held_out))
    assert (name, counted) == ("RPE", dataset_size(sites)) and count_sites(recipe_of(own))[1] == PRESETS["tiny"].image_size
    assert count_sites(recipe_of({**own, "packed_size": 16}))[1] == 16
    more = count_sites(recipe_of({**own, "classes": "all"}))[0]["RPE"].train - counted.train
    assert more == ((sites["split"] == "test") & (sites["well_type"] != "treatment")).sum() > 0
    assert count_sites(recipe_of({**own, "data": "nowhere"})) == count_sites(recipe_of({**own, "data": ""})), "tables that are not here yet"


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("name", "limit"), [("kaggle-week", 30), ("kaggle-evening", 5)])
def test_recipes_for_kaggles_quota_keep_to_it(name: str, limit: int) -> None:
    needed = forecast(full_size()[name])
    needed.check()
    assert 0.7 * limit < needed.hours < limit - needed.sessions / 3, "twenty minutes for the start of each session"
    assert all(0 < each.hours < environment.LONGEST_MINUTES / 60 and each.sessions == 1 for each in needed.networks)
    assert needed.packing_hours * 10 < environment.SESSION_MINUTES / 60
    assert re.match(r"packing +no GPU +0\.\d h +1$", str(needed).splitlines()[2])


def test_packed_images_feed_faster_than_pngs() -> None:
    chosen = {**SMALL, "cell_types": ["RPE"], "num_workers": 2, "epochs": 100}
    pngs, packed = (forecast(recipe_of({**chosen, **more})) for more in ({}, {"packed_size": 192}))
    assert pngs.packing_hours == 0 < packed.packing_hours and packed.hours < pngs.hours / 5
    full = forecast(recipe_of({**chosen, "packed_size": 512}))
    assert full.hours < pngs.hours / 2, "of the same size too, where decoding takes most of the time"


def test_every_network_has_its_hours_and_sessions() -> None:
    needed = forecast(recipe_of({**SMALL, "cell_types": ["U2OS", "RPE"], "ensemble": ["plain-cnn"], "num_workers": 2, "epochs": 400}))
    assert [(each.name, each.backbone) for each in needed.networks] == [
        ("U2OS", "densenet-small"), ("U2OS, model-2", "plain-cnn"), ("RPE", "densenet-small"), ("RPE, model-2", "plain-cnn")]
    assert needed.hours == pytest.approx(sum(each.hours for each in needed.networks) + needed.prediction_hours)
    assert needed.networks[2].hours > 2 * needed.networks[0].hours > 0, "six experiments against two"
    assert str(needed).splitlines()[-1] == f"{needed.hours / 30:.1f} weeks of Kaggle's 30 hours, in sessions of 11 h"
    longer = forecast(recipe_of({**SMALL, "cell_types": ["U2OS", "RPE"], "num_workers": 2, "epochs": 40_000, "time_budget_minutes": 60}))
    assert longer.sessions > longer.hours > 50 * needed.networks[0].hours, "an hour each, and what is over"
    slower = forecast(recipe_of({**SMALL, "cell_types": ["U2OS", "RPE"], "ensemble": ["plain-cnn"], "epochs": 400}))
    assert slower.hours > 1.2 * needed.hours, "without threads that read, the network waits for the images"


def test_the_cost_page_and_the_forecast_are_one_model() -> None:
    recipe = recipes.load(RECIPES / "brodt.yaml", ["network.backbone=densenet-small"])
    values = {"training.pretrain_epochs": 100, "training.head_epochs": 5, "training.epochs": 375, "training.final_epochs": 25}
    table = cost.page({**values, "prediction.num_batch_sizes": 97}, [forecasts.PNG], backbone="densenet-small", image_size=512)
    [row] = table[(table["host"] == "T4 x 2") & (table["scale"] == 1)].to_dict("records")
    needed = forecast(recipe)
    assert needed.hours == pytest.approx(row["hours"], rel=0.05)


def test_what_does_not_fit_is_refused_with_what_makes_it_fit() -> None:
    small_card = replace(cost.MACHINES["l4"], memory=3e9)
    def needed(**chosen: object) -> forecasts.Forecast:
        return forecast(recipe_of({**SMALL, "batch_size": 24, "pretrain_epochs": 0, "cell_types": ["RPE"], **chosen}), lambda backbone: small_card)
    assert needed().networks[0].parts >= 1 and needed(batch_size=2).networks[0].parts == 0
    needed().check()
    with pytest.raises(InputError, match=r"RPE: a densenet-small needs [\d.]+ GB for batches of 24 sites of 512 px, and a card of L4 has 3 GB; set machine.gradient_checkpointing: auto"):
        needed(gradient_checkpointing=False).check()
    with pytest.raises(InputError, match=r"set training.batch_size: (\d+), or smaller images") as refused:
        needed(batch_size=250).check()
    smaller = int(re.search(r"batch_size: (\d+)", str(refused.value))[1])
    needed(batch_size=smaller).check()
    needed(batch_size=250, progressive_sizes=[64]).check()


def test_prediction_and_labelling_use_one_card() -> None:
    chosen = {**SMALL, "cell_types": ["RPE"], "pseudo_label_epochs": 3, "num_workers": 4}
    both, one = (forecast(recipe_of({**chosen, "num_processes": count})) for count in (0, 1))
    assert both.prediction_hours == one.prediction_hours and (both.host.cards, one.host.cards) == (2, 1)
    host = replace(cost.MACHINES["t4x2"], cores=10_000)
    labelling, training = ([cost.Workload(part, 1e3, 1e3, 0)] for part in ("labelling", "pseudo-labels"))
    def seconds(workloads: list[cost.Workload], cards: int) -> float:
        return cost.estimate(workloads, replace(host, cards=cards), forecasts.PNG, backbone="plain-cnn", image_size=512).compute
    assert seconds(labelling, 2) == seconds(labelling, 1) == seconds(training, 1) > seconds(training, 2) * 1.8


def test_a_labelling_scores_as_many_images_as_it_says() -> None:
    """The controls of these plates too, and more than once where a plate is more than one batch."""
    size = next(iter(count_sites(recipe_of({"cell_types": ["HUVEC"]}))[0].values()))
    values = {"training.epochs": 4, "training.pseudo_label_epochs": 2, "wells.classes": "all"}
    [labelling] = [each for each in cost.training_workloads(size, values, adapted_passes=6) if each.part == "labelling"]
    treated = 8 * 1106.1 * 2 + size.held_out
    assert labelling.inferred == pytest.approx(2 * 6 * treated * (1 + 124 / 1106.1)) and labelling.reads == pytest.approx(labelling.inferred / 6)
    [treatments] = [each for each in cost.training_workloads(size, {**values, "wells.classes": "treatments"}) if each.part == "labelling"]
    assert treatments.inferred == pytest.approx(2 * treated)


@pytest.mark.parametrize(("chosen", "message"), [
    ({"preset": "nope"}, "unknown preset 'nope'"), ({"preset": "atlas-demo"}, "unknown preset 'atlas-demo'"),
    ({"cell_types": ["A549"]}, "no such wells among those of the competition; choose from HUVEC, HEPG2, RPE, U2OS, or set `data`"),
    ({"cell_types": ["A549"], "one_network": True}, "no such wells"), ({"experiments": ["HUVEC-A"]}, "no such wells"),
    ({"preset": "small", "cell_types": ["RPE"]}, "no such wells among those of the preset small; choose from HUVEC"),
])  # fmt: skip
def test_mistakes_are_one_line(chosen: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        forecast(recipe_of({**SMALL, **chosen}))


def test_only_cell_types_of_chosen_experiments_are_trained() -> None:
    needed = forecast(recipe_of({**SMALL, "pretrain_epochs": 0, "experiments": ["U2OS-01", "U2OS-02", "U2OS-04"]}))
    assert [each.name for each in needed.networks] == ["U2OS"] and needed.sessions == 2


def test_precision_and_processes_count() -> None:
    card = replace(cost.MACHINES["l4"], memory=6e9)
    chosen = {**SMALL, "batch_size": 64, "gradient_checkpointing": False, "cell_types": ["U2OS"], "packed_size": 512, "num_workers": 8, "epochs": 100}
    half, whole = (forecast(recipe_of({**chosen, "precision": precision}), lambda backbone: card).networks[0] for precision in ("fp16", "fp32"))
    assert whole.memory > 1.5 * half.memory and "set machine.gradient_checkpointing: auto" in whole.cure and whole.hours > 1.5 * half.hours
    compiled = recipe_of({**SMALL, "batch_size": 40, "pretrain_epochs": 0, "cell_types": ["RPE"], "compile": True})
    for memory, parts in ((3e9, 4), (4e9, 1)):
        card = replace(cost.MACHINES["l4"], memory=memory)
        needed = forecast(compiled, lambda backbone, card=card: card)
        assert needed.networks[0].parts == parts
        with pytest.raises(InputError, match="a compiled network is not checkpointed; set machine.compile: false"):
            needed.check()


def test_measured_steps_had_their_checkpointing() -> None:
    recipe = recipe_of({**SMALL, "cell_types": ["U2OS"], "num_workers": 8, "packed_size": 512, "gradient_checkpointing": True, "epochs": 100})
    card = replace(cost.MACHINES["l4"], cores=10_000)
    measured, named = (forecast(recipe, lambda backbone, name=name: replace(card, name=name)) for name in (HERE, "L4"))
    assert 1.15 < named.networks[0].hours / measured.networks[0].hours < 1.4


def test_a_benchmark_and_the_protein_atlas_are_one_notebook() -> None:
    wilds, atlas = (forecast(recipes.load(RECIPES / f"{name}.yaml")) for name in ("wilds-erm", "protein-atlas"))
    assert wilds.sessions == atlas.sessions == 1 and len(atlas.networks) > 1
    assert str(wilds).splitlines()[-2].split()[-1] == "1" and str(wilds).splitlines()[-3].startswith("prediction")


def test_a_cpu_is_no_card() -> None:
    here = cost.Host(HERE, 1, 1e12, 1e11, 2e9, 2, width=4, is_gpu=False)
    forecast(recipe_of({**SMALL, "preset": "tiny"}), lambda backbone: here).check()
    with pytest.raises(InputError, match=r"needs [\d.]+ GB for batches of 250 sites of 512 px, and 2.0 GB are free; set training.batch_size"):
        forecast(recipe_of({**SMALL, "batch_size": 250, "batch_scope": "mixed", "cell_types": ["RPE"]}), lambda backbone: here).check()


def test_best_fits_a_t4_by_default_and_is_checkpointed() -> None:
    recipe = recipes.load(RECIPES / "best.yaml", ["network.ensemble=[]"])
    needed = forecast(recipe)
    assert needed.networks[0].parts == 1 and 5e9 < needed.networks[0].memory < 15e9
    needed.check()


def test_a_gpu_is_known_by_its_name() -> None:
    assert gpu_host(["Tesla T4", "Tesla T4"]) is cost.MACHINES["t4x2"] and gpu_host(["NVIDIA A100-SXM4-40GB"]) is cost.MACHINES["a100"]
    assert (gpu_host(["Tesla T4"]).name, gpu_host(["Tesla T4"]).cards) == ("T4", 1)
    assert gpu_host([]) is None is gpu_host(["NVIDIA H200"])
    assert [each.value for each in Machine] == [*cost.MACHINES, "here"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cellsignal", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_commands_print_it_and_push_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("network: {backbone: densenet-small}\ntraining: {batch_size: 16, pretrain_epochs: 0, epochs: 3}\nwells: {cell_types: [U2OS]}\n")
    assert call(monkeypatch, "run", recipe, "--machine", "l4") == 0 and not (tmp_path / "runs").exists()
    assert capsys.readouterr().out.startswith("forecast for L4 (23 GB, at 50% of the roofline, an assumption)\nnetwork ")
    assert call(monkeypatch, "run", recipe, "--machine", "L4") == 0 and capsys.readouterr().out.startswith("forecast for L4 ")
    assert call(monkeypatch, "run", recipe, "--machine", "l4", "--out", tmp_path / "r", "--from", "weights") == 2
    assert "--machine runs nothing, and --out and --from would be of no use; leave out --machine, or --out and --from" in capsys.readouterr().err
    push = ("kaggle", "push", recipe, "--dry-run", "--user", "bob", "--build", tmp_path / "build")
    assert call(monkeypatch, *push) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("forecast for T4 x 2 (15 GB a card") and lines[-1] == f"wrote {tmp_path / 'build'}"
    capsys.readouterr()
    tiny = (*push, "-p", "preset=tiny", "-p", "wells.cell_types=[]")
    assert call(monkeypatch, *tiny) == 0 and "forecast" not in capsys.readouterr().out, "drawn plates are small"
    assert call(monkeypatch, *tiny, "--competition") == 0 and capsys.readouterr().out.startswith("forecast for T4 x 2 ")
    own = (*push, "--dataset", "bob/plates", "-p", "data=/kaggle/input/plates", "-p", "wells.cell_types=[A549]")
    assert call(monkeypatch, *own) == 0 and capsys.readouterr().out.startswith("no forecast: no such wells among those of the competition\n1. ")
    assert call(monkeypatch, *push, "-p", "training.batch_size=5000", "-p", "training.batch_scope=mixed") == 2
    assert capsys.readouterr().err.startswith("cellsignal: error: U2OS: a densenet-small needs ")


def full_size() -> dict[str, recipes.Recipe]:
    """The recipes for real plates, by name."""
    loaded = {path.stem: recipes.load(path) for path in sorted(RECIPES.glob("*.yaml"))}
    return {name: recipe for name, recipe in loaded.items() if not (recipe.preset or recipe.data)}


def test_the_readme_has_a_row_for_every_full_size_recipe() -> None:
    page = (RECIPES / "README.md").read_text()
    names = set(re.findall(r"^\| `([\w-]+)` \|.*\| [\d.]+ \|$", page.partition("hours on T4 x 2")[2].partition("\n\n")[0], re.M))
    assert names == set(full_size())
    rows = recipes_table({"moreau-benchmark": full_size()["moreau-benchmark"]})
    assert rows.splitlines()[-1] in page, WRITE


WRITE = "write the table again: PYTHONPATH=tests/run:tests python -c 'import test_forecast as t; print(t.recipes_table(t.full_size()), end=str())'"


@pytest.mark.slow
def test_the_table_of_the_readme_is_the_forecast() -> None:
    assert recipes_table(full_size()) in (RECIPES / "README.md").read_text(), WRITE

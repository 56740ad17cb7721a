"""The page of a run's wells: what it says, whatever is missing, and that it harms nobody; in a browser where there is one."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser

from cellsignal.data import simulated
from cellsignal.data.images.reader import write_channel
from cellsignal.data.tables.wells import read_tables
from cellsignal.receipts import Receipt
from cellsignal.show.explore import maps, thumbnails
from cellsignal.show.explore.page import write_page
from cellsignal.show.report import write_report

GROUPS = [[0, 1, 2], [3, 4, 5]]
PLACES = ["B02", "B03", "B04", "C02", "C03", "C04"]  # an untreated well, two positive controls, three treatments
CONTROLS = [1138, 1108, 1109]


def plate(experiment: str, number: int, rng: np.random.Generator) -> pd.DataFrame:
    """Six wells; treatments are those of a plate group, in any order."""
    sirnas = [*CONTROLS, *rng.permutation(GROUPS[number - 1])]
    return pd.DataFrame({"id_code": [f"{experiment}_{number}_{place}" for place in PLACES], "experiment": experiment, "plate": number, "well": PLACES, "sirna": sirnas})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on three experiments of two plates: HUVEC-01 held out, HUVEC-02 and HUVEC-03 tested, with every third answer wrong."""
    rng = np.random.default_rng(0)
    wells = pd.concat([plate(f"HUVEC-0{number}", side, rng) for number in (1, 2, 3) for side in (1, 2)], ignore_index=True)
    control = wells["sirna"] > 1107
    well_type = wells["sirna"].map(lambda sirna: "negative_control" if sirna == 1138 else "positive_control")
    trained, data = wells["experiment"] == "HUVEC-01", tmp_path / "data"
    data.mkdir()
    wells[trained & ~control].to_csv(data / "train.csv", index=False)
    wells[~trained & ~control].drop(columns="sirna").to_csv(data / "test.csv", index=False)
    wells[trained & control].assign(well_type=well_type).to_csv(data / "train_controls.csv", index=False)
    wells[~trained & control].assign(well_type=well_type).to_csv(data / "test_controls.csv", index=False)
    for stem in read_tables(data).sites["stem"]:
        (data / stem).parent.mkdir(parents=True, exist_ok=True)
        for channel in range(1, 7):
            write_channel(data / f"{stem}_w{channel}.png", rng.integers(0, 255, (16, 16), dtype=np.uint8))
    answers = wells[~control].assign(split=np.where(trained[~control], "held_out", "test"), cell_type="HUVEC")
    answers["groups+exact assigned"] = [(sirna + 1) % 6 if n % 3 == 0 else sirna for n, sirna in enumerate(answers["sirna"])]
    answers = answers.assign(**{"running raw": 0})
    answers[["id_code", "split", "cell_type", "experiment", "sirna", "running raw", "groups+exact assigned"]].to_csv(tmp_path / "answers.csv", index=False)
    test = answers[answers["split"] == "test"]
    decided = pd.DataFrame({"id_code": test["id_code"], "sirna": test["groups+exact assigned"], "confidence": np.linspace(0.1, 1, len(test))})
    decided.to_csv(tmp_path / "submission.confidence.csv", index=False)
    sets = [{"id_code": name, "coverage": coverage, "size": 8, "sirnas": list(range(8))} for name in test["id_code"] for coverage in (0.8, 0.9)]
    pd.DataFrame(sets).to_parquet(tmp_path / "submission.sets.parquet")
    embeddings(wells.assign(well_type=well_type.where(control, "treatment")), rng).to_parquet(tmp_path / "embeddings.parquet")
    return tmp_path


def embeddings(wells: pd.DataFrame, rng: np.random.Generator, *, network: str = "all/model") -> pd.DataFrame:
    """Every plate has an offset much larger than what its wells differ by; wells of a siRNA are alike."""
    plates = wells["experiment"] + "_" + wells["plate"].astype(str)
    offsets = {name: rng.normal(size=8) * 20 for name in plates.unique()}
    phenotypes = {sirna: rng.normal(size=8) for sirna in sorted(wells["sirna"].unique())}
    features = np.stack([offsets[plate] + phenotypes[sirna] + 0.01 * rng.normal(size=8) for plate, sirna in zip(plates, wells["sirna"])])
    kinds = {"negative_control": "negcon", "positive_control": "poscon"}
    metadata = pd.DataFrame({
        "Metadata_Plate": plates, "Metadata_Well": wells["well"], "Metadata_Batch": wells["experiment"],
        "Metadata_Perturbation": wells["sirna"].astype(str), "Metadata_Control_Type": wells["well_type"].map(lambda kind: kinds.get(kind, "treatment")),
        "Metadata_Control": wells["well_type"] != "treatment", "Metadata_CellType": "HUVEC", "Metadata_Network": network})  # fmt: skip
    return pd.concat([metadata, pd.DataFrame(features.astype(np.float32), index=metadata.index).add_prefix("embedding_")], axis=1)


def page(run: Path) -> tuple[str, dict]:
    """The page and the data in it."""
    text = write_page(run, plate_groups=GROUPS, data=run / "data").read_text(encoding="utf-8")
    return text, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def notes(text: str) -> list[str]:
    return re.findall('<p class="note">(.*?)</p>', text.split("<noscript>")[0])


def counts(data: dict) -> dict[str, int]:
    return {name: data["wells"]["outcome"].count(number) for number, name in enumerate(data["outcomes"])}


def test_it_holds_every_well_with_what_is_known_of_it(run):
    text, data = page(run)
    wells = data["wells"]
    assert counts(data) == {"right": 12, "wrong": 6, "unknown": 0, "no answer": 0, "positive_control": 12, "negative_control": 6}
    assert len(data["plates"]) == 6 and data["cell_types"] == ["HUVEC"] and not notes(text)
    assert None not in wells["image"] and text.count("data:image/webp;base64,") == 6
    treatments = [n for n, kind in enumerate(wells["type"]) if kind == 0]
    assert all(wells["sirna"][n] in GROUPS[wells["group"][n]] for n in treatments)
    tested = [n for n in treatments if wells["confidence"][n] is not None]
    assert len(tested) == 12 and {tuple(wells["set"][n][1]) for n in tested} == {(0, 1, 2, 3, 4, 5)} and wells["set"][tested[0]][0] == 8
    before, after = data["maps"]
    same = [[wells["sirna"][near[0]] == wells["sirna"][n] for n, near in enumerate(each["neighbours"])] for each in (before, after)]
    assert np.mean(same[0]) < 0.3 and np.mean(same[1]) == 1
    assert before["notes"][0].startswith("The most similar well lies on the same plate for 100 % of the wells")
    assert after["notes"][0] == "The most similar well lies on the same plate for 0 % of the wells, and has the same siRNA for 100 % of the treatments."
    assert write_page(run, plate_groups=GROUPS, data=run / "data").read_text(encoding="utf-8") == text


def write_running_embeddings(run: Path, *, weights: str = "new") -> None:
    """The embeddings of the run, called running ones, and receipts that name the weights."""
    pd.read_parquet(run / "embeddings.parquet").to_parquet(run / "embeddings.running.parquet")
    for name, made_by in (("embeddings", "new"), ("embeddings.running", weights)):
        Receipt(run / f"{name}.parquet.json", details={"weights": {"HUVEC": made_by}}).write()


@pytest.mark.parametrize("receipt", [True, False])
def test_running_embeddings_of_other_weights_are_no_map(run, receipt):
    write_running_embeddings(run, weights="old")
    if not receipt:
        (run / "embeddings.running.parquet.json").unlink()
    text, data = page(run)
    assert [each["name"] for each in data["maps"]] == list(maps.CORRECTIONS)
    [note] = notes(text)
    assert "embeddings.running.parquet was made by other weights than embeddings.parquet" in note and "--statistics running --out" in note


def test_running_maps_are_left_out_where_the_page_would_grow_too_large(run, monkeypatch):
    plain = page(run)[1]
    size = len(json.dumps(plain, separators=(",", ":")))
    write_running_embeddings(run)
    monkeypatch.setattr("cellsignal.show.explore.page.MAX_BYTES", size + 100)
    text, data = page(run)
    assert [each["name"] for each in data["maps"]] == list(maps.CORRECTIONS)
    assert notes(text) == ["There are no maps under running statistics: with them the page would grow too large.",
                           "0 of 6 plates have images of their wells here: for more the page would grow too large."]


def test_embeddings_under_running_statistics_are_maps_before_the_others(run):
    write_running_embeddings(run)
    _, data = page(run)
    names = [each["name"] for each in data["maps"]]
    assert names == [f"{prefix}{name}" for prefix in ("running statistics, ", "the run's statistics, ") for name in maps.CORRECTIONS]
    assert data["maps"][0]["x"] == data["maps"][2]["x"] != data["maps"][1]["x"]


def test_without_plates_there_are_no_images_and_it_says_so(run):
    text = write_page(run).read_text(encoding="utf-8")
    assert notes(text) == ["There are no images of wells: the plates are not where this page was written."] and "image/webp" not in text
    (run / "embeddings.parquet").unlink()
    text = write_page(run).read_text(encoding="utf-8")
    assert len(notes(text)) == 3 and "this run has no embeddings.parquet." in notes(text)[1] and notes(text)[2].startswith("Control wells are left out")


@pytest.mark.parametrize("well", ["AA01", "b02", "Z99", "</script>"])
def test_a_well_of_no_plate_is_left_out(run, well):
    table = pd.read_parquet(run / "embeddings.parquet")
    table.loc[table["Metadata_Control_Type"] != "treatment", "Metadata_Well"] = well
    table.to_parquet(run / "embeddings.parquet")
    assert all(0 <= place < 16 * 24 for place in page(run)[1]["wells"]["place"])


def test_prediction_sets_of_no_numbers_are_left_out(run):
    sets = pd.read_parquet(run / "submission.sets.parquet")
    sets.assign(sirnas=[["x"]] * len(sets)).to_parquet(run / "submission.sets.parquet")
    assert set(page(run)[1]["wells"]["set"]) == {None}


@pytest.mark.parametrize("damage", ["not a table", "column", "nan", "text"])
def test_damaged_embeddings_are_named(run, damage):
    path = run / "embeddings.parquet"
    table = pd.read_parquet(path)
    if damage == "not a table":
        path.write_text("PAR1")
    else:
        (table.drop(columns="Metadata_Batch") if damage == "column" else table.assign(embedding_0="x" if damage == "text" else np.nan)).to_parquet(path)
    text, data = page(run)
    assert data["maps"] == [] and notes(text)[0].startswith("There is no map of wells and no neighbours: embeddings.parquet is")


def test_a_run_of_real_plates_has_answers_of_unknown_truth(run):
    answers = pd.read_csv(run / "answers.csv")
    answers[answers["split"] == "held_out"].to_csv(run / "answers.csv", index=False)
    _, data = page(run)
    assert counts(data)["unknown"] == 12 and counts(data)["right"] == 4
    assert data["wells"]["group"].count(None) == 18  # that of the answer where the truth is unknown; controls have none


@pytest.mark.parametrize("name", ["answers.csv", "submission.confidence.csv", "submission.sets.parquet"])
@pytest.mark.parametrize("content", [None, "", "a,b\n1,2\n", "\0\xff"])
def test_damaged_answers_end_no_report(run, name, content):
    (run / name).unlink() if content is None else (run / name).write_text(content)
    text, data = page(run)
    assert len(data["wells"]["plate"]) == (24 if name == "answers.csv" else 36)
    assert bool(notes(text)) == name.endswith(".csv")
    assert write_report(run).is_file()


def test_numbers_that_are_no_siRNA_or_no_probability_are_unknown(run):
    odd = ["-1", "3.5", "inf", "1e99", "", "0x3", "nan"]
    for name, columns in (("answers.csv", ["sirna"]), ("submission.confidence.csv", ["sirna", "confidence"])):
        table = pd.read_csv(run / name, dtype=str)
        for column in columns:
            table.loc[: len(odd) - 1, column] = odd
        table.to_csv(run / name, index=False)
    _, data = page(run)
    assert len(data["wells"]["plate"]) == 36 and counts(data)["unknown"] >= 1 and data["wells"]["confidence"].count(None) == 24 + len(odd)


def test_no_answers_no_page(run):
    write_page(run)
    (run / "answers.csv").unlink()
    (run / "submission.confidence.csv").unlink()
    assert write_page(run) is None and not (run / "explore.html").exists()
    assert "explore.html" not in write_report(run).read_text(encoding="utf-8")


def test_an_image_that_is_missing_or_damaged_costs_its_well_only(run):
    first, second = run / "data/test/HUVEC-02/Plate1", run / "data/test/HUVEC-02/Plate2"
    for site in (1, 2):
        (first / f"B03_s{site}_w5.png").write_text("no image")
    (second / "B03_s1_w5.png").unlink()  # the other site is there
    _, data = page(run)
    assert data["wells"]["image"].count(None) == 1


def test_images_get_the_room_that_is_left(run):
    tables = read_tables(run / "data")
    wells = tables.wells.assign(split=np.where(tables.wells["dataset"] == "test", "test", ""))
    whole = thumbnails.plate_sheets(wells, tables, max_bytes=10**9)
    size = sum(map(len, whole.uris.values()))
    some = thumbnails.plate_sheets(wells, tables, max_bytes=size // 2)
    assert not whole.plates_left_out and 0 < len(some.uris) < 6 and some.plates_left_out == 6 - len(some.uris)
    assert sum(map(len, some.uris.values())) <= size // 2 and next(iter(some.uris)) == ("HUVEC-02", 1)  # of a test experiment


def test_hostile_names_stay_text(tmp_path):
    name = "</script><script>alert(1)</script><img src=x onerror=alert(1)>-01"
    (tmp_path / "answers.csv").write_text(f"id_code,split,cell_type,experiment,sirna,a b assigned\n{name}_1_B02,test,<b>&amp;,x,3,3\n{name}_1_P25,test,x,x,3,3\n")
    (tmp_path / "<i>run").mkdir()
    run = (tmp_path / "answers.csv").rename(tmp_path / "<i>run/answers.csv").parent
    text, data = page(run)
    assert len(re.findall("<script", text)) == 2 and "<img" not in text and "<i>" not in text and "<b>" not in text
    assert data["experiments"] == [name] and data["cell_types"] == ["<b>&amp;"] and len(data["wells"]["plate"]) == 1


def test_nothing_comes_from_outside_and_only_its_own_script_runs(run):
    text, _ = page(run)
    assert not re.search(r"https?:|url\((?!data:image/webp)|@import|src=|<link", text.replace("http://www.w3.org/2000/svg", ""))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:" in text
    assert "innerHTML" not in script and "insertAdjacentHTML" not in script


def test_simulated_plates_are_called_so(run):
    text, data = page(run)
    assert not data["simulated"] and "imulated data" not in re.sub("<script>.*?</script>", "", text, flags=re.DOTALL)
    with simulated.showing(True):
        text, data = page(run)
    assert data["simulated"] and "(simulated data)</title>" in text and "<b>Simulated data.</b>" in text


def test_the_report_leads_there(run):
    text = write_report(run).read_text(encoding="utf-8")
    assert '<a href="explore.html">' in text and (run / "explore.html").is_file()


# Maps.


def test_networks_are_never_mixed(run):
    table = pd.read_parquet(run / "embeddings.parquet")
    mixed = table.assign(Metadata_Network=np.where(table["Metadata_Batch"] == "HUVEC-03", "a", "b"), id_code=table["Metadata_Plate"] + "_" + table["Metadata_Well"])
    wells = pd.DataFrame({"id_code": [*mixed["id_code"], "HUVEC-09_1_B02"]})  # one without an embedding
    for each in maps.well_maps(mixed, wells)[0]:
        network = np.append(maps.networks(mixed).to_numpy(), "none")
        assert (network[each.neighbours[:-1]] == network[:-1, None]).all() and (each.neighbours[-1] == -1).all()
        assert np.isnan(each.positions[-1]).all() and np.abs(each.positions[:-1]).max() <= 1 + 1e-9 and np.abs(each.positions[:-1, 1]).max() <= maps.HEIGHT + 1e-9


def test_the_centred_map_does_not_see_what_a_plate_shares(run):
    table = pd.read_parquet(run / "embeddings.parquet")
    table["id_code"] = table["Metadata_Plate"] + "_" + table["Metadata_Well"]
    names = maps.feature_columns(table)
    shifts = np.random.default_rng(1).normal(size=(table["Metadata_Plate"].nunique(), len(names)))[pd.factorize(table["Metadata_Plate"])[0]]
    (before, centred), note = maps.well_maps(table, table[["id_code"]])
    (shifted, still), _ = maps.well_maps(table.assign(**dict(zip(names, (table[names] + shifts).to_numpy().T))), table[["id_code"]])
    assert note == "" and (centred.neighbours == still.neighbours).all()
    assert not np.allclose(before.positions, shifted.positions, atol=0.01)


def test_without_controls_there_is_no_centred_map_and_the_page_says_so(run):
    table = pd.read_parquet(run / "embeddings.parquet")
    plate = table["Metadata_Plate"].iloc[0]
    table.loc[table["Metadata_Plate"] == plate, "Metadata_Control_Type"] = "treatment"
    table.to_parquet(run / "embeddings.parquet")
    page = write_page(run).read_text(encoding="utf-8")
    assert "There is no map of plates centred on their controls: no controls on plate" in page and "before correction" in page


@pytest.mark.parametrize("wells", [1, 2, 4, 300])
def test_nearest_wells_are_those_of_the_largest_cosine(wells, monkeypatch):
    monkeypatch.setattr(maps, "BLOCK", 64)
    scores = np.random.default_rng(wells).normal(size=(wells, 6))
    unit = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    similarity = unit @ unit.T - 9 * np.eye(wells)
    expected = np.argsort(-similarity, axis=1)[:, : min(maps.NEIGHBOURS, wells - 1)]
    assert np.array_equal(maps.nearest(scores), expected)


def test_flat_embeddings_make_a_map_too():
    scores, shares = maps.principal_components(np.ones((3, 2)), 50)
    assert np.allclose(scores, 0) and np.allclose(shares, 0)


# In a browser.


@pytest.fixture
def browser(run: Path) -> Iterator[Browser]:
    """The page of simulated plates in a browser, wide; afterwards its console must be silent, and nothing else have been asked for."""
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with simulated.showing(True):
        path = write_page(run, plate_groups=GROUPS, data=run / "data")
    with Browser() as opened:
        opened.open(path)
        yield opened
        assert opened.problems == [] and set(opened.requests) == {path.as_uri()}


def cell(name: str) -> str:
    return f'#plate-map [aria-label^="{name}:"]'


def test_in_a_browser(browser):
    """One test, because starting a browser takes longest."""
    assert browser.text("h1").endswith("(simulated data)") and browser.run("[...document.querySelectorAll('h2')].every(h => h.textContent.endsWith('(simulated data)'))")
    assert browser.text("#plate-title") == "Plate map: HUVEC-01, plate 1 (simulated data)" and browser.text("#plate-count").startswith("6 of 6 wells shown: ")

    # Pointing shows a well for a while, a click keeps it.
    chosen = browser.text("#well-title")
    browser.mouse_on(cell("B02"))
    assert browser.text("#well-title") == "Well HUVEC-01_1_B02 (simulated data)" and "untreated" in browser.text("#facts")
    assert browser.run("getComputedStyle(document.querySelector('#image')).backgroundImage").startswith('url("data:image/webp')
    browser.mouse_on("h1")
    assert browser.text("#well-title") == chosen
    browser.mouse_on(cell("C03"), click=True)
    browser.mouse_on("h1")
    assert browser.text("#well-title") == "Well HUVEC-01_1_C03 (simulated data)" and "plate 1, C03: siRNA" in browser.text("#status")
    assert browser.run(f"document.querySelector({json.dumps(cell('C03'))}).getAttribute('aria-selected')") == "true"

    # Arrow keys walk over the wells; Tab leaves them.
    for key, well in (("ArrowUp", "B03"), ("ArrowLeft", "B02"), ("ArrowLeft", "B02"), ("End", "B04"), ("ArrowDown", "C04"), ("Home", "C02")):
        browser.press(key)
        assert browser.text("#well-title").startswith(f"Well HUVEC-01_1_{well} ") and browser.run("document.activeElement.getAttribute('aria-label')").startswith(well)
    assert browser.run("document.querySelectorAll('#plate-map [tabindex=\"0\"]').length") == 1
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "map-colour"

    # A neighbour leads to its well, on its plate; after the correction another one.
    browser.choose("#correction", 1)
    assert browser.text("#map-title") == "Map of all wells, plates centred on their controls (simulated data)" and "the same" in browser.text("#neighbours li")
    target = browser.text("#neighbours .quiet")
    browser.mouse_on("#neighbours button", click=True)
    assert browser.text("#well-title") == f"Well {target} (simulated data)" and target.split("_")[0] in browser.text("#plate-title")

    # The map of wells: pointing, clicking, walking.
    x, y = browser.run("(() => {canvas.scrollIntoView({block: 'center'}); const r = canvas.getBoundingClientRect(), p = toScreen(0); return [r.x + p[0], r.y + p[1]];})()")
    browser.mouse(x, y)
    assert not browser.run("document.querySelector('#tip').hidden") and "HUVEC-0" in browser.text("#tip")
    pointed = browser.text("#well-title")
    browser.mouse(x, y, click=True)
    browser.mouse_on("h1")
    assert browser.text("#well-title") == pointed and browser.run("document.querySelector('#plate-map .selected') !== null")
    browser.run("canvas.focus()")
    browser.press("ArrowRight")
    if browser.text("#well-title") == pointed:  # it is the last one on the right
        browser.press("ArrowLeft")
    assert browser.text("#well-title") != pointed

    # Filters.
    browser.choose("#experiment", browser.run("data.experiments.indexOf('HUVEC-02')"))
    assert "HUVEC-02" in browser.text("#plate-title") and browser.run("document.querySelectorAll('#plate option').length") == 2
    assert browser.text("#map-count").startswith("12 of 36 wells shown.")
    browser.choose("#answers", "wrong")
    assert re.match(r"\d of 6 wells shown: 0 right, \d wrong\.", browser.text("#plate-count")) and browser.text("#map-count").startswith("2 of 36 wells shown.")
    assert "wrong" in browser.text("#facts") and browser.run("document.querySelectorAll('#plate-map .filtered').length") >= 4
    browser.choose("#answers", "all")
    for name in ("confidence", "group", "type", "outcome"):
        browser.choose("#plate-colour", name)
        assert browser.text("#plate-legend")
    for name in ("plate", "sirna", "outcome", "experiment"):
        browser.choose("#map-colour", name)
        assert browser.text("#map-legend")

    # Held-out experiments are named as such; in a wide window the well stands beside the maps and hides no part of them.
    assert browser.run("[...document.querySelectorAll('#experiment option')].map(e => e.textContent)") == ["all", "HUVEC-01 (held out)", "HUVEC-02", "HUVEC-03"]
    sides = browser.run("['#map-section', '#well'].map(each => document.querySelector(each).getBoundingClientRect()).map(r => [r.left, r.right])")
    assert sides[0][1] <= sides[1][0]

    # A narrow window is not scrolled sideways.
    browser.call("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=2, mobile=True)
    assert browser.run("document.documentElement.scrollWidth") <= 375 and browser.run("document.querySelector('svg.plate').getBoundingClientRect().right") <= 375

"""The report is one whole page, whatever is missing from the run."""

import json
import re
from html.parser import HTMLParser

import pytest

from building import in_groups

from cellsignal.files import write_json
from cellsignal.receipts import Receipt
from cellsignal.show.html import head, links, number, page, paragraph, section, table
from cellsignal.show.report import write_report


class Balanced(HTMLParser):
    """Fails when tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(path) -> tuple[str, list[str]]:
    text = path.read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, parser.addresses


def test_a_whole_run(tmp_path, rungs, held_out, history):
    baseline, notes = {"accuracy": 0.25}, ["train/RPE-09/Plate2/J16_s1: no channel 5, 6"]
    routes = [{"experiment": "HUVEC-19", "route": "groups", "group_on_plate": [2, 3, 4, 1], "group_posterior": 0.875,
               "surprise_bits": 0.0, "note": ""},
              {"experiment": "HUVEC-20", "route": "one-to-one", "group_on_plate": None, "group_posterior": None,
               "surprise_bits": 0.0, "note": "two permutations are too close"}]
    write_json(tmp_path / "metrics.json", {"ladder": rungs + held_out, "linear_baseline": baseline, "notes": notes,
                                           "brodt": {"exact": [0.76, 0.89]}, "experiments": routes, "calibration_error": 0.0123})
    sets = [{"split": "test", "experiment": name, "coverage": 0.9, "wells": 50, "mean_size": 2.5, "covered": covered}
            for name, covered in (("HUVEC-19", 0.94), ("HUVEC-20", 0.86), ("all", 0.9))]
    surest = [{"share": share, "stated": 0.9, "accuracy": 0.8} for share in (0.5, 1.0)]
    write_json(tmp_path / "metrics.json", {**json.loads((tmp_path / "metrics.json").read_text()), "prediction_sets": sets, "most_confident_wells": surest})
    write_json(tmp_path / "recipe.json", {"parameters": {"seed": 0, "experiments": ["A<b>"]}, "commit": "abc"})
    write_json(tmp_path / "seconds.json", {"1-eda": 12.3})
    for name in ("pretrain", "model"):
        Receipt(tmp_path / f"weights/HUVEC/{name}.json", details={"history": history}).write()
    for name in ("notebooks/1-eda.html", "notebooks/2-pretrain-controls@HUVEC.html", "submission.csv", "submission.confidence.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    text, addresses = read(write_report(tmp_path))
    assert "Brodt, leaderboard" in text and "0.76 / 0.89" in text
    assert "2 3 4 1" in text and "0.875" in text and "two permutations are too close" in text and "0.012" in text
    for words in ("0.600", "0.800", "0.250", notes[0], "Parameters", "seed", "Made with", "A&lt;b&gt;", "12"):
        assert words in text
    assert "HUVEC-20" in text and "0.860" in text and "2.500" in text
    assert "How many of the answers are right if only the surest wells are kept, and the others left undecided?" in text
    assert text.count('src="data:image/png') == 5  # ladder, experiments, sets, the surest wells, curves
    assert {"notebooks/1-eda.html", "notebooks/2-pretrain-controls%40HUVEC.html", "submission.csv", "submission.confidence.csv"} <= set(addresses)
    assert not re.search(r"https?://", text)
    assert write_report(tmp_path).read_text(encoding="utf-8") == text


def test_controls_are_shown_by_embeddings_where_there_are_any(tmp_path):
    def rows(agreement: float) -> list[dict]:
        return [{"experiment": "HUVEC-19", "plate": plate, "cell_type": "HUVEC", "untreated": 1, "positive": 30, "effect_size": 0.625, "chance": 0.686,
                 "agreement": value} for plate, value in ((1, agreement), (2, None))]

    write_json(tmp_path / "metrics.json", {"controls": {"channel means": rows(0.125), "embeddings": rows(0.875)}})
    text, _ = read(write_report(tmp_path))
    assert "How well the controls" in text and "by embeddings" in text and "0.875" in text and "0.125" not in text and "agreement, plate 2" in text and "about 0.69" in text
    write_json(tmp_path / "metrics.json", {"controls": {"channel means": rows(0.125), "embeddings": []}})
    assert "by channel means" in read(write_report(tmp_path))[0]
    write_json(tmp_path / "metrics.json", {"controls": {}})
    assert "How well the controls" not in read(write_report(tmp_path))[0]


def test_networks_that_only_an_earlier_run_had_are_not_shown(tmp_path, history):
    for name in ("HUVEC/model", "HUVEC/plain", "HUVEC/final", "RPE/model"):
        Receipt(tmp_path / f"weights/{name}.json", details={"history": history}).write()
    def shown(**parameters) -> list[str]:
        write_json(tmp_path / "recipe.json", {"parameters": in_groups(parameters)})
        return re.findall(r'alt="training of ([^"]*)"', read(write_report(tmp_path))[0])
    assert shown() == shown(cell_types=["HUVEC", "RPE"]) == ["HUVEC", "RPE"]
    assert shown(cell_types=["HUVEC"], final_epochs=0) == ["HUVEC"]
    Receipt(tmp_path / "weights/all/model.json", details={"history": history}).write()
    assert shown(cell_types=["HUVEC"], one_network=True) == ["all"]
    both = shown(cell_types=["HUVEC"], final_epochs=1, ablate_virtual_batch=True)
    assert both == ["HUVEC", "HUVEC, treatments without the virtual batch"]


def test_an_empty_run_says_what_is_missing(tmp_path):
    text, _ = read(write_report(tmp_path))
    assert "metrics.json is not there yet." in text and "No weights yet." in text


def test_damaged_parts_are_named(tmp_path):
    (tmp_path / "metrics.json").write_text("{")
    (tmp_path / "weights/RPE").mkdir(parents=True)
    text, _ = read(write_report(tmp_path))
    assert "metrics.json is damaged." in text and "RPE: model.json is not there yet." in text


def test_raw_and_assigned_never_share_a_column(tmp_path, rungs):
    write_json(tmp_path / "metrics.json", {"ladder": rungs, "linear_baseline": None})
    text, _ = read(write_report(tmp_path))
    for line in re.findall(r"<table>.*?</table>", text, re.S):
        rows = re.findall(r"<tr>(.*?)</tr>", line)
        columns = zip(*(re.findall(r'<td class="(\w*)[^>]*>([^<]*)<', row) for row in rows[1:]))
        assert all(len({kind for kind, value in column if value}) <= 1 for column in columns)


def test_a_page_escapes_whatever_no_template_made():
    text = page("<t>", ["<script>", section("<a>", paragraph("<b>"), "<c>"), head("<d>", "<e>", [number("<f>", "<g>")]), links([('"', "<h>")])])
    assert "&lt;script&gt;" in text and not re.search("<(t|script|a|b|c|d|e|f|g|h)>", text) and 'href="&#34;"' in text


def test_tables_escape_and_leave_nothing_blank_by_mistake():
    text = table(["a", "b"], [["<x>", 0.5], [None, 1.0]])
    assert "&lt;x&gt;" in text and "0.500" in text and "None" not in text


@pytest.mark.parametrize("change", [{"ladder": 5}, {"ladder": [{"rung": "running"}]}, {"metric": "other"}, {"notes": "one"}, {"linear_baseline": 0.25},
                                    {"experiments": [{"experiment": "RPE-01"}]}, {"calibration_error": "0.1"}])  # fmt: skip
def test_metrics_of_another_shape_are_named(tmp_path, rungs, change):
    write_json(tmp_path / "metrics.json", {"ladder": rungs, **change})
    write_json(tmp_path / "recipe.json", {"parameters": [1]})
    write_json(tmp_path / "seconds.json", ["a"])
    Receipt(tmp_path / "weights/HUVEC/model.json", details={"history": "long"}).write()
    text, _ = read(write_report(tmp_path))
    assert "metrics.json is damaged." in text and "recipe.json is damaged." in text and "HUVEC: model.json is damaged." in text

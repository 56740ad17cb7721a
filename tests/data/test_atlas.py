"""The Protein Atlas: its tables read strictly, its frequencies simulated, its images drawn."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cellsignal.data.tables.labelled_sites import read_site_tables
from cellsignal.data.microscope.protein_atlas import Subject, render_site
from cellsignal.data.microscope.protein_atlas import PRESETS, draw_labels
from cellsignal.data.check import check_dataset
from cellsignal.data.tables.labelled_sites import multi_hot, parse_labels, write_labels
from cellsignal.data.microscope.protein_atlas import label_sets
from cellsignal.data.microscope.simulate import simulate
from cellsignal.errors import InputError
from cellsignal.tasks import PROTEIN_ATLAS, RXRX1, TASKS

SMALL = replace(PRESETS["atlas-tiny"], train=20, test=8, rarest_sites=1, twins=2)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text("Id,Target\na,16 0\nb,7 1 2 0 7\nc,25\n")
    (tmp_path / "sample_submission.csv").write_text("Id,Predicted\nx,0\nw,0\n")
    return tmp_path


def test_unsorted_and_repeated_labels_are_read_rightly(tables: Path) -> None:
    read = read_site_tables(tables, PROTEIN_ATLAS)
    assert read.sites["labels"].tolist() == [(0, 16), (0, 1, 2, 7), (25,), (), ()]
    assert read.sites["stem"].tolist() == ["train/a", "train/b", "train/c", "test/x", "test/w"]
    assert read.sample == ["x", "w"] and read.solution is None


@pytest.mark.parametrize(
    ("target", "line"),
    [("1 28", 3), ("-1", 3), ("1,2", 3), ("1 two", 3), ("+1", 3), ("1.0", 3), ("01", 3), ("²", 3), ("9" * 5000, 3)],
)
def test_a_label_that_does_not_exist_is_named_by_row(tables: Path, target: str, line: int) -> None:
    (tables / "train.csv").write_text(f'Id,Target\na,0\nb,"{target}"\n')
    with pytest.raises(InputError, match=rf"train.csv:{line}:Target: .* is no label of this task; write class numbers from 0 to 27"):
        read_site_tables(tables, PROTEIN_ATLAS)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("train.csv", "Id,Target\na,0\na,1\n", r"train.csv:3:Id: 'a' stands in an earlier row"),
        ("train.csv", "Id,Target\nx,0\n", r"sample_submission.csv:2:Id: 'x' stands in an earlier row or table"),
        ("train.csv", "Id,Target\n../a,0\n", r"train.csv:2:Id: '../a' is no name of a file"),
        ("train.csv", "Id,Target\na,\n", r"train.csv:2:Target: '' is empty"),
        ("train.csv", "Id,Label\na,0\n", r"train.csv:1: no column Target"),
        ("train.csv", "Id,Target\n", r"train.csv: no row below the header"),
        ("solution.csv", "Id,Target\nz,0\n", r"solution.csv: z is not in sample_submission.csv"),
    ],
)
def test_faults_are_named(tables: Path, name: str, text: str, fault: str) -> None:
    (tables / name).write_text(text)
    with pytest.raises(InputError, match=fault):
        read_site_tables(tables, PROTEIN_ATLAS)


def test_the_real_tables_come_back_as_they_were(shared: Path) -> None:
    read = read_site_tables(shared / "hpa", PROTEIN_ATLAS)
    train = read.sites[read.sites["dataset"] == "train"]
    lines = (shared / "hpa/train.csv").read_text().splitlines()[1:]
    assert len(train) == 31072 and len(read.sample) == 11702
    assert [write_labels(labels) for labels in train["labels"]] == [
        " ".join(map(str, sorted(map(int, line.split(",")[1].split())))) for line in lines
    ]
    assert Counter(train["labels"]) == label_sets()


def test_one_label_a_row_where_a_task_says_so() -> None:
    assert parse_labels("3", RXRX1) == (3,) and parse_labels("3 4", RXRX1) is None and parse_labels("3 4", PROTEIN_ATLAS) == (3, 4)


def test_tasks_agree_with_themselves() -> None:
    for task in TASKS.values():
        assert len(task.channels) == len(task.suffixes) == len(task.colours)
        assert len(task.class_names) in (0, task.classes)


def test_simulated_frequencies_are_the_real_ones() -> None:
    real = multi_hot(list(label_sets()), 28).T @ np.array(list(label_sets().values()))
    drawn = multi_hot(draw_labels(np.random.default_rng(0), 31072, rarest_sites=0), 28).sum(axis=0)
    assert abs(drawn - real).max() <= 30 and real.max() == 12885 and real.min() == 11
    few = multi_hot(draw_labels(np.random.default_rng(1), 1800, rarest_sites=12), 28).sum(axis=0)
    assert few.min() >= 12 and abs(few / 1800 - real / 31072)[[21, 23, 7, 5]].max() < 0.02


def test_labels_that_share_a_site_are_those_that_do_in_reality() -> None:
    drawn = draw_labels(np.random.default_rng(2), 1800, rarest_sites=12)
    assert set(drawn) <= set(label_sets())
    assert np.mean([len(labels) for labels in drawn]) == pytest.approx(1.634, abs=0.1)


def test_the_same_seed_draws_the_same_bytes_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cellsignal.data.microscope import simulate as module

    monkeypatch.setitem(module.PRESETS, "atlas-tiny", SMALL)
    first, second = tmp_path / "first", tmp_path / "second"
    simulate(first, preset="atlas-tiny", parallel_map=map)
    monkeypatch.setattr("cellsignal.data.microscope.protein_atlas._write_tables", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simulate(second, preset="atlas-tiny", parallel_map=map)
    monkeypatch.undo()
    monkeypatch.setitem(module.PRESETS, "atlas-tiny", SMALL)
    monkeypatch.setattr("cellsignal.data.microscope.protein_atlas._render_part", lambda work: 1 / 0)  # nothing is drawn again
    simulate(second, preset="atlas-tiny", parallel_map=map)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(names) == 4 * 28 + 5
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert check_dataset(first, progress=False).empty  # twins are no fault
    (first / f"{read_site_tables(first, PROTEIN_ATLAS).sites['stem'][0]}_red.png").unlink()
    assert "no such file" in set(check_dataset(first, progress=False)["problem"])
    read = read_site_tables(first, PROTEIN_ATLAS)
    assert read.solution is not None and sorted(read.solution.index) == sorted(read.sample)
    assert cv2.imread(str(first / f"{read.sites['stem'][0]}_green.png"), cv2.IMREAD_UNCHANGED).shape == (32, 32)


def brightness_of_nuclei(label: int, count: int = 6) -> float:
    """Green light in the nuclei over that of the whole image, a mean over images that show one label."""
    shares = []
    for k in range(count):
        _, green, blue, _ = render_site(Subject(0, "train", f"{label} {k}", f"{label} {k}", (label,), 64, 1.6)).astype(float)
        shares.append(green[blue > np.percentile(blue, 85)].mean() / green.mean())
    return float(np.mean(shares))


def test_a_protein_is_where_its_label_says() -> None:
    assert min(map(brightness_of_nuclei, (0, 2, 3, 4, 5))) > 1.5  # in the nucleus
    assert max(map(brightness_of_nuclei, (6, 13, 14, 21, 23, 25))) < 0.95  # outside


def test_other_tables_can_be_drawn(tables: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn"
    simulate(out, preset="atlas-tiny", like=tables, parallel_map=map)
    assert read_site_tables(out, PROTEIN_ATLAS).sites["labels"].tolist()[:3] == [(0, 16), (0, 1, 2, 7), (25,)]
    with pytest.raises(InputError, match="no experiments"):
        simulate(tmp_path / "other", preset="atlas-tiny", experiments=["HUVEC-01"])

"""Run folders read for a comparison: what is one recipe, what it cost, and what cannot be compared."""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from finished_runs import vouch, wells, write_run

from cellsignal.errors import InputError
from cellsignal.files import write_json
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal.run.record.results import read_results

TEST = wells()


def make(folder: Path, name: str, *, tables: tuple[pd.DataFrame, ...] = (TEST,), **more: object) -> str:
    return str(write_run(folder / name, raw=0.5, assigned=0.7, tables=tables, **more))


def test_runs_that_differ_in_their_seed_are_one_recipe(tmp_path: Path) -> None:
    runs = [make(tmp_path, name, seed=seed, data_folder=1, backbone=name[:4], num_workers=seed)
            for seed in (0, 1) for name in (f"brodt-seed{seed}", f"best-s{seed}")]
    results, differing = read_results(runs, here=tmp_path / "x")
    assert [(each.name, each.recipe, each.seed) for each in results] == [
        ("brodt-seed0", "brodt", 0), ("best-s0", "best", 0), ("brodt-seed1", "brodt", 1), ("best-s1", "best", 1)]
    assert differing.to_dict() == {"brodt": {"network.backbone": "brod"}, "best": {"network.backbone": "best"}}
    assert results[0].cost == {"weights": 1000, "training_seconds": 120.0, "prediction_seconds": 30.0, "seconds": 150.0,
                               "processes": 2, "device": "cpu"}, "buffers of batch normalisation are not learnt"


def test_runs_of_one_recipe_and_seed_are_compared_not_pooled(tmp_path: Path) -> None:
    runs = [make(tmp_path, f"{name}-seed{seed}", seed=seed) for name in ("before", "after") for seed in (0, 1)]
    results, differing = read_results(runs, here=tmp_path / "x")
    assert [(each.recipe, each.seed) for each in results] == [("before", 0), ("before", 1), ("after", 0), ("after", 1)] and differing.empty


def test_runs_of_one_name_are_told_apart_and_found_beside_the_comparison(tmp_path: Path) -> None:
    for name in ("one/demo", "two/demo"):
        make(tmp_path, name, epochs=len(name))
    results, _ = read_results([str(tmp_path / "one/demo"), str(tmp_path / "two/demo")], here=tmp_path / "x")
    assert [each.name for each in results] == ["one/demo", "two/demo"]
    make(tmp_path / "one", "other", epochs=3)
    (tmp_path / "one/empty").mkdir()
    assert [each.name for each in read_results(here=tmp_path / "one/compare")[0]] == ["demo", "other"]


def test_what_is_attached_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "KAGGLE", tmp_path / "kaggle")
    for number in (1, 2):
        make(tmp_path / f"kaggle/input/notebooks/alice/predict-{number}", "demo", epochs=number)
    results, _ = read_results(here=tmp_path / "runs/compare")
    assert [each.name for each in results] == ["predict-1/demo", "predict-2/demo"]


def test_a_kernel_alone_tells_its_parameters_and_times_by_its_receipt(tmp_path: Path) -> None:
    runs = [make(tmp_path, name, epochs=len(name)) for name in ("a", "bc")]
    vouching = Receipt.read(tmp_path / "a/receipts/4-predict-assign.json")
    details = {"parameters": {"seed": 4, "run": "x"}, "code": "", "attached_files": {}, "progress": "", "written": 1.0, "seconds": 7.0}
    of_a_chain = ("recipe.json", "seconds.json")
    outputs = {name: digest for name, digest in vouching.outputs.items() if name not in of_a_chain}
    replace(vouching, identity={"step": "4-predict-assign"}, outputs=outputs, details=details).write()
    for name in (*of_a_chain, "receipts/record.json"):
        (tmp_path / "a" / name).unlink()
    result = read_results(runs, here=tmp_path / "x")[0][0]
    assert result.seed == 4 and result.cost["prediction_seconds"] == 7.0 and result.cost["training_seconds"] is None


def test_part_of_the_wells(tmp_path: Path) -> None:
    runs = [make(tmp_path, "all"), make(tmp_path, "part", tables=(TEST[TEST["cell_type"] == "RPE"],), epochs=2)]
    results, _ = read_results(runs, here=tmp_path / "x", cell_types=["RPE"], experiments=["RPE-21"])
    assert [len(each.answers) for each in results] == [24, 24]
    with pytest.raises(InputError, match=r"^part: 72 test wells are answered by it or by all alone, such as HUVEC-21_1_B0.*cell_types"):
        read_results(runs, here=tmp_path / "x")
    with pytest.raises(InputError, match="^part: no answers for cell_type HUVEC; choose from RPE$"):
        read_results(runs, here=tmp_path / "x", cell_types=["HUVEC"])


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    first = make(tmp_path, "first")
    others = {
        "its plates are not those of first": make(tmp_path, "b", data="two"),
        "c: its plates are not those of first": make(tmp_path, "c", tables=(wells(seed=1).assign(id_code=TEST["id_code"]),)),
        "d: no answer whose truth is known": make(tmp_path, "d", tables=(TEST[:0],)),
        "no such run folder": str(tmp_path / "nothing"),
        "this run is named twice": first,
        "answers.csv: no such file; run 4-predict-assign": str(tmp_path),
    }
    for words, other in others.items():
        with pytest.raises(InputError, match=words) as raised:
            read_results([first, other], here=tmp_path / "x")
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="1 run with answers, and it takes two to compare"):
        read_results([first], here=tmp_path / "x")


@pytest.mark.parametrize("name", ["recipe.json", "seconds.json", "metrics.json"])
def test_a_file_that_the_run_left_and_that_is_gone_is_missed(tmp_path: Path, name: str) -> None:
    """Without its recipe a run would be taken for one whose kernels ran one by one, with defaults for what they did not read."""
    runs = [make(tmp_path, "one"), make(tmp_path, "two", epochs=2)]
    (tmp_path / "two" / name).unlink()
    with pytest.raises(InputError, match=f"two/{name}: is missing, and the run left it; run the command or the kernel that writes it again$"):
        read_results(runs, here=tmp_path / "x")


@pytest.mark.parametrize("name", ["answers.csv", "metrics.json", "recipe.json", "seconds.json", "scores/model/adapted/metadata.json",
                                  "weights/RPE/model.safetensors"])
def test_what_a_comparison_reads_is_what_the_run_left(tmp_path: Path, name: str) -> None:
    runs = [make(tmp_path, "one"), make(tmp_path, "two", epochs=2)]
    path = tmp_path / "two" / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(InputError, match=f"two/{name}: not as the run left it; run the command or the kernel that writes it again$"):
        read_results(runs, here=tmp_path / "x")
    for receipt in ("4-predict-assign", "record"):
        (tmp_path / f"two/receipts/{receipt}.json").unlink()
    with pytest.raises(InputError, match="two/answers.csv: no finished step of the run left it; run"):
        read_results(runs, here=tmp_path / "x")


def test_runs_of_a_task_with_several_labels_are_refused_as_such(tmp_path: Path) -> None:
    write_json(tmp_path / "atlas/recipe.json", {"parameters": {"task": "protein-atlas"}})
    with pytest.raises(InputError, match="atlas: a site has several labels there; name runs that give each well one siRNA"):
        read_results([make(tmp_path, "one"), str(tmp_path / "atlas")], here=tmp_path / "compare")


@pytest.mark.parametrize("content", [b"", b"\x01", (10**18).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"\x05" + bytes(7) + b"{nope", None],
                         ids=["empty", "cut short", "huge header", "a list", "no JSON", "a pipe"])  # fmt: skip
def test_weights_with_a_broken_header_are_named(tmp_path: Path, content: bytes | None) -> None:
    runs = [make(tmp_path, name, epochs=len(name)) for name in ("a", "bc")]
    path = tmp_path / "bc/weights/RPE/model.safetensors"
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    vouch(tmp_path / "bc")
    words = "is no regular file; put" if content is None else r"is no safetensors file \(.*\); run the training that wrote it again"
    with pytest.raises(InputError, match=f"^{path}: {words}") as refused:
        read_results(runs, here=tmp_path / "x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "content", "fault"), [
    ("recipe.json", [], "the content: input should be a valid dictionary"),
    ("recipe.json", {"parameters": []}, "parameters: input should be a valid dictionary"),
    ("recipe.json", {"parameters": {"seed": "0"}}, "parameters.seed: input should be a valid integer"),
    ("seconds.json", {"4-predict-assign": "9"}, "4-predict-assign: input should be a valid number"),
    ("metrics.json", {"data": ["one"]}, "data: input should be a valid string"),
    ("metrics.json", {"data": "one", "plate_groups": [["1"]]}, "plate_groups.0.0: input should be a valid integer"),
    ("scores/model/adapted/metadata.json", {"experiments": {}, "device": 3}, "device: input should be a valid string"),
])  # fmt: skip
def test_what_is_of_another_shape_is_named(tmp_path: Path, name: str, content: object, fault: str) -> None:
    runs = [make(tmp_path, each, epochs=len(each)) for each in ("a", "bc")]
    Receipt(tmp_path / "bc" / name, details=content).write() if name.startswith("scores/") else write_json(tmp_path / "bc" / name, content)
    vouch(tmp_path / "bc")
    with pytest.raises(InputError) as refused:
        read_results(runs, here=tmp_path / "x")
    assert str(refused.value) == f"{tmp_path / 'bc' / name}: is not as it was written ({fault}); delete it and run the step that writes it again"


def test_a_run_of_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="b: no task 'moon'; compare runs of rxrx1 or protein-atlas or rxrx1-wilds$"):
        read_results([make(tmp_path, "a"), make(tmp_path, "b", task="moon")], here=tmp_path / "x")

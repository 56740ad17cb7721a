"""A run on machines that are threads: the same files as without them, over a shared folder and over a storage."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_ray import Machines

from building import recipe_of
from cellsignal import files
from cellsignal.data.microscope import simulate
from cellsignal.data.packing import pack
from cellsignal.errors import Faults, Problem
from cellsignal.errors import InputError, StepFailed
from cellsignal.receipts import Receipt
from cellsignal.run.chain import chain
from cellsignal.run.cluster import ray_cluster, shared_storage, worker
from cellsignal import provenance

PREDICTION = """from cellsignal.receipts import Receipt
if start_from != "scores":
    learnt = "".join(path.read_text() for path in sorted((folder / "weights").glob("*/model.safetensors")))
    place, tables = folder / "scores/model/adapted", sorted(path.name for path in __import__("pathlib").Path(recipe.data).iterdir())
    digests = dict(Receipt.read(place / "metadata.json").outputs) if (place / "metadata.json").exists() else {}
    for name in score_only or ["U2OS-01", "U2OS-02", "U2OS-03"]:
        made = f"{name} {learnt} {len(tables)}"
        if not (place / f"{name}.parquet").exists():
            files.write_text(place / f"{name}.parquet", made)
        digests[f"{name}.parquet"] = files.sha256(place / f"{name}.parquet")
    Receipt(place / "metadata.json", {}, {name: digests[name] for name in sorted(digests)}, details={"experiments": {}}).write()
if not score_only:
    files.write_json(folder / "metrics.json", {"ladder": []})
    files.write_text(folder / "submission.confidence.csv", "id_code,sirna,confidence\\n")
    files.write_text(folder / "submission.sets.parquet", "sets")
    scores = [path.read_text() for path in sorted((folder / "scores").glob("*/*/*.parquet"))]
    files.write_text(folder / "submission.csv", f"id_code,sirna\\n{recipe.assignment.method},{scores}\\n")"""
TRAININGS = ["2-pretrain-controls@U2OS", "3-train-cell-type@U2OS"]
PARTS = [f"4-predict-assign@U2OS-0{number}" for number in (1, 2, 3)]  # training experiments, too, are embedded for prototypes
ALL = ["1-eda", *TRAININGS, "4-predict-assign", *PARTS, "plates", "report"]


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    ray = Machines()
    monkeypatch.setattr(ray_cluster, "_import_ray", lambda: ray)
    return ray


@pytest.fixture
def run(
    tmp_path: Path, plates: Path, kernels: Path, write_toy: Callable[..., Path], in_this_process: None, machines: Machines,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., list[str]]:
    """run(folder, storage=..., **parameters) gives the names of the steps that were not kept."""
    write_toy(kernels, "4-predict-assign", own='start_from = ""\nscore_only = []', reads="recipe.assignment.method, recipe.prediction.prototype_weight", body=PREDICTION)
    write_toy(kernels, "2-pretrain-controls", reads="recipe.training.pretrain_epochs, recipe.machine.num_workers, recipe.machine.num_processes")

    def steps(name: str, *, storage: str = "", alone: bool = False, start_from: str = "", **parameters: Any) -> list[str]:
        capsys.readouterr()
        checked = recipe_of({"data": str(plates), "prototype_weight": 0.3, **parameters})
        executor = None if alone else ray_cluster.Cluster("local", storage)
        chain.run_chain(checked, run=tmp_path / name, kernels=kernels, executor=executor, start_from=start_from)
        return sorted(line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("started"))

    return steps


def made(folder: Path) -> dict[str, str]:
    """SHA-256 of what a run is for."""
    found = [path for each in ("weights/**/*", "scores/**/*", "submission*", "metrics.json") for path in folder.glob(each)]
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in sorted(found) if path.is_file()}


def test_a_shared_folder_gets_the_files_that_one_machine_makes(run: Callable[..., list[str]], tmp_path: Path, machines: Machines) -> None:
    assert run("one", alone=True) == sorted(set(ALL) - set(PARTS))
    assert run("two") == ALL
    assert made(tmp_path / "two") == made(tmp_path / "one")
    assert "scores/model/adapted/U2OS-03.parquet" in made(tmp_path / "two")
    assert machines.asked == [{"max_retries": ray_cluster.RETRIES, "num_cpus": 1, "num_gpus": 0}] * 5
    assert run("two") == [] and len(machines.asked) == 5
    assert run("two", alone=True) == ["report"]  # one machine has other steps to report of, and repeats none
    assert not (tmp_path / "two" / worker.EXPERIMENT_RUNS).exists()


def test_only_what_depends_on_a_change_runs_again(run: Callable[..., list[str]], tmp_path: Path) -> None:
    plain = {"html_pages": False, "method": "raw"}
    run("run", html_pages=False)
    assert run("run", **plain) == ["4-predict-assign"]
    (tmp_path / "run/scores/model/adapted/U2OS-02.parquet").unlink()
    assert run("run", **plain) == ["4-predict-assign@U2OS-02"]  # the same scores: the decision stands
    assert run("run", start_from="scores", **plain) == ["4-predict-assign"]
    assert run("run", start_from="weights", **plain) == ["4-predict-assign", *PARTS]


@pytest.mark.slow
@pytest.mark.ci
def test_over_a_storage_the_same_files_come_and_stay(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    storage = f"file://{tmp_path}/store"
    run("one", alone=True)
    assert run("two", storage=storage) == ALL
    assert made(tmp_path / "two") == made(tmp_path / "one") == made(tmp_path / "store")
    assert {path.stem for path in (tmp_path / "store/receipts").iterdir()} == {*ALL} - {*PARTS, "plates"}
    assert run("two", storage=storage) == []
    assert not {*TRAININGS, "1-eda", "4-predict-assign"} & {*run("elsewhere", storage=storage)}
    assert made(tmp_path / "elsewhere") == made(tmp_path / "one")
    [place] = (tmp_path / "store/weights/U2OS").glob("model.safetensors")
    place.write_text("damaged")
    assert TRAININGS[1] in run("third", storage=storage, html_pages=False)
    assert made(tmp_path / "third") == made(tmp_path / "one")


def test_a_failure_there_is_the_line_it_is_here(
    run: Callable[..., list[str]], tmp_path: Path, kernels: Path, write_toy: Callable[..., Path], machines: Machines
) -> None:
    write_toy(kernels, "3-train-cell-type", body="from cellsignal.errors import InputError\nraise InputError('no wells', where=folder)")
    with pytest.raises(InputError, match=f"^{tmp_path}/run: no wells$"):
        run("run", storage=f"file://{tmp_path}/store")
    write_toy(kernels, "3-train-cell-type", body="1 / 0")
    with pytest.raises(StepFailed, match="^3-train-cell-type@U2OS: ZeroDivisionError: division by zero$"):
        run("run")
    write_toy(kernels, "3-train-cell-type", body="pass")
    with pytest.raises(StepFailed, match="ended without writing weights/U2OS/model.safetensors"):
        run("run")
    machines.lost = True
    with pytest.raises(StepFailed, match="its machine was lost 4 times"):
        run("run")


def test_what_no_machine_can_do_is_refused(run: Callable[..., list[str]], machines: Machines) -> None:
    with pytest.raises(InputError, match="2-pretrain-controls@U2OS: no machine of the cluster has 9 cores; set machine.num_workers"):
        run("run", num_workers=8)
    machines.alive[0]["Resources"]["GPU"] = 2.0
    run("run", num_processes=2, num_workers=1)
    assert machines.asked[-5] == {"max_retries": ray_cluster.RETRIES, "num_cpus": 3, "num_gpus": 2}


def test_a_machine_that_does_not_see_the_run_folder_says_so(run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "describe_job", lambda *told, tell=worker.describe_job, **more: {**tell(*told, **more), "run": "/elsewhere"})
    with pytest.raises(InputError, match="^/elsewhere: .* does not see the run folder; share the folder .* --storage URL"):
        run("run")


def test_other_code_is_refused(run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "describe_job", lambda *told, tell=worker.describe_job, **more: {**tell(*told, **more), "code": "other"})
    with pytest.raises(InputError, match="another version of cellsignal"):
        run("run")


def test_no_cluster_and_no_ray_are_told_before_anything_runs(
    run: Callable[..., list[str]], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for address, why in (("nobody", "Could not find any running Ray instance"), ("localhost:1", "Connection refused")):
        with pytest.raises(InputError, match=f"--ray {address}: no Ray cluster answers .{why}.*; start one with"):
            ray_cluster.Cluster(address).open(tmp_path, deadline=None).__enter__()
    with pytest.raises(InputError, match="file:///proc/none: no place to write .*; name a folder"):
        ray_cluster.Cluster("local", "file:///proc/none")
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    params = tmp_path / "run.yaml"
    params.write_text("preset: tiny\n")
    assert refused("run", params, "--ray", "local") == "--ray: Ray is not installed; pip install ray, on every machine"
    assert refused("run", params, "--storage", "file:///x").startswith("--storage is for machines of a cluster; ")


@pytest.mark.slow
@pytest.mark.ci
def test_machines_draw_and_pack_what_one_draws_and_packs(machines: Machines, tmp_path: Path) -> None:
    def everything(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    asked = {"preset": "tiny", "experiments": ("HUVEC-01",), "image_size": 16}
    simulate.simulate(tmp_path / "one", parallel_map=map, **asked)
    for name, storage in (("shared", ""), ("apart", f"file://{tmp_path}/store")):
        simulate.simulate(tmp_path / name, parallel_map=ray_cluster.Cluster("local", storage).parallel_map, **asked)
    assert everything(tmp_path / "apart") == everything(tmp_path / "shared") == everything(tmp_path / "one")
    plan = pack.plan_pack(tmp_path / "one")
    pack.pack(plan, tmp_path / "packed", progress=False)
    with ray_cluster.open_parallel_map("local") as by:
        assert len(pack.pack(plan, tmp_path / "together", progress=False, parallel_map=by)) == 4
    assert everything(tmp_path / "together") == everything(tmp_path / "packed")
    next((tmp_path / "one").rglob("*.png")).write_bytes(b"damaged")
    with ray_cluster.open_parallel_map("local") as by, pytest.raises(InputError, match="is not a PNG"):
        pack.pack(plan, tmp_path / "third", progress=False, parallel_map=by)


def test_bad_input_of_any_kind_comes_back_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(told: dict, desk: None) -> None:
        raise Faults([Problem("B02_s1_w1.png", "the file is empty", "copy the file again")])

    monkeypatch.setattr(worker, "_shared_workspace", lambda job: nullcontext())
    monkeypatch.setattr(worker, "_execute", damaged)
    answer = worker.run_job({"code": provenance.code_digest(), "storage": ""})
    assert ray_cluster.ERRORS[answer["error"]] is InputError and answer["text"] == "B02_s1_w1.png: the file is empty; copy the file again"


def test_a_receipt_in_the_storage_writes_nothing_outside_the_run(run: Callable[..., list[str]], tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/store"
    files.write_text(tmp_path / "store/evil", "evil")
    Receipt(tmp_path / "store/receipts/1-eda.json", {}, {"../../../.bashrc": files.sha256(tmp_path / "store/evil")}, details={"seconds": 1.0}).write()
    with pytest.raises(InputError) as refused:
        run("deep/er/run", storage=storage, html_pages=False)
    assert str(refused.value) == (
        f"{storage}: names a file '../../../.bashrc', which cannot lie in {tmp_path}/deep/er/run; take nothing from it that you do not trust")
    assert not (tmp_path / ".bashrc").exists()


@pytest.mark.parametrize("change", [{"outputs": ["a"]}, {"outputs": {"a": 1}}, {"identity": None}, {"details": {"seconds": "1"}}])
def test_a_receipt_of_another_shape_in_the_storage_counts_for_nothing(run: Callable[..., list[str]], tmp_path: Path, change: dict[str, Any]) -> None:
    replace(Receipt(tmp_path / f"store/receipts/{TRAININGS[1]}.json", details={"seconds": 1.0}), **change).write()
    assert TRAININGS[1] in run("run", storage=f"file://{tmp_path}/store", html_pages=False)


def test_a_list_of_plates_in_the_storage_writes_nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path / "machine"))
    storage = worker.Storage(f"file://{tmp_path}/store")
    for listed, words in (({"../../x.csv": 4}, r"names a file '../../x.csv', which cannot lie in"), ({"x.csv": "4"}, "input should be a valid integer")):
        storage.put_receipt("data/abc.json", Receipt(tmp_path, outputs=dict.fromkeys(listed, "0"), details=listed))
        files.write_text(tmp_path / "store/x.csv", "evil")
        with pytest.raises(InputError, match=words):
            worker._fetch_plates(storage, "abc", "")
    assert not list((tmp_path / "machine").rglob("x.csv"))


def test_plates_from_the_storage_are_those_that_were_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path / "machine"))
    monkeypatch.setattr(shared_storage, "ATTEMPT_SECONDS", 0)
    storage, digests = worker.Storage(f"file://{tmp_path}/store"), {}
    for name in ("train.csv", "train/U2OS-01/Plate1/B02_s1_w1.png"):
        files.write_text(path := tmp_path / "store/data/abc" / name, name)
        digests[name] = files.sha256(path)
    storage.put_receipt("data/abc.json", Receipt(tmp_path, outputs=digests, details={name: len(name) for name in digests}))
    root = worker._fetch_plates(storage, "abc", "")
    assert {name: files.sha256(root / name) for name in digests} == digests
    (root / "train.csv").write_text("train,csv")  # of the same size
    assert (worker._fetch_plates(storage, "abc", "") / "train.csv").read_text() == "train.csv"
    for name in digests:
        (root / name).unlink()
        whole = (stored := tmp_path / "store/data/abc" / name).read_bytes()
        stored.write_bytes(whole[:-1] + b"?")
        with pytest.raises(StepFailed, match=f"{name} is not the file that was stored"):
            worker._fetch_plates(storage, "abc", "U2OS")
        stored.write_bytes(whole)

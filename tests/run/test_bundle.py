"""The archive of a run: complete, the same bytes every time, without pixels and without a path of this machine."""

import hashlib
import re
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from building import recipe_of
from cellsignal.settings import update
from cellsignal import files
from cellsignal.cli import archive
from cellsignal.errors import InputError
from cellsignal.run import environment, recipe
from cellsignal.run.bundle import entry_points, bundle, archive_texts
from cellsignal.run.chain import chain, plans, script
from cellsignal import provenance
from cellsignal.run.bundle.archive_texts import RunFacts
from cellsignal.run.chain import steps

pytestmark = pytest.mark.usefixtures("in_this_process")
SECTIONS = ["ARCHIVE CONTENTS", "HARDWARE", "SOFTWARE", "DATA SETUP", "DATA PROCESSING", "MODEL BUILD"]


@pytest.fixture
def run(tmp_path: Path, plates: Path, kernels: Path) -> Path:
    """A finished run of toys, with things beside it that are nobody's business."""
    folder = tmp_path / "runs/toys"
    chain.run_chain(recipe_of({"data": str(plates), "seed": 7}), run=folder, kernels=kernels)
    for name in ("eda/wells.png", "notebooks/mine.ipynb", "weights/U2OS/model.checkpoint-3.safetensors", "notes.csv", "secret.txt"):
        files.write_text(folder / name, "not to be handed out")
    return folder


def describe(run: Path, made: dict[str, Any]) -> None:
    """Let a run say that it was made otherwise, as if it had been."""
    files.write_json(run / "recipe.json", made)
    steps.write_receipt(run, steps.record_step(), identity={}, seconds=0.0)


def unpacked(path: Path, place: Path) -> Path:
    with zipfile.ZipFile(path) as source:
        source.extractall(place)
    return place


def test_it_holds_all_that_kaggle_asks_for_and_nothing_else(run: Path, tmp_path: Path) -> None:
    written = bundle.bundle(run)
    assert written == run.with_name("toys.zip")
    root = unpacked(written, tmp_path / "unpacked")
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {"README.md", "SETTINGS.json", "requirements.txt", "entry_points.md", "directory_structure.txt", "SHA256SUMS", "params.yaml",
            "prepare_data.py", "train.py", "predict.py", "LICENSE", "cellsignal/cli/main.py", "kernels/4-predict-assign/4-predict-assign.ipynb",
            "run/weights/U2OS/model.safetensors", "run/scores/model/toy.parquet", "run/submission.csv",
            "run/submission.confidence.csv", "run/submission.sets.parquet", "run/metrics.json", "run/receipts/3-train-cell-type@U2OS.json"} <= names  # fmt: skip
    assert not [name for name in names if re.search(r"\.(png|jpe?g|html|tiff?)$|\.checkpoint|__pycache__|secret|notes|/\.", name)]
    told = [line.split("  ") for line in (root / "SHA256SUMS").read_text().splitlines()]
    assert {name: digest for digest, name in told} == {name: files.sha256(root / name) for name in names - {"SHA256SUMS"}}
    folders = {".", *(f"./{path.relative_to(root).as_posix()}" for path in root.rglob("*/"))}
    assert set((root / "directory_structure.txt").read_text().splitlines()) == folders


def test_its_texts_tell_what_to_do_and_name_no_place_of_this_machine(run: Path, tmp_path: Path) -> None:
    root = unpacked(bundle.bundle(run, tmp_path / "a.zip"), tmp_path / "unpacked")
    text = (root / "README.md").read_text()
    assert re.findall("^# (.*)", text, flags=re.MULTILINE) == ["toys", *SECTIONS]
    for command, overwritten in (("predict --from scores", "run/submission.csv"), ("predict", "run/scores/"), ("train", "run/weights/")):
        after = text.partition(f"```bash\npython -m {command}\n```\n\noverwrites ")[2]
        assert overwritten in after.split("\n\n")[0]
    assert hashlib.sha256((run / "submission.csv").read_bytes()).hexdigest() in text
    assert "kaggle competitions download -c recursion-cellular-image-classification" in text
    assert files.read_json(root / "SETTINGS.json") == entry_points.PATHS
    ours = [path for path in root.rglob("*") if path.is_file() and "cellsignal" not in path.parts and "kernels" not in path.parts]
    assert not [path for path in ours if str(tmp_path).encode() in path.read_bytes() or str(environment.PACKAGE).encode() in path.read_bytes()]
    values = yaml.safe_load((root / "params.yaml").read_text())
    assert values["seed"] == 7 and not {"run", "data"} & set(values) and recipe.load(root / "params.yaml").seed == 7


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    first = bundle.bundle(run, tmp_path / "first.zip").read_bytes()
    moved = shutil.move(run, tmp_path / "elsewhere/toys")
    assert bundle.bundle(Path(moved), tmp_path / "second.zip").read_bytes() == first
    assert zipfile.ZipFile(tmp_path / "first.zip").testzip() is None


def test_requirements_are_exact_and_reach_down_to_what_libraries_need(run: Path, tmp_path: Path) -> None:
    made = files.read_json(run / "recipe.json")
    describe(run, {**made, "libraries": {**made["libraries"], "numpy": "1.2.3", "torch": "9.9.9+cu999"}})
    lines = (unpacked(bundle.bundle(run), tmp_path / "unpacked") / "requirements.txt").read_text().splitlines()
    assert lines[0].startswith("# Python 3.") and all(re.fullmatch(r"[a-z0-9-]+==[\w.!]+(  # \S+)?", line) for line in lines[1:])
    assert {"numpy==1.2.3", "torch==9.9.9  # 9.9.9+cu999"} <= set(lines)
    names = [line.split("==")[0] for line in lines[1:]]
    assert {"papermill", "ipykernel", "pydantic-core", "jupyter-core", "opencv-python-headless"} <= set(names)
    assert not {"cellsignal", "pytest"} & set(names) and len(names) == len(set(names))
    assert bundle.with_dependencies(["no-such-thing"]) == []
    assert bundle.version_lines(["pyyaml"], recorded={"PyYAML": ""}) == [f"pyyaml=={metadata.version('pyyaml')}"]


def test_a_run_that_is_not_whole_is_refused_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run; name the folder that `cellsignal run` wrote"):
        bundle.bundle(tmp_path)
    made, weights = files.read_json(run / "recipe.json"), run / "weights/U2OS/model.safetensors"
    kept = weights.read_text()
    weights.write_text("damaged")
    with pytest.raises(InputError, match="model.safetensors: not as 3-train-cell-type@U2OS left it"):
        bundle.bundle(run)
    weights.write_text(kept)
    (run / "receipts/4-predict-assign.json").unlink()
    with pytest.raises(InputError, match="4-predict-assign is not complete; run it to the end"):
        bundle.bundle(run)
    describe(run, {**made, "parameters": {**made["parameters"], "lens": 1}})
    with pytest.raises(InputError, match="this package knows no lens, which the run was given"):
        bundle.bundle(run)
    with files.locked(environment.locks_folder(run) / environment.CHAIN_LOCK), pytest.raises(InputError, match="a chain works in this folder"):
        bundle.bundle(run)
    assert not list(run.parent.glob("*.zip")) and not list(run.parent.glob(f"{files.TEMPORARY}*"))


def test_steps_that_do_not_belong_together_are_no_archive(run: Path, plates: Path, kernels: Path) -> None:
    def chain_again(start_from: str = "", **changes: Any) -> None:
        chain.run_chain(recipe_of({"data": str(plates), "seed": 7, **changes}), run=run, kernels=kernels, start_from=start_from)

    def train_alone(**changes: Any) -> None:
        """As a user runs one notebook in a finished run's folder."""
        values = recipe_of({"data": str(plates), "seed": 7, **changes}).model_dump() | {"run": str(run), "cell_type": "U2OS"}
        script.execute(kernels / "3-train-cell-type/3-train-cell-type.ipynb", values)
        environment.unlock_run_folder(run)

    train_alone()
    assert bundle.bundle(run).is_file(), "the same weights"
    train_alone(epochs=9)
    with pytest.raises(InputError, match=r"toys: 3-train-cell-type@U2OS was made with training.epochs 9, and recipe.json says \d+; run it to the end, with the command that began it$"):
        bundle.bundle(run)
    chain_again("weights", epochs=9)
    assert bundle.bundle(run).is_file()
    (weights := run / "weights/U2OS/model.safetensors").write_text("of other code")
    step = next(step for step in plans.plan(recipe_of({}), ["U2OS"], kernels=kernels) if step.name == "3-train-cell-type@U2OS")
    steps.write_receipt(run, step, identity=steps.read_receipt(run, step).identity, seconds=1.0)
    with pytest.raises(InputError, match="4-predict-assign was made from other files than 3-train-cell-type@U2OS has left since; run it to the end"):
        bundle.bundle(run)
    chain_again("weights", epochs=9)
    assert bundle.bundle(run).is_file() and weights.read_text() == "of other code"
    chain_again("weights", seed=8, epochs=9)
    with pytest.raises(InputError, match="2-pretrain-controls@U2OS was made with seed 7, and recipe.json says 8"):
        bundle.bundle(run)


def test_weights_that_training_began_with_come_along(run: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun.safetensors"
    made = files.read_json(run / "recipe.json")
    describe(run, {**made, "parameters": update(made["parameters"], {"network.pretrained": str(begun)})})
    with pytest.raises(InputError, match="begun.safetensors: no such file, and training from scratch begins with it"):
        bundle.bundle(run)
    begun.write_text("weights")
    root = unpacked(bundle.bundle(run), tmp_path / "unpacked")
    assert entry_points.read_settings(root)["PRETRAINED_FILE"].read_text() == "weights"
    assert f'network.pretrained="{root}/pretrained/begun.safetensors"' in entry_points.arguments(root, "train")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The little of an unpacked archive that its scripts read first."""
    files.write_json(tmp_path / "SETTINGS.json", {"RAW_DATA_DIR": "/plates: 1", "RUN_DIR": "run", "SUBMISSION_DIR": "out"})
    files.write_text(tmp_path / "params.yaml", "preset: tiny\nseed: 3\n")
    return tmp_path


def test_the_scripts_take_every_path_from_settings(root: Path) -> None:
    told = ["run", f"{root}/params.yaml", "-p", 'data="/plates: 1"', "--out", f"{root}/run", "--from"]
    assert entry_points.arguments(root, "predict", ["--from", "scores"]) == [*told, "weights", "--from", "scores"]
    assert entry_points.arguments(root, "train") == [*told, "scratch"]
    for more in (["--out", "elsewhere"], ["--out=elsewhere"]):  # or the submission of RUN_DIR would be copied, whatever came out there
        with pytest.raises(InputError, match=f"^{more[0]}: the run's folder is that of SETTINGS.json, .*; change RUN_DIR in {root}/SETTINGS.json$"):
            entry_points.arguments(root, "train", more)
    assert recipe.load(root / "params.yaml", [told[3]]).data == "/plates: 1"
    assert entry_points.arguments(root, "prepare_data") == ["simulate", "/plates: 1", "--preset", "tiny", "--seed", "3"]
    files.write_text(root / "params.yaml", "seed: 3\n")
    assert entry_points.arguments(root, "prepare_data") == ["check", "/plates: 1"]
    files.write_text(root / "run/submission.csv", "id_code,sirna\n")
    assert entry_points.copy_submission(root).read_text() == "id_code,sirna\n" and (root / "out/submission.csv").is_file()


def test_a_submission_that_cannot_be_copied_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    files.write_text(root / "run/submission.csv", "id_code,sirna\n")
    (root / "out").touch()  # where a folder has to be
    monkeypatch.setattr("cellsignal.cli.main.main", lambda: sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    with pytest.raises(SystemExit) as ended:
        archive.entry(str(root / "predict.py"), "predict")
    assert ended.value.code == 2 and capsys.readouterr().err == f"predict: error: {root}/out: File exists; choose another path\n"


@pytest.mark.parametrize("settings", [[], {"RAW_DATA_DIR": "data", "RUN_DIR": ""}, {"RAW_DATA_DIR": 1, "RUN_DIR": "a", "SUBMISSION_DIR": "b"}])
def test_settings_that_name_no_places_are_refused(root: Path, settings: Any) -> None:
    files.write_json(root / "SETTINGS.json", settings)
    with pytest.raises(InputError, match="SETTINGS.json: does not name RAW_DATA_DIR, RUN_DIR, SUBMISSION_DIR; give each a folder"):
        entry_points.arguments(root, "predict")


def test_the_package_in_it_is_this_one(run: Path, tmp_path: Path) -> None:
    package = unpacked(bundle.bundle(run), tmp_path / "unpacked") / "cellsignal"
    assert files.read_json(package / provenance.BUILD_FILE)["code"] == provenance.code_digest(package) == provenance.code_digest()


@pytest.mark.parametrize("preset, does", [("tiny", "draws the plates"), ("", "checks every row and every image")])
def test_the_readme_says_what_preparing_the_data_does(preset: str, does: str) -> None:
    text = archive_texts.readme(RunFacts("run", {"preset": preset}, {}, {}, {"weights": None, "scores": None}, "", []))
    section = text.partition("# DATA PROCESSING")[2].partition("# MODEL BUILD")[0]
    assert does in section and ("draws" in section) == bool(preset)

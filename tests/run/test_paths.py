"""Places: where we are, who holds a run folder, and what a notebook's process is given."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellsignal import files
from cellsignal.errors import InputError
from cellsignal.run import environment as paths, recipe
from cellsignal.run.bundle import entry_points


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """place("KAGGLE_KERNEL_RUN_TYPE", ...) sets these variables and no other mark of a place; its disk is in tmp_path."""
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "CELLSIGNAL_CHAIN", "CELLSIGNAL_DEADLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(paths, "KAGGLE", tmp_path / "kaggle")
    monkeypatch.setattr(paths, "COLAB", tmp_path / "content")
    return lambda *names: [monkeypatch.setenv(name, "Batch") for name in names]


def test_at_home_all_lies_here(place: Callable[..., None]) -> None:
    assert paths.platform() == "local"
    assert paths.run_folder("runs/one") == Path.cwd() / "runs/one"
    assert paths.run_folder("/absolute") == Path("/absolute")
    assert paths.data_folder("plates") == Path.cwd() / "plates"
    assert paths.scratch_folder(Path("/runs/one")) == Path("/runs/one/data") and paths.locks_folder(Path("/runs/one")) == Path("/runs/one")


def test_kaggle_is_asked_before_colab_and_draws_plates_outside_its_outputs(place: Callable[..., None], tmp_path: Path) -> None:
    place("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")
    assert paths.platform() == "kaggle"
    run = paths.run_folder("runs/one")
    assert run == tmp_path / "kaggle/working/runs/one"
    assert paths.scratch_folder(run) == tmp_path / "kaggle/temp/runs/one/data"
    assert paths.scratch_folder(Path("/elsewhere/two")) == tmp_path / "kaggle/temp/two/data"


def test_colab_keeps_runs_on_the_drive_and_data_and_locks_off_it(place: Callable[..., None], tmp_path: Path) -> None:
    place("COLAB_RELEASE_TAG")
    assert paths.run_folder("runs/one") == tmp_path / "content/runs/one"
    drive = tmp_path / "content/drive/MyDrive"
    drive.mkdir(parents=True)
    run = paths.lock_run_folder("runs/one")
    assert run == drive / "cellsignal/runs/one" and list(run.iterdir()) == []
    for aside in (paths.scratch_folder(run), paths.data_folder("plates"), paths.locks_folder(run)):
        assert aside.is_relative_to(tmp_path / "content") and not aside.is_relative_to(drive)
    with pytest.raises(InputError, match="in use"), files.locked(paths.locks_folder(run) / paths.KERNELS_LOCK):
        pass
    paths.unlock_run_folder(run)


def test_a_deadline_counts_from_the_start_of_the_process(place: Callable[..., None]) -> None:
    assert paths.deadline(0) is None
    assert paths.deadline(2) == pytest.approx(paths._START_TIME + 120)
    place("KAGGLE_KERNEL_RUN_TYPE")
    assert paths.deadline(0) == pytest.approx(paths._START_TIME + 11 * 3600)
    assert paths.deadline(2) == pytest.approx(paths._START_TIME + 120)
    for minutes in (690, 691, 720, 1e6):  # a session is killed after 12 hours, and what it has not saved is lost
        assert paths.deadline(minutes) == pytest.approx(paths._START_TIME + 11.5 * 3600)


def test_a_notebook_has_the_deadline_of_its_chain(
    place: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place("KAGGLE_KERNEL_RUN_TYPE")
    for end in (1234567890.125, None):
        for name, value in paths.kernel_environment(tmp_path, deadline=end).items():
            monkeypatch.setenv(name, value)
        assert paths.under_chain() and paths.deadline(0) == paths.deadline(5) == end


def test_notebooks_are_given_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secrets = ["KAGGLE_KEY", "KAGGLE_USERNAME", "KAGGLE_API_TOKEN", "KAGGLE_API_V1_TOKEN", "KAGGLE_USER_SECRETS_TOKEN", "hf_token",
               "KAGGLE_DATA_PROXY_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "OPENAI_API_KEY", "WANDB_APIKEY"]  # fmt: skip
    harmless = ["KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE", "TOKENIZERS_PARALLELISM", "KEYBOARD", "HOME"]
    for name in secrets + harmless:
        monkeypatch.setenv(name, "canary")
    environment = paths.kernel_environment(tmp_path)
    assert not set(secrets) & set(environment)
    assert set(harmless) <= set(environment)


def test_the_checkout_holds_the_kernels() -> None:
    assert (paths.kernels_folder() / "0-chain/0-chain.ipynb").is_file()


def test_a_claim_ends_with_its_process_however_that_dies(tmp_path: Path) -> None:
    code = f"from cellsignal.run import environment as paths; paths.lock_run_folder({str(tmp_path)!r}); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match="in use"), files.locked(tmp_path / paths.KERNELS_LOCK):
            pass
    finally:
        process.kill()
        process.communicate()
    with files.locked(tmp_path / paths.KERNELS_LOCK):
        pass


def test_claims_are_shared_and_can_be_released(tmp_path: Path) -> None:
    folder = paths.lock_run_folder(tmp_path / "run")
    assert folder == paths.lock_run_folder(str(folder)) == tmp_path / "run"
    paths.unlock_run_folder(folder)
    with files.locked(folder / paths.KERNELS_LOCK):
        pass


def test_threads_that_claim_at_once_share_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, really = threading.Barrier(4), files.open_lock

    def slow(path: Path, kind: int) -> int:
        time.sleep(0.05)  # all threads are here before the first has its lock, unless they wait for each other
        return really(path, kind)

    def claim(_: int) -> Path:
        together.wait(timeout=10)
        return paths.lock_run_folder(tmp_path)

    monkeypatch.setattr(files, "open_lock", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(claim, range(4))) == [tmp_path] * 4
    paths.unlock_run_folder(tmp_path)
    with files.locked(tmp_path / paths.KERNELS_LOCK):
        pass


def test_notebooks_get_this_interpreter_and_package(tmp_path: Path) -> None:
    environment = paths.kernel_environment(tmp_path, threads=3)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONPATH"].split(":")[0] == str(paths.PACKAGE.parent)
    spec = Path(environment["JUPYTER_PATH"].split(":")[0]) / "kernels/python3/kernel.json"
    assert json.loads(spec.read_text())["argv"][0] == sys.executable


def test_a_notebook_on_its_own_has_the_libraries_of_a_chains(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "0")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    paths.configure_libraries()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == paths.kernel_environment(tmp_path)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "0"  # the user's own word


HOMELESS = {
    "$HOME/plates": "$HOME is a variable, which only a shell replaces; write the path itself; one may begin with ~ for the home folder",
    "runs/${WHERE}": "${WHERE} is a variable, which only a shell replaces; write the path itself; one may begin with ~ for the home folder",
    "runs/first-$lower": "$lower is a variable, which only a shell replaces; write the path itself; one may begin with ~ for the home folder",
    "%USERPROFILE%/plates": "%USERPROFILE% is a variable, which only a shell replaces; write the path itself; one may begin with ~ for the home folder",
    "~nobody-here/plates": "~nobody-here is no user's home folder; write the whole path, or ./~nobody-here for a folder of this name",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, apart from the current one."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("lower", "set")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert paths.expand_path("~/plates") == f"{home}/plates" and paths.expand_path(Path("~")) == str(home)
    assert paths.run_folder("~/runs/one") == home / "runs/one" and paths.data_folder("~/plates") == home / "plates"
    for name in ("runs/~", "one~", "cost$usd", "5$", "$1", "/a/b c", "5%", "100% of 20%", "a%2Fb%20c"):
        assert paths.expand_path(name) == name
    for name in ("~nobody-here", "$RECYCLE.BIN"):  # folders that are there
        Path(name).mkdir()
        assert paths.expand_path(f"{name}/one") == f"{name}/one"
    assert paths.lock_run_folder("~/runs/one") == home / "runs/one"
    paths.unlock_run_folder(home / "runs/one")
    assert sorted(path.name for path in Path().iterdir()) == ["$RECYCLE.BIN", "~nobody-here"]


@pytest.mark.parametrize("name", HOMELESS)
def test_what_only_a_shell_knows_is_refused(home: Path, refused: Callable[..., str], name: str) -> None:
    with pytest.raises(InputError) as caught:
        paths.lock_run_folder(name)
    assert str(caught.value) == f"{name}: {HOMELESS[name]}"
    Path("recipe.yaml").write_text("preset: tiny\n")
    for key, line in (("run", "run: {}"), ("data", "data: {}"), ("network.pretrained", "network: {{pretrained: {}}}")):
        said = f"{key} is {name!r}: {HOMELESS[name]}"
        assert refused("run", "recipe.yaml", "-p", f"{key}='{name}'") == f"-p {key}='{name}': {said}"
        Path("bad.yaml").write_text(f"seed: 1\n{line.format(repr(name))}\n")
        assert refused("run", "bad.yaml") == f"bad.yaml:2: {said}"
    Path("good.yaml").write_text("variants: {one: {}}\n")
    Path("space.yaml").write_text(f"variants:\n  one: {{recipe: '{name}'}}\n")
    for arguments in (["check", name], ["run", "recipe.yaml", "--out", name], ["sweep", "recipe.yaml", "good.yaml", f"--out={name}"],
                      ["assign", "here", name, "--data", "plates", "--out", "out.csv"], ["kaggle", "push", "recipe.yaml", f"--build={name}"],
                      ["sweep", "recipe.yaml", "space.yaml"]):
        assert HOMELESS[name] in refused(*arguments)
    assert sorted(path.name for path in Path().iterdir()) == ["bad.yaml", "good.yaml", "recipe.yaml", "space.yaml"] and not list(home.iterdir())


def test_every_path_of_a_command_may_begin_with_a_tilde(home: Path, refused: Callable[..., str]) -> None:
    assert refused("check", "~/plates") == f"{home}/plates: no such folder; name the folder that holds the tables"
    (home / "bad.yaml").write_text("epoch: 3\n")
    assert refused("kaggle", "pull", "~/bad.yaml").startswith(f"{home}/bad.yaml:1: unknown key 'epoch'")
    (home / "recipe.yaml").write_text("data: ~/nowhere\nrun: ~/runs/one\nnetwork: {pretrained: ~/weights.safetensors}\n")
    assert refused("run", "~/recipe.yaml").startswith(f"{home}/nowhere: no such data folder")
    checked = recipe.load(home / "recipe.yaml")
    assert [checked.data, checked.run, checked.network.pretrained] == [f"{home}/nowhere", f"{home}/runs/one", f"{home}/weights.safetensors"]
    files.write_json(Path("SETTINGS.json"), {"RAW_DATA_DIR": "~/plates", "RUN_DIR": "run", "SUBMISSION_DIR": "~"})
    assert entry_points.read_settings(Path()) == {"RAW_DATA_DIR": home / "plates", "RUN_DIR": Path("run").resolve(), "SUBMISSION_DIR": home}

"""The utility dataset: what is uploaded, when, and what it waits for."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kaggle import FakeKaggle

from cellsignal.errors import StepFailed
from cellsignal.kaggle import client as kaggle
from cellsignal.kaggle import errors, utility_dataset
from cellsignal.receipts import Receipt
from cellsignal.run import environment
from cellsignal import provenance

SLUG = "alice/cellsignal-utils"
QUICK = utility_dataset.Waiting(timeout=60, interval=0.05)
Connect = Callable[..., dict[str, str]]


@pytest.fixture
def server(tmp_path: Path, clients: dict[str, Path], connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKaggle]:
    """A Kaggle, and a small package of which nobody changes a file while the test runs."""
    for room in ("cli", "run"):
        (tmp_path / "root/cellsignal" / room).mkdir(parents=True)
    for name in ("__init__.py", "cli/main.py", "run/environment.py"):
        (tmp_path / "root/cellsignal" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(environment.PACKAGE / name, tmp_path / "root/cellsignal" / name)
    shutil.copytree(environment.kernels_folder() / "0-chain", tmp_path / "root/kernels/0-chain")
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "root/cellsignal")
    monkeypatch.setattr(environment, "kernels_folder", lambda: tmp_path / "root/kernels")
    monkeypatch.setattr(provenance, "commit", lambda: "f" * 40)
    with FakeKaggle(tmp_path / "kaggle") as server:
        connect(server, clients["2.2.4"])
        yield server


def listed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_built_folder_holds_the_package_and_the_notebooks_and_nothing_python_left(tmp_path: Path) -> None:
    digest = utility_dataset.build_dataset(tmp_path / "built", "alice")
    held = listed(tmp_path / "built")
    assert {"cellsignal/__init__.py", "cellsignal/build.json", "kernels/1-eda/1-eda.ipynb", "papermill_params/tiny.yaml", "dataset-metadata.json"} <= held
    assert not [name for name in held if "__pycache__" in name or name.endswith((".pyc", ".html"))]
    built = json.loads((tmp_path / "built/cellsignal/build.json").read_text())
    assert built["code"] == provenance.code_digest() and built["commit"] == provenance.commit()
    assert utility_dataset.build_dataset(tmp_path / "other", "bob") == digest  # whose it is, is no content
    assert not list(tmp_path.glob(".partial*"))


def test_what_an_editor_left_is_not_uploaded(server: FakeKaggle, tmp_path: Path) -> None:
    """A recipe that is open in Emacs lies beside a link to nowhere, one in Vim beside its swap file."""
    digest = utility_dataset.build_dataset(tmp_path / "built", "alice")
    notebooks = environment.kernels_folder() / "0-chain"
    (notebooks / ".#0-chain.ipynb").symlink_to("alice@host.1234:5678")
    (notebooks / ".0-chain.ipynb.swp").write_bytes(b"swap")
    assert utility_dataset.build_dataset(tmp_path / "built", "alice") == digest


def test_the_uploaded_copy_runs_and_knows_its_commit(tmp_path: Path) -> None:
    utility_dataset.build_dataset(tmp_path / "built", "alice")
    program = "import cellsignal.provenance as p; from cellsignal.run import environment as paths; print(p.commit(), p.code_digest(), paths.kernels_folder())"
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "built")}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [provenance.commit(), provenance.code_digest(), str(tmp_path / "built/kernels")]


def test_publish_makes_then_keeps_then_versions(server: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server.dataset_polls = 2
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 1
    assert "waiting for version 1 (blobs_received)" in capsys.readouterr().err
    assert {"cellsignal/cli/main.py", "kernels/0-chain/0-chain.ipynb"} <= listed(server.datasets[SLUG].versions[0])
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 1
    assert not server.sent("CreateDatasetVersion")  # what is there is the same
    monkeypatch.setattr(provenance, "commit", lambda: "0" * 40)
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 2
    assert "waiting for version 2 (version 1 is there)" in capsys.readouterr().err
    [sent] = server.sent("CreateDatasetVersion")
    assert sent["body"]["versionNotes"] == "cellsignal 0.1.0 000000000000"


def test_a_version_on_its_way_is_waited_for_and_a_foreign_or_a_lost_one_replaced(tmp_path: Path) -> None:
    content = {"owner": "alice", "content": "0" * 64}
    record = tmp_path / "built.json"
    assert utility_dataset._uploaded_version(record, content, 1) == 0
    Receipt(record, content, details={"version": 2, "codes": []}).write()
    assert [utility_dataset._uploaded_version(record, content, before) for before in (0, 1, 2, 3)] == [0, 2, 2, 0]
    assert utility_dataset._uploaded_version(record, {**content, "content": "1" * 64}, 2) == 0
    os.utime(record, (0, 0))
    assert [utility_dataset._uploaded_version(record, content, before) for before in (1, 2)] == [0, 2]


def test_the_codes_that_were_uploaded_are_known_in_their_order(server: FakeKaggle, tmp_path: Path) -> None:
    def publish(text: str) -> str:
        (environment.PACKAGE / "cli/main.py").write_text(text)
        utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK)
        return provenance.code_digest(environment.PACKAGE)

    record = tmp_path / "built.json"
    one, two = publish("one = 1"), publish("two = 2")
    assert (utility_dataset.codes_after(one, record), utility_dataset.codes_after(two, record)) == ([two], [])
    assert utility_dataset.codes_after("strange", record) == []
    assert publish("one = 1") == one  # taken back
    assert (utility_dataset.codes_after(two, record), utility_dataset.codes_after(one, record)) == ([one], [])


def test_a_dataset_that_does_not_get_ready_ends_in_one_line_and_the_next_call_goes_on(server: FakeKaggle, tmp_path: Path) -> None:
    server.dataset_polls = 10**6
    with pytest.raises(StepFailed, match="version 1 is not ready after 1 s .blobs_received.; run the same command again later"):
        utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=utility_dataset.Waiting(timeout=1, interval=0.1))
    server.datasets[SLUG].polls_left = 1
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 1
    assert len(server.sent("CreateDataset")) == 1 and not server.sent("CreateDatasetVersion")


def test_an_upload_that_failed_is_no_version_to_keep(server: FakeKaggle, tmp_path: Path) -> None:
    server.answer("PUT", 400, "bad", times=1)
    with pytest.raises(errors.UploadBroken):
        utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK)
    whole = utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK)
    assert listed(server.datasets[SLUG].versions[whole - 1]) >= {"cellsignal/cli/main.py", "kernels/0-chain/0-chain.ipynb"}


def test_waiting_outlasts_faults_of_the_platform_and_says_so(server: FakeKaggle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.dataset_polls = 1
    utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK)
    server.answer("GetDatasetStatus", 500, "Internal Server Error")
    assert utility_dataset._wait(SLUG, 1, QUICK) == 1
    assert "Internal Server Error" in capsys.readouterr().err


def test_a_failed_dataset_is_told(server: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = kaggle.dataset_status
    with monkeypatch.context() as fails:
        fails.setattr(kaggle, "dataset_status", lambda slug: ("failed", 1) if slug in server.datasets else said(slug))
        with pytest.raises(StepFailed, match="Kaggle says failed; the same command uploads another version; see https"):
            utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK)


def test_a_version_that_failed_is_followed_by_another(server: FakeKaggle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to delete: kernels cannot mount a dataset that was made anew under its old slug."""
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 1
    said, left = kaggle.dataset_status, [("failed", 1)] * 3  # also while the second is unpacked
    monkeypatch.setattr(kaggle, "dataset_status", lambda slug: left.pop() if left else said(slug))
    assert utility_dataset.publish_dataset("alice", folder=tmp_path / "built", waiting=QUICK) == 2  # though it holds the same
    assert len(server.sent("CreateDatasetVersion")) == 1 and left == []
    monkeypatch.setattr(kaggle, "dataset_status", lambda slug: ("failed", 3))
    with pytest.raises(StepFailed, match="Kaggle says failed"):
        utility_dataset._wait(SLUG, 3, QUICK, failed=True)

"""One's name is in the working tree and in no commit."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cellsignal.errors import InputError
from cellsignal.kaggle import account, client
from cellsignal.kaggle.client import FIRST_RUN, PLACEHOLDER
from cellsignal.run import environment


def git(*arguments: str, at: Path = Path()) -> str:
    return subprocess.run(["git", *arguments], cwd=at, capture_output=True, text=True, check=True).stdout


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in account.tracked_metadata(root)}


def test_init_fills_every_file_and_git_sees_no_change(checkout: Path) -> None:
    owner, written = account.init("alice")
    assert owner == "alice" and len(written) == 2 + len(list((checkout / "kernels").glob("*/")))
    for path in written:
        described = json.loads(path.read_text())
        assert described["id"].startswith("alice/cellsignal")
        assert PLACEHOLDER not in path.read_text() and FIRST_RUN not in path.read_text()
        if path.name == "kernel-metadata.json":
            assert (path.parent / described["code_file"]).is_file()
    assert json.loads((checkout / "kernels/3-train-cell-type/kernel-metadata.json").read_text())["kernel_sources"] == ["alice/cellsignal-2-pretrain-controls"]
    assert git("status", "--porcelain") == "" and git("diff") == ""


def test_edits_are_committed_without_the_name(checkout: Path) -> None:
    account.init("alice")
    path = checkout / "kernels/1-eda/kernel-metadata.json"
    text = path.read_text().replace('"enable_internet": false', '"enable_internet": true')
    path.write_text(text.replace('"alice/cellsignal-utils"\n', '"alice/cellsignal-utils", "alice/my-plates", "carol/cellsignal-x"\n'))
    assert "alice" not in git("diff")
    git("commit", "-aqm", "internet")
    committed = git("show", "HEAD:kernels/1-eda/kernel-metadata.json")
    assert '"enable_internet": true' in committed and f'"{PLACEHOLDER}/my-plates"' in committed and FIRST_RUN in committed
    commits = git("rev-list", "--all").split()
    assert subprocess.run(["git", "grep", "-c", "-e", "alice/", "-e", "carol/", *commits], capture_output=True, text=True).stdout == ""
    assert path.read_text().count("alice/") == 3


def test_what_git_writes_carries_the_name(checkout: Path, tmp_path: Path) -> None:
    account.init("alice")
    before = contents(checkout)
    other = tmp_path / "other"
    git("clone", "-q", str(checkout), str(other))
    changed = other / "utils_dataset/dataset-metadata.json"
    assert PLACEHOLDER in changed.read_text()
    changed.write_text(changed.read_text().replace('"title": "CellSignal utils"', '"title": "CellSignal tools"'))
    git("commit", "-aqm", "title", at=other)
    git("pull", "-q", "--ff-only", str(other), "main")
    assert (checkout / changed.relative_to(other)).read_bytes() == before[checkout / changed.relative_to(other)].replace(b"utils\",\n  \"sub", b"tools\",\n  \"sub")
    for path in before:
        path.unlink()
    git("checkout", "--", ".")
    assert {path: text for path, text in contents(checkout).items() if path.name == "kernel-metadata.json"} == {
        path: text for path, text in before.items() if path.name == "kernel-metadata.json"
    }


@pytest.mark.parametrize("name", ["bob", "Bob-2", "b_o_b", "3bob"])
def test_another_name_takes_the_place_of_the_first(checkout: Path, name: str) -> None:
    account.init("alice")
    account.init(name)
    assert not [path for path, text in contents(checkout).items() if b"alice" in text]
    assert json.loads((checkout / "kernel-metadata.json").read_text())["id"] == f"{name}/cellsignal"
    assert git("status", "--porcelain") == ""


def test_init_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(checkout / ".git")
    account.init("alice")
    monkeypatch.setenv("PATH", "")
    account.init("bob")
    assert json.loads((checkout / "kernel-metadata.json").read_text())["id"] == "bob/cellsignal"


@pytest.mark.parametrize("name", ["", " ", "a b", "alice@example.org", "https://www.kaggle.com/alice", "alice/", "a|e reboot", "-x", "YOUR_NAME", PLACEHOLDER])
def test_what_is_no_name_changes_nothing(checkout: Path, name: str) -> None:
    before = contents(checkout)
    with pytest.raises(InputError, match="no Kaggle user name; give the name in the address of your profile"):
        account.init(name)
    assert contents(checkout) == before
    assert "filter" not in git("config", "--local", "--list")


@pytest.mark.parametrize("damage", ['{"id": ', "{}", '{"id": "x/y", "code_file": "none.ipynb"}'])
def test_a_damaged_file_is_named_and_no_other_is_written(checkout: Path, damage: str) -> None:
    (checkout / "kernels/4-predict-assign/kernel-metadata.json").write_text(damage)
    before = contents(checkout)
    with pytest.raises(InputError, match="4-predict-assign/kernel-metadata.json: .*git checkout"):
        account.init("alice")
    assert contents(checkout) == before


def test_no_name_is_written_where_git_would_see_it(checkout: Path) -> None:
    before = contents(checkout)
    (checkout / ".git/config.lock").touch()
    with pytest.raises(InputError, match="Git does not take a setting"):
        account.init("alice")
    assert contents(checkout) == before


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "repository", lambda: None)
    with pytest.raises(InputError, match="no checkout of the bundle here or above; run this inside one"):
        account.init("alice")


def test_the_client_knows_the_name(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "username", lambda: "dora")
    assert account.init()[0] == "dora"


def test_without_a_client_the_name_must_be_given(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "find_spec", lambda name: None)
    monkeypatch.setattr(client.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="^the Kaggle client is not installed; add --user NAME$"):
        account.init()


def test_metadata_in_one_line_is_filled_too(checkout: Path) -> None:
    path = checkout / "utils_dataset/dataset-metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")))
    account.init("alice")
    described = json.loads(path.read_text())
    assert described["id"] == "alice/cellsignal-utils" and described["resources"] == []
    git("add", ".")
    staged = json.loads(git("show", ":utils_dataset/dataset-metadata.json"))
    assert staged["id"] == f"{PLACEHOLDER}/cellsignal-utils" and staged["resources"] == [{"path": FIRST_RUN}]

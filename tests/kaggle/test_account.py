"""One's name in the metadata files."""

import json
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


def test_init_fills_every_file_and_no_other(checkout: Path) -> None:
    owner, written = account.init("alice")
    assert owner == "alice" and len(written) == 2 + len(list((checkout / "kernels").glob("*/")))
    for path in written:
        described = json.loads(path.read_text())
        assert described["id"].startswith("alice/cellsignal")
        assert PLACEHOLDER not in path.read_text() and FIRST_RUN not in path.read_text()
        if path.name == "kernel-metadata.json":
            assert (path.parent / described["code_file"]).is_file()
    assert json.loads((checkout / "kernels/3-train-cell-type/kernel-metadata.json").read_text())["kernel_sources"] == ["alice/cellsignal-2-pretrain-controls"]
    assert {checkout / line[3:] for line in git("status", "--porcelain").splitlines()} == set(written)


@pytest.mark.parametrize("name", ["bob", "Bob-2", "b_o_b", "3bob"])
def test_another_name_takes_the_place_of_the_first(checkout: Path, name: str) -> None:
    account.init("alice")
    account.init(name)
    assert not [path for path, text in contents(checkout).items() if b"alice" in text]
    assert json.loads((checkout / "kernel-metadata.json").read_text())["id"] == f"{name}/cellsignal"


@pytest.mark.parametrize("name", ["", " ", "a b", "alice@example.org", "https://www.kaggle.com/alice", "alice/", "a|e reboot", "-x", "YOUR_NAME", PLACEHOLDER])
def test_what_is_no_name_changes_nothing(checkout: Path, name: str) -> None:
    before = contents(checkout)
    with pytest.raises(InputError, match="no Kaggle user name; give the name in the address of your profile"):
        account.init(name)
    assert contents(checkout) == before


@pytest.mark.parametrize("damage", ['{"id": ', "{}", '{"id": "x/y", "code_file": "none.ipynb"}'])
def test_a_damaged_file_is_named_and_no_other_is_written(checkout: Path, damage: str) -> None:
    (checkout / "kernels/4-predict-assign/kernel-metadata.json").write_text(damage)
    before = contents(checkout)
    with pytest.raises(InputError, match="4-predict-assign/kernel-metadata.json: .*git checkout .*/kernels/4-predict-assign/kernel-metadata.json"):
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

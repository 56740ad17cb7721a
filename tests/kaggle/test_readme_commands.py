"""README's commands with the plain client, one after the other, and what the kernels then do: no command of ours but `init`."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import session_machine
import pytest
from fake_kaggle import FakeKaggle, Pushed

ROOT = Path(__file__).resolve().parents[2]
TINY = {  # parameters as somebody in a hurry edits them in the notebooks
    'preset: str = "demo"': 'preset: str = "tiny"', 'cell_type: str = "U2OS"': 'cell_type: str = "RPE"', "epochs: int = 22 ": "epochs: int = 2 ",
    "pretrain_epochs: int = 12": "pretrain_epochs: int = 1",
}  # fmt: skip
UNLIMITED, BRIEF = "time_budget_minutes: float = 0.0 ", "time_budget_minutes: float = 0.001 "
TWO, THREE, FOUR = (f"alice/cellsignal-{name}" for name in ("2-pretrain-controls", "3-train-cell-type", "4-predict-assign"))


def in_readme() -> list[list[str]]:
    """The block of commands for the plain client."""
    text = (ROOT / "kernels/README.md").read_text()
    [block] = [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "cellsignal kaggle init" in block]
    return [shlex.split(line.replace("NAME", "alice"), comments=True) for line in block.splitlines()]


def edit(path: Path, changes: dict[str, str]) -> None:
    text = path.read_text()
    for old, new in changes.items():
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    path.write_text(text)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[FakeKaggle]:
    if not session_machine.can_run():
        pytest.skip("no namespaces for tests here")
    python = session_machine.bare_python(tmp_path / "bare")
    with FakeKaggle(tmp_path / "kaggle", runner=session_machine.Machine(python, tmp_path / "sessions", "new")) as kaggle:
        yield kaggle


@pytest.fixture
def call(
    there: FakeKaggle, checkout: Path, clients: dict[str, Path], connect: Callable[..., dict[str, str]]
) -> Callable[[list[str]], str]:
    """call(command) runs a command as README has it, lets its session end, and gives what it printed."""
    for path in checkout.glob("kernels/*/*.ipynb"):
        edit(path, TINY)
    client = clients[max(clients)]
    environment = connect(there, client)
    modules = {"kaggle": "kaggle", "cellsignal": "cellsignal.cli.main"}

    def called(command: list[str]) -> str:
        ours = {**environment, "PYTHONPATH": f"{client}:{ROOT / 'utils_dataset'}"} if command[0] == "cellsignal" else environment
        program = [sys.executable, "-m", modules[command[0]], *command[1:]]
        done = subprocess.run(program, env=ours, capture_output=True, text=True)
        there.wait(300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return called


def log(pushed: Pushed) -> str:
    return "".join(line["data"] for line in json.loads(pushed.outcome.log))


@pytest.mark.slow
def test_readme_s_commands_lead_from_nothing_to_the_ladder_of_one_cell_type(
    there: FakeKaggle, call: Callable[[list[str]], str], checkout: Path
) -> None:
    """Kernel 3 does not end in its first session, and goes on as its log says."""
    for name in ("cellsignal.egg-info/PKG-INFO", "cellsignal/data/__pycache__/wells.pyc"):
        (checkout / "utils_dataset" / name).parent.mkdir()
        (checkout / "utils_dataset" / name).touch()
    edit(checkout / "kernels/3-train-cell-type/3-train-cell-type.ipynb", {UNLIMITED: BRIEF})
    *commands, last = in_readme()
    for command in commands:
        said = call(command)
        assert "status" not in command or "ready" in said or "COMPLETE" in said, said
        assert "not valid" not in said
    [uploaded] = there.datasets["alice/cellsignal-utils"].versions
    assert not [path for path in uploaded.rglob("*") if "__pycache__" in path.parts or "egg-info" in path.name]
    [three] = there.kernels[THREE]
    assert "add this kernel's own OWNER/SLUG to kernel_sources" in log(three)
    go_on(checkout / "kernels/3-train-cell-type")
    call(["kaggle", "kernels", "push", "-p", "kernels/3-train-cell-type"])
    assert there.kernels[THREE][1].mounts["notebooks"] == {TWO: there.kernels[TWO][0].outcome.folder, THREE: three.outcome.folder}
    call(last)
    predicted_one_cell_type(there.kernels[FOUR][0])


def go_on(folder: Path) -> None:
    """What the log of an unfinished kernel tells to do, and time enough."""
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    metadata["kernel_sources"].append(THREE)
    (folder / "kernel-metadata.json").write_text(json.dumps(metadata))
    edit(folder / f"{folder.name}.ipynb", {BRIEF: UNLIMITED})


def predicted_one_cell_type(four: Pushed) -> None:
    assert four.status == "COMPLETE", log(four)[-2000:]
    assert "left out without weights: HUVEC lacks model.safetensors" in log(four)
    assert "no submission, because" in log(four)
    left = four.outcome.folder / "runs/demo"
    ladder = json.loads((left / "metrics.json").read_text())["ladder"]
    assert {name for row in ladder for name in row["by_cell_type"]} == {"RPE"}
    assert not list(left.glob("submission*"))

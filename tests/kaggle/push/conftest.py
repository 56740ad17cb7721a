"""One call of push for the tiny recipe with one cell type, at a Kaggle whose sessions end well."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fake_account import Dataset
from fake_kaggle import FakeKaggle

from cellsignal import code_identity
from cellsignal.kaggle import kernel_folders, push, push_state
from cellsignal.run import environment, recipe
from cellsignal import provenance

ROOT = Path(__file__).resolve().parents[3]
Connect = Callable[..., dict[str, str]]
Call = Callable[..., dict[str, str]]


@pytest.fixture(autouse=True)
def same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package's files hold is no matter here."""
    monkeypatch.setattr(provenance, "code_digest", lambda *package: "code")
    monkeypatch.setattr(code_identity, "package_code", lambda *rooms: {})


@pytest.fixture
def call(server: FakeKaggle, tmp_path: Path) -> Call:
    """call("-p", …, only=…, cell_type=…, until_done=…): one call of push for the tiny recipe with one cell type."""

    def upload() -> None:
        server.datasets.setdefault("alice/cellsignal-utils", Dataset("CellSignal utils", [tmp_path]))

    def called(*overrides: str, only: str = "", cell_type: str = "", types: str = "[RPE]", upload: Callable[[], None] = upload,
               datasets: Sequence[str] = (), **waiting: object) -> dict[str, str]:
        checked = recipe.load(ROOT / "papermill_params/tiny.yaml", [f"wells.cell_types={types}", *overrides])
        plan = kernel_folders.plan_kernels(checked, name="tiny", owner="alice", kernels=environment.kernels_folder(), datasets=datasets, as_one_kernel=only == "0-chain")
        with push_state.open_state(tmp_path / "build") as pushed:
            options = push.Waiting(**{"interval": 0.05, "session_timeout": 60.0, **waiting})
            return push.PushRunner(plan, pushed, upload, options).drive(kernel_folders.choose_kernels(plan, only=only, cell_type=cell_type))

    return called

"""The recipes for Kaggle's quota, rehearsed on small plates session by session: packed without a GPU, trained on what was packed, answered."""

import shutil
from collections.abc import Callable
from pathlib import Path

import session_machine
import pytest
from fake_kaggle import COMPETITION, Pushed
from test_pushed import QUICK, ROOT, Account, open_account, python  # noqa: F401, fixtures

from cellsignal import files
from cellsignal.data.microscope.simulate import simulate
from cellsignal.decide.submission import check_submission

SMALL = {  # the recipes as they are, but for their size
    "wells.packed_size": 48, "network.backbone": "plain-cnn", "augmentation.progressive_sizes": "[32, 40, 48]", "training.epochs": 6,
    "training.batch_size": 16, "training.pseudo_label_epochs": 2, "prediction.tta_views": 2,
}  # fmt: skip
WEEK = {"network.ensemble": "[plain-cnn]", "training.final_epochs": 2, "wells.cell_types": "[HUVEC, RPE]"}
TRAININGS = {
    "kaggle-week": [f"3-train-cell-type-{name}" for name in ("huvec", "huvec-model-2", "rpe", "rpe-model-2")],
    "kaggle-evening": ["3-train-cell-type-all"],
}
STEPS = ["pack", "1-eda", "4-predict-assign", *sum(TRAININGS.values(), [])]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not session_machine.can_run(), reason="no namespaces for tests here")]


@pytest.fixture(scope="session")
def plates(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Plates of 64 px in the competition's format, whose siRNAs nobody is told."""

    def draw(folder: Path) -> None:
        simulate(folder / "drawn", preset="tiny", seed=0, image_size=64)
        shutil.copytree(folder / "drawn", folder / "plates", ignore=shutil.ignore_patterns("solution.csv", ".*"))

    return once("plates-64", draw) / "plates"


@pytest.fixture
def account(open_account: Callable[..., Account], plates: Path) -> Account:  # noqa: F811
    opened = open_account("new")
    opened.kaggle.competitions[COMPETITION] = plates
    return opened


def options(recipe: str, **more: object) -> list[str]:
    chosen = SMALL | (WEEK if recipe == "kaggle-week" else {}) | more
    return [part for key, value in chosen.items() for part in ("-p", f"{key}={value}")]


def pushed(account: Account) -> dict[str, list[Pushed]]:
    """The sessions of each step; a slug ends with its step, and its beginning may be cut."""
    return {next(step for step in STEPS if slug.endswith(step)): versions for slug, versions in account.kaggle.kernels.items()}


def check_answers(account: Account, recipe: str, plates: Path) -> Path:
    """A submission with every test well, made on images of 48 px, without the images themselves."""
    fetched = account.folder / "runs" / recipe
    assert check_submission(fetched / "submission.csv", sample=plates / "sample_submission.csv") > 0
    assert files.read_json(fetched / "metrics.json")["ladder"]
    assert not (fetched / "packed").exists() and (fetched / "packed.json").is_file()
    return fetched


@pytest.mark.parametrize("recipe", ["kaggle-week", "kaggle-evening"])
def test_a_recipe_goes_from_plates_to_a_submission_session_by_session(recipe: str, account: Account, plates: Path) -> None:
    path = ROOT / f"papermill_params/{recipe}.yaml"
    with account.kaggle:
        account.cellsignal("kaggle", "push", path, *options(recipe), *QUICK)
        account.cellsignal("kaggle", "pull", path)
    sessions = pushed(account)
    assert sorted(sessions) == sorted([*STEPS[:3], *TRAININGS[recipe]])
    for step, [session] in sessions.items():
        run = session.outcome.folder / "runs" / recipe
        assert session.body["enableGpu"] == (step not in ("pack", "1-eda")), "packing costs nothing of the quota"
        assert (run / "packed/store.json").is_file() == (step == "pack"), "the store is read where it is mounted"
        assert (f"alice/cellsignal-{recipe}-pack" in session.body.get("kernelDataSources", [])) == (step not in ("pack", "1-eda"))
    check_answers(account, recipe, plates)


def test_sessions_cut_short_go_on_to_a_submission(account: Account, plates: Path) -> None:
    path, budget = ROOT / "papermill_params/kaggle-week.yaml", {"machine.time_budget_minutes": 1, "training.epochs": 200, "network.ensemble": "[]", "wells.cell_types": "[HUVEC, RPE]"}
    with account.kaggle:
        account.cellsignal("kaggle", "push", path, *options("kaggle-week", **budget), "--until-done", *QUICK)
        account.cellsignal("kaggle", "pull", path)
    assert max(map(len, account.kaggle.kernels.values())) > 1, "at least one training needed a second session"
    assert len(pushed(account)["pack"]) == 1
    check_answers(account, "kaggle-week", plates)


def test_the_whole_chain_as_one_kernel_packs_once_and_a_later_session_takes_its_store_along(account: Account, plates: Path) -> None:
    path = ROOT / "papermill_params/kaggle-evening.yaml"
    with account.kaggle:
        account.cellsignal("kaggle", "push", path, "--only", "0-chain", *options("kaggle-evening"), *QUICK)
        account.cellsignal("kaggle", "pull", path)
    check_answers(account, "kaggle-evening", plates)
    [[session]] = account.kaggle.kernels.values()
    session.mounts["notebooks"][session.slug] = session.outcome.folder  # as of a session that goes on
    first, later = (outcome.folder / "runs/kaggle-evening" for outcome in (session.outcome, account.kaggle.runner(session)))
    assert (later / "submission.csv").read_bytes() == (first / "submission.csv").read_bytes()
    assert (later / "packed/store.json").read_bytes() == (first / "packed/store.json").read_bytes()
    said = (later / "notebooks/pack.ipynb").read_text()
    assert "reused the packed images of /kaggle/input/notebooks/" in said and " 0 of them packed now" in said
    trained = [(run / "weights/all/model.safetensors").read_bytes() for run in (first, later)]
    assert trained[0] == trained[1]

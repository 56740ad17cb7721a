"""Interrupted as often as you like, a prediction ends with the very scores of one that was not; others are never mixed in."""

import pkgutil
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from building import make_network
from cellsignal.decide.settings import PredictionSettings
from cellsignal.learn.settings import MachineSettings
from cellsignal.budget import Budget, TimeSpent
from cellsignal.data.images.reader import whole_sites
from cellsignal.data.tables.wells import read_tables
from cellsignal.decide.commands import assign_files
from cellsignal.decide.predict import inference, predict
from cellsignal.decide.predict.predict import ScoringOptions, score_experiments
from cellsignal.decide.scores import cache
from cellsignal.files import read_json, sha256
from cellsignal.learn.networks.classifier import ModelConfig, save_weights
from cellsignal.receipts import Receipt

TESTS, STATISTICS = ["HUVEC-03", "RPE-03"], ("running", "batch", "adapted")
Scores = dict[str, pd.DataFrame]


class Parts(Budget):
    """Time for so many experiments."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def fits_part(self, units: float) -> bool:
        self.count -= 1
        return self.count >= 0


class Power(RuntimeError):
    """What goes off in the middle of things."""


def networks(folder: Path, *, seed: int, scope: str = "plate") -> Path:
    for cell_type in ("HUVEC", "RPE"):
        card = ModelConfig("densenet-small", 6, list(range(8)), ["treatment"], scope=scope)
        save_weights(folder / cell_type / "model.safetensors", make_network("densenet-small", channels=6, classes=8, seed=seed).state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def plates(tiny_plates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny plates, and weights of an untrained network beside them."""
    root = tmp_path_factory.mktemp("plates")
    shutil.copytree(tiny_plates, root, dirs_exist_ok=True)
    networks(root / "weights", seed=1)
    return root


@pytest.fixture
def scored(plates: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """scored(out, key=value) predicts all experiments and tells which of them were sent through the network."""
    sent: list[str] = []
    really = predict.predict_experiment

    def told(*arguments: Any, **options: Any) -> dict:
        sent.append(arguments[3]["experiment"].iloc[0])
        return really(*arguments, **options)

    monkeypatch.setattr(predict, "predict_experiment", told)

    def go(out: Path, **knobs: Any) -> list[str]:
        sent.clear()
        with suppress(TimeSpent):
            prediction(plates, out, **knobs)
        return list(sent)

    return go


def prediction(plates: Path, out: Path, *, root: Path | None = None, sites: Callable = lambda sites: sites, **knobs: Any) -> Scores:
    """Scores of all six experiments, of `sites` of them."""
    asked, _ = whole_sites(plates, read_tables(plates).sites)
    options = {"weights": plates / "weights", "out": out, **knobs}
    given = {"min_batch_size": 5, "max_batch_size": 9, "num_batch_sizes": 2, **options}
    options = {key: value for key, value in options.items() if key not in PredictionSettings.model_fields}
    options["settings"] = PredictionSettings(**{key: value for key, value in given.items() if key in PredictionSettings.model_fields})
    scoring = ScoringOptions(**{key: options.pop(key) for key in list(options) if key in ScoringOptions.__dataclass_fields__})
    return score_experiments(root or plates, sites(asked), scoring, **options)


@pytest.fixture(scope="module")
def undisturbed(plates: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    out = tmp_path_factory.mktemp("undisturbed")
    return out, prediction(plates, out)


def parquets(out: Path) -> dict[str, str]:
    """SHA-256 of every file of scores."""
    return {path.relative_to(out).as_posix(): sha256(path) for path in sorted(out.glob("*/*.parquet"))}


def facts(out: Path) -> dict[str, Any]:
    """The metadata, but for times."""
    found = {kind: Receipt.read(out / kind / "metadata.json").fields for kind in STATISTICS}
    for each in found.values():
        for table in (each["details"], *each["details"]["experiments"].values()):
            del table["seconds"]
    return found


def submission(plates: Path, out: Path) -> bytes:
    tests = [out / "adapted" / f"{name}.parquet" for name in TESTS]
    assign_files(tests, data=plates, out=out / "submission.csv")
    return (out / "submission.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.ci
def test_sessions_of_one_experiment_end_with_the_same_submission(plates: Path, undisturbed: tuple[Path, Scores], tmp_path: Path) -> None:
    before, expected = undisturbed
    experiments = sorted(expected["adapted"].index.str.split("_").str[0].unique())
    assert len(experiments) == 6
    for session in range(7):
        out, budget = tmp_path / str(session), Parts(1)
        if session:  # the output of the session before, mounted, and its files taken up
            shutil.copytree(tmp_path / str(session - 1), out)
        done = min(session + 1, 6)
        with nullcontext() if done == 6 else pytest.raises(TimeSpent, match=f"^scored {done} of 6 experiments with model$"):
            scores = prediction(plates, out, budget=budget)
        assert [path.stem for path in sorted(out.glob("batch/*.parquet"))] == experiments[:done]
        assert list(facts(out)["adapted"]["details"]["experiments"]) == experiments[:done]
    for kind in STATISTICS:
        pd.testing.assert_frame_equal(scores[kind], expected[kind], check_exact=True)
    assert parquets(out) == parquets(before) and facts(out) == facts(before)
    assert submission(plates, out) == submission(plates, before)


@pytest.mark.parametrize("stage", ["cellsignal.decide.scores.cache.write_scores", "cellsignal.receipts.Receipt.write"])
def test_killed_between_two_files_it_goes_on(
    scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """The power goes off before the third, then the fifth and the last of these files, and each session goes on."""
    really = pkgutil.resolve_name(stage)
    for after in (2, 5, 4):
        left = [after]

        def off(*arguments: Any, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Power
            return really(*arguments, **options)

        monkeypatch.setattr(stage, off)
        with pytest.raises(Power):
            scored(tmp_path)
    monkeypatch.setattr(stage, really)
    assert 0 < len(scored(tmp_path)) < 6
    assert parquets(tmp_path) == parquets(undisturbed[0]) and facts(tmp_path) == facts(undisturbed[0])


def test_a_spent_budget_scores_nothing(plates: Path, tmp_path: Path) -> None:
    with pytest.raises(TimeSpent, match="^scored 0 of 6 experiments with model$"):
        prediction(plates, tmp_path, budget=Parts(0))
    assert not list(tmp_path.rglob("*.parquet"))


def test_an_experiment_that_would_be_late_is_not_begun(
    scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("cellsignal.budget.time.time", lambda: now[0])
    monkeypatch.setattr("cellsignal.decide.predict.predict.time.monotonic", lambda: now[0])
    really = inference.log_probabilities

    def slow(*arguments: Any, **options: Any) -> Any:
        now[0] += 1  # a plate: 4 seconds an experiment and kind
        return really(*arguments, **options)

    monkeypatch.setattr(inference, "log_probabilities", slow)
    assert scored(tmp_path, statistics="running", all_statistics=False, budget=Budget(1000 + 10)) == ["HUVEC-01", "HUVEC-02"]
    now[0] = 1000.0
    assert scored(tmp_path, statistics="running", all_statistics=False, budget=Budget(1000 + 4.5)) == ["HUVEC-03"], "of a first one nothing is known"
    now[0] = 1000.0
    budget = Budget(1000 + 10)
    budget.record_part(len(undisturbed[1]["running"]), 1e6)  # with the network before
    assert scored(tmp_path, statistics="running", all_statistics=False, budget=budget) == []


OTHERS = {
    "scope": {"statistics_scope": "experiment"},
    "precision": {"machine": MachineSettings(device="cpu", precision="bf16")},
    "a site less": {"sites": lambda sites: sites[sites.duplicated(["experiment", "well_type"])]},
    "sites in another order": {"sites": lambda sites: sites[::-1]},
}


@pytest.mark.filterwarnings("ignore:statistics are gathered")
@pytest.mark.parametrize("other", OTHERS)
def test_scores_made_otherwise_are_not_mixed_in(
    scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path, other: str
) -> None:
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    knobs = {"all_statistics": False, **OTHERS[other]}
    assert scored(out, **knobs, budget=Parts(2)) == ["HUVEC-01", "HUVEC-02"]
    assert set(parquets(out)) == {"adapted/HUVEC-01.parquet", "adapted/HUVEC-02.parquet"}
    scored(tmp_path / "fresh", **knobs, budget=Parts(2))
    assert parquets(out) == parquets(tmp_path / "fresh")
    assert not list(out.glob("running/*")) and not list(out.glob("batch/*"))


@pytest.mark.slow
@pytest.mark.ci
def test_other_weights_images_or_code_make_other_scores(
    plates: Path, scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    again = tmp_path / "out"
    for weights, how_many in ((networks(tmp_path / "same", seed=1), 0), (networks(tmp_path / "other", seed=2), 6),
                              (networks(tmp_path / "mixed", seed=1, scope="mixed"), 6)):
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(undisturbed[0], again)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert len(scored(again, weights=weights, statistics="running", all_statistics=False)) == how_many
    shutil.copytree(plates, tmp_path / "plates")
    sites = read_tables(plates).sites
    first = sites.loc[(sites["experiment"] == "RPE-02") & (sites["plate"] == 3) & (sites["well_type"] == "treatment"), "stem"].min()
    shutil.copyfile(plates / f"{first}_w2.png", tmp_path / f"plates/{first}_w1.png")
    shutil.copytree(undisturbed[0], tmp_path / "drawn again")
    assert scored(tmp_path / "drawn again", root=tmp_path / "plates", statistics="running", all_statistics=False) == ["RPE-02"]
    capsys.readouterr()
    monkeypatch.setattr(cache, "scoring_code", lambda: "of tomorrow")
    assert len(scored(shutil.copytree(undisturbed[0], tmp_path / "mended"), statistics="running", all_statistics=False)) == 6
    assert "running: other code made the scores of " in capsys.readouterr().out


def test_batch_sizes_concern_batch_scores_alone(scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path) -> None:
    out, before = shutil.copytree(undisturbed[0], tmp_path / "out"), parquets(undisturbed[0])
    assert len(scored(out, min_batch_size=3)) == 6
    changed = {name for name, digest in parquets(out).items() if before[name] != digest}
    assert len(changed) == 6 and all(name.startswith("batch/") for name in changed)
    assert read_json(out / "adapted/metadata.json") == read_json(undisturbed[0] / "adapted/metadata.json")


def damaged(text: Any) -> Callable[[Path], None]:
    return lambda out: (out / "adapted/metadata.json").write_text(text)


def noted(**changes: Any) -> Callable[[Path], None]:
    """The note of RPE-02, changed."""

    def damage(out: Path) -> None:
        written = Receipt.read(out / "adapted/metadata.json")
        written.details["experiments"]["RPE-02"] |= changes
        written.write()

    return damage


def vouched(**changes: Any) -> Callable[[Path], None]:
    """What the receipt says of RPE-02, changed."""

    def damage(out: Path) -> None:
        written = Receipt.read(out / "adapted/metadata.json")
        for kind, (name, value) in changes.items():
            getattr(written, kind)[name] = value
        written.write()

    return damage


def flip(out: Path) -> None:
    content = bytearray((out / "adapted/RPE-02.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "adapted/RPE-02.parquet").write_bytes(content)


def swap(out: Path) -> None:
    shutil.copyfile(out / "adapted/RPE-01.parquet", out / "adapted/RPE-02.parquet")


DAMAGES = {
    "a bit": (flip, 1), "another's": (swap, 1), "gone": (lambda out: (out / "adapted/RPE-02.parquet").unlink(), 1),
    "identity": (vouched(identity=("RPE-02", "0" * 64)), 1), "no identity": (vouched(identity=("RPE-02", None)), 1), "seconds": (noted(seconds="long"), 1), "images": (noted(images=None), 1),
    "digest": (vouched(outputs=("RPE-02.parquet", "0" * 64)), 1), "no digest": (vouched(outputs=("RPE-02.parquet", ["x"])), 6), "no note": (noted(gathered=[]), 1),
    "no metadata": (lambda out: (out / "adapted/metadata.json").unlink(), 6), "half": (damaged('{"experiments": {'), 6),
    "a list": (damaged("[]"), 6), "notes in a list": (damaged('{"experiments": ["RPE-02"]}'), 6), "deep": (damaged("[" * 100_000), 6),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_scores_are_made_again(
    scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path, damage: str
) -> None:
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    harm, count = DAMAGES[damage]
    harm(out)
    assert len(scored(out)) == count
    assert parquets(out) == parquets(undisturbed[0]) and facts(out) == facts(undisturbed[0])


def test_batch_scores_are_made_where_they_count(
    plates: Path, scored: Callable[..., list[str]], undisturbed: tuple[Path, Scores], tmp_path: Path
) -> None:
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    assert scored(out, batch_experiments=["HUVEC-02", "RPE-02"]) == [] and parquets(out).keys() == {
        name for name in parquets(undisturbed[0]) if not name.startswith("batch/") or "-02" in name}
    scores = prediction(plates, out, batch_experiments=["HUVEC-02", "RPE-02"])
    expected = undisturbed[1]["batch"]
    pd.testing.assert_frame_equal(scores["batch"], expected[expected.index.str.contains("-02_")], check_exact=True)
    pd.testing.assert_frame_equal(scores["adapted"], undisturbed[1]["adapted"], check_exact=True)
    assert prediction(plates, out, batch_experiments=[])["batch"].empty and not list((out / "batch").iterdir())

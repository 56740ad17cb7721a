"""Prototypes, blends and ensembles: figures that can be worked out by hand, and wells that a batch effect hides."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from cellsignal.decide.refine import DEFAULT_SCALE, blend_scores, plate_centred, prototype_cosines, fit_scale
from cellsignal.decide.settings import PredictionSettings
from cellsignal.decide.refine import average_scores, refine_scores
from cellsignal.errors import InputError


def screen(*, seed: int = 0, classes: int = 12, shift: float = 20.0, noise: float = 0.3, cell_types: tuple[str, ...] = ("HUVEC", "RPE")):
    """Embeddings of 3 experiments a cell type, 4 plates with a batch effect each, and their wells: train, held out, test."""
    rng = np.random.default_rng(seed)
    rows, vectors = [], []
    for cell_type in cell_types:
        looks = rng.normal(size=(classes, 16))
        for number, split in enumerate(("train", "held_out", "test"), 1):
            effects = shift * rng.normal(size=(4, 16))
            for sirna in range(classes):
                plate = (sirna + number) % 4
                rows.append((f"{cell_type}-0{number}", cell_type, plate + 1, f"B{sirna:02d}", sirna, split))
                vectors.append(looks[sirna] + effects[plate] + noise * rng.normal(size=16))
    wells = pd.DataFrame(rows, columns=["experiment", "cell_type", "plate", "well", "sirna", "split"])
    wells["id_code"] = wells["experiment"] + "_" + wells["plate"].astype(str) + "_" + wells["well"]
    wells = wells.assign(well_type="treatment", sirna=wells["sirna"].astype("Int64"))
    return pd.DataFrame(np.array(vectors, np.float32), index=pd.Index(wells["id_code"], name="id_code")), wells


def truth_of(wells: pd.DataFrame, *splits: str) -> pd.Series:
    return wells[wells["split"].isin(splits)].set_index("id_code")["sirna"].astype(int)


def even(wells: pd.DataFrame, *splits: str, classes: int = 12) -> pd.DataFrame:
    """Scores of a network that knows nothing."""
    index = truth_of(wells, *splits).index
    return pd.DataFrame(np.full((len(index), classes), -np.log(classes), np.float32), index=index, columns=range(classes))


def test_centring_takes_what_a_plate_has_in_common() -> None:
    embeddings, wells = screen()
    far = embeddings + np.repeat(np.arange(6), 12)[:, None]  # whole experiments, and so their plates, moved
    np.testing.assert_allclose(plate_centred(far, wells), plate_centred(embeddings, wells), atol=1e-4)
    assert np.abs(plate_centred(embeddings, wells).groupby(embeddings.index.str[:10]).mean()).to_numpy().max() < 1e-4


def test_prototypes_name_wells_that_their_plates_batch_effects_hide() -> None:
    embeddings, wells = screen()
    known, test = truth_of(wells, "train"), truth_of(wells, "test")
    table = prototype_cosines(embeddings, wells, known)
    assert set(table.index) == set(wells["id_code"]) - set(known.index) and table.to_numpy().max() <= 1.001
    assert table.loc[test.index].idxmax(axis=1).eq(test).mean() > 0.9
    raw = embeddings.loc[test.index].to_numpy() @ embeddings.loc[known.index].to_numpy().T
    assert (known.to_numpy()[raw.argmax(1)] == test).mean() < 0.5, "without centring the plates decide"


def test_a_class_that_a_cell_type_lacks_has_the_prototype_of_all_only_where_one_network_made_them() -> None:
    embeddings, wells = screen()
    known = truth_of(wells, "train")
    known = known.drop(known.index[known.index.str.startswith("RPE") & (known == 5)])
    mine = embeddings.index[embeddings.index.str.startswith("RPE-03")]
    assert (prototype_cosines(embeddings, wells, known).loc[mine, 5] == 0).all()
    joint = prototype_cosines(embeddings, wells, known, joint=True)
    features = plate_centred(embeddings, wells)
    theirs = features.loc[known.index[known == 5]].mean()
    mine_5 = features.loc[mine] @ theirs / np.linalg.norm(features.loc[mine], axis=1) / np.linalg.norm(theirs)
    np.testing.assert_allclose(joint.loc[mine, 5], mine_5, atol=1e-5)
    np.testing.assert_allclose(joint.loc[mine, 4], prototype_cosines(embeddings, wells, known).loc[mine, 4], atol=1e-6)


def test_a_plate_of_one_well_says_nothing() -> None:
    embeddings, wells = screen()
    alone = wells["id_code"].str.startswith(("HUVEC-01", "HUVEC-03_1_B05"))
    table = prototype_cosines(embeddings[alone.to_numpy()], wells, truth_of(wells, "train"))
    assert table.shape == (1, 12) and np.allclose(table, 0, atol=1e-5)


def test_a_blend_is_the_weighted_mean_of_log_probabilities() -> None:
    scores = pd.DataFrame(log_softmax([[2.0, 0, 1], [0, 0, 0], [1, 2, -np.inf]], axis=1), index=list("abc"), columns=[3, 5, 7])
    near = pd.DataFrame([[0.5, -1.0], [1.0, 0.0]], index=["a", "c"], columns=[3, 7])
    mixed = blend_scores(scores, near, weight=0.25, scale=4)
    expected = 0.75 * scores.loc["a"] + 0.25 * log_softmax([2.0, 0, -4])
    np.testing.assert_allclose(mixed.loc["a"], log_softmax(expected), rtol=1e-5)
    np.testing.assert_allclose(mixed.loc["b"], scores.loc["b"], rtol=1e-6)  # no cosines: as it was
    assert mixed.loc["c", 7] == -np.inf and np.allclose(np.exp(mixed).sum(axis=1), 1)
    np.testing.assert_allclose(blend_scores(scores, near, weight=1, scale=4).loc["a"], log_softmax([2.0, 0, -4]), rtol=1e-5)
    np.testing.assert_allclose(blend_scores(scores, near, weight=0, scale=4), scores, rtol=1e-5)


def test_the_scale_is_the_one_that_suits_the_held_out_wells() -> None:
    rng = np.random.default_rng(0)
    near = pd.DataFrame(rng.uniform(-1, 1, (4000, 6)), index=[f"w{k}" for k in range(4000)])
    odds = np.exp(8 * near.to_numpy())
    truth = pd.Series([rng.choice(6, p=row / row.sum()) for row in odds], near.index)
    assert fit_scale(near, truth) == pytest.approx(8, rel=0.08)
    assert fit_scale(near, truth.iloc[:0]) == DEFAULT_SCALE


def test_held_out_wells_are_compared_with_training_wells_alone() -> None:
    embeddings, wells = screen(noise=1.5)
    scores = even(wells, "held_out", "test")
    ways = PredictionSettings(prototype_weight=0.5, prototype_scale=10.0)
    first = refine_scores({"adapted": scores, "embeddings": embeddings}, wells, ways)
    assert list(first.rungs) == ["prototypes"] and first.scale == 10 and first.scores is first.rungs["prototypes"]
    held, test = truth_of(wells, "held_out"), truth_of(wells, "test")
    lied = wells.assign(sirna=wells["sirna"].where(wells["split"] != "held_out", 11 - wells["sirna"]))  # other labels
    second = refine_scores({"adapted": scores, "embeddings": embeddings}, lied, ways)
    np.testing.assert_array_equal(first.scores.loc[held.index], second.scores.loc[held.index])
    assert not np.allclose(first.scores.loc[test.index], second.scores.loc[test.index])
    assert first.scores.idxmax(axis=1).loc[test.index].eq(test).mean() > second.scores.idxmax(axis=1).loc[test.index].eq(test).mean() > 1 / 12


def test_views_come_first_and_prototypes_on_top_with_a_fitted_scale() -> None:
    embeddings, wells = screen()
    scores = even(wells, "held_out", "test")
    views = scores + np.linspace(0, 0.1, 12, dtype=np.float32)
    both = refine_scores({"adapted": scores, "views": views, "embeddings": embeddings}, wells, PredictionSettings(prototype_weight=0.5))
    assert list(both.rungs) == ["views", "prototypes"] and both.rungs["views"] is views and both.scale > 5
    plain = refine_scores({"adapted": scores}, wells, PredictionSettings())
    assert plain.scores is scores and plain.rungs == {} and plain.scale == 0


def test_networks_are_averaged_over_the_same_wells_and_classes() -> None:
    first = pd.DataFrame(log_softmax([[2.0, 0], [0, 1]], axis=1), index=["a", "b"], columns=[3, 5], dtype=np.float32)
    second = pd.DataFrame(log_softmax([[1.0, 3], [0, 0]], axis=1), index=["b", "a"], columns=[5, 3], dtype=np.float32)
    both = average_scores([first, second])
    expected = log_softmax((first.to_numpy() + second.loc[["a", "b"], [3, 5]].to_numpy()) / 2, axis=1)
    np.testing.assert_allclose(both, expected, rtol=1e-6)
    assert both.columns.tolist() == [3, 5] and average_scores([first]) is first
    with pytest.raises(InputError, match="2 wells of 2 classes, but 1 of 2"):
        average_scores([first, second.iloc[:1]])

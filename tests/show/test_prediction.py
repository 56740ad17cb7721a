"""What a prediction notebook shows: right answers on a diagonal, siRNAs that gather once the batch effect is gone, permutations weighed."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from cellsignal.data import simulated
from cellsignal.show.prediction import embedding_maps, experiments_to_map, permutation_posterior, plate_scores
from cellsignal.show.style import ASSIGNED, RAW

SIRNAS = range(10)


@pytest.fixture
def wells() -> pd.DataFrame:
    """Three experiments of RPE, the last held out, and one of HUVEC; every siRNA once in each."""
    splits = {"RPE-01": "train", "RPE-02": "train", "RPE-03": "held_out", "HUVEC-01": "train"}
    rows = [(f"{name}_{1 + sirna % 2}_B{sirna:02d}", name, name.split("-")[0], 1 + sirna % 2, sirna, split, "treatment")
            for name, split in splits.items() for sirna in SIRNAS]
    table = pd.DataFrame(rows, columns=["id_code", "experiment", "cell_type", "plate", "sirna", "split", "well_type"])
    return table.astype({"sirna": "Int64"}).sample(frac=1, random_state=0)


def truth_of(wells: pd.DataFrame) -> pd.Series:
    return wells.set_index("id_code")["sirna"].astype(int)


def scores_of(wells: pd.DataFrame, *, right: float) -> pd.DataFrame:
    """The true siRNA has probability `right` in every well, and siRNA 0 most of the rest."""
    truth = truth_of(wells)
    values = np.full((len(truth), len(SIRNAS)), 1e-3)
    values[:, 0] = 1 - right
    values[np.arange(len(truth)), truth] = right
    return pd.DataFrame(np.log(values), index=truth.index, columns=list(SIRNAS))


def test_right_answers_are_on_the_diagonal_and_titles_tell_the_accuracy(wells):
    tables = {"running": scores_of(wells, right=0.2), "adapted": scores_of(wells, right=0.9)}
    figure = plate_scores(tables, wells, truth_of(wells), experiment="RPE-03", plate=1)
    running, adapted = (axes for axes in figure.axes if axes.images)
    assert running.get_title(loc="left") == "running: accuracy 0.200" and adapted.get_title(loc="left") == "adapted: accuracy 1.000"
    assert adapted.images[0].get_array().shape == (5, 5)
    np.testing.assert_allclose(np.diag(adapted.images[0].get_array()), 0.9)
    assert [label.get_text() for label in adapted.get_yticklabels()] == ["0", "2", "4", "6", "8"]
    assert figure.get_suptitle() == "RPE-03, plate 1" and figure.png()


def test_wells_without_scores_or_answers_do_not_count(wells):
    scores, truth = scores_of(wells, right=0.9), truth_of(wells)
    some = plate_scores({"adapted": scores[scores.index != "RPE-03_1_B04"]}, wells, truth[truth != 0], experiment="RPE-03", plate=1)
    assert some.axes[0].images[0].get_array().shape == (3, 3)
    assert "No scores" in plate_scores({"adapted": scores}, wells, truth, experiment="RPE-09", plate=1).texts[0].get_text()


def embeddings_of(wells: pd.DataFrame, *, shift: float) -> pd.DataFrame:
    """A direction for each siRNA, and what all wells of an experiment share."""
    rng = np.random.default_rng(0)
    looks, effects = rng.normal(size=(len(SIRNAS), 16)), {name: shift * rng.normal(size=16) for name in sorted(wells["experiment"].unique())}
    rows = [looks[row.sirna] + effects[row.experiment] for row in wells.itertuples()]
    return pd.DataFrame(rows, index=pd.Index(wells["id_code"], name="id_code")) + 0.05 * rng.normal(size=(len(wells), 16))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_maps_have_a_column_for_each_kind_and_colours_by_experiment_and_by_sirna(wells, method):
    mine = wells[wells["cell_type"] == "RPE"]
    tables = {"running": embeddings_of(mine, shift=5), "adapted": embeddings_of(mine, shift=0)}
    first, second = (embedding_maps(tables, wells, method=method, sirnas=[1, 2]) for _ in range(2))
    assert [axes.get_title(loc="left") for axes in first.axes] == [
        "running statistics, by experiment", "adapted statistics, by experiment", "running statistics, by siRNA", "adapted statistics, by siRNA"]
    by_experiment, by_sirna = ([text.get_text() for text in axes.get_legend().get_texts()] for axes in first.axes[1::2])
    assert by_experiment == ["RPE-01", "RPE-02", "RPE-03"] and by_sirna == ["siRNA 1", "siRNA 2"]
    for axes in first.axes:
        assert sum(len(dots.get_offsets()) for dots in axes.collections) == len(mine)
    assert first.png() == second.png()


def test_adapted_wells_of_a_sirna_lie_together(wells):
    mine = wells[wells["cell_type"] == "RPE"]
    figure = embedding_maps({"running": embeddings_of(mine, shift=5), "adapted": embeddings_of(mine, shift=0)}, wells, sirnas=[3])
    spreads = []
    for axes in figure.axes[2:]:
        coloured = np.concatenate([dots.get_offsets() for dots in axes.collections if len(dots.get_offsets()) in (1, 2)])
        everything = np.concatenate([dots.get_offsets() for dots in axes.collections])
        spreads.append(np.linalg.norm(coloured.std(0)) / np.linalg.norm(everything.std(0)))
    assert len(coloured) == 3 and spreads[1] < 0.1 < spreads[0]


def test_maps_of_unlabelled_wells_and_of_too_few(wells):
    unknown = wells.assign(sirna=pd.array([pd.NA] * len(wells), "Int64"))
    table = embeddings_of(wells, shift=1)
    assert embedding_maps({"adapted": table}, unknown).png()
    assert "Too few" in embedding_maps({"adapted": table[:2]}, wells).texts[0].get_text()
    with simulated.showing(True):
        assert embedding_maps({"adapted": table}, wells).get_suptitle() == "Embeddings of wells, principal components (simulated data)"


def test_experiments_to_map_are_of_one_cell_type_some_learnt_from_and_some_not(wells):
    assert experiments_to_map(wells) == ["RPE-01", "RPE-02", "RPE-03"]
    assert experiments_to_map(wells, count=2) == ["RPE-01", "RPE-03"]
    assert experiments_to_map(wells[wells["cell_type"] == "HUVEC"]) == ["HUVEC-01"]
    assert experiments_to_map(wells[:0]) == []


def test_the_posterior_has_a_bar_for_each_permutation_and_marks_the_likeliest():
    layouts = np.array(list(permutations(range(4))))
    posterior = np.full(24, 1e-6)
    posterior[5] = 1 - posterior.sum() + 1e-6
    choice = SimpleNamespace(permutations=layouts, posterior=posterior, group_on_plate=tuple(layouts[5].tolist()))
    (axes,) = permutation_posterior(choice, rotations={"RPE-01": [0, 1, 2, 3]}, title="RPE-03").axes
    assert len(axes.patches) == 24 and axes.get_yscale() == "log"
    assert axes.patches[0].get_height() == posterior[5] and axes.patches[0].get_facecolor() == to_rgba(ASSIGNED)
    assert [patch.get_facecolor() for patch in axes.patches].count(to_rgba(RAW)) == 4
    assert axes.get_xticklabels()[0].get_text() == " ".join(str(group + 1) for group in layouts[5])
    assert axes.texts[0].get_text() == "1.000" and axes.texts[1].get_text() == "1e-06"


def test_without_groups_there_is_no_posterior_and_without_rotations_no_colour_of_theirs():
    assert "No plate groups" in permutation_posterior(None).texts[0].get_text()
    choice = SimpleNamespace(permutations=np.array([[0, 1], [1, 0]]), posterior=np.array([1.0, 0.0]), group_on_plate=(0, 1))
    figure = permutation_posterior(choice)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["the likeliest", "other permutations"] and figure.png()

"""The ladder: raw and assigned accuracies never meet."""


from cellsignal.show.results.ladder import experiment_dots, ladder, rungs_of_split


def rungs_of(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_raw_and_assigned_have_an_axis_each(rungs, held_out):
    raw, assigned = ladder(held_out + rungs, linear_baseline=0.2).axes
    assert (rungs_of(raw), rungs_of(assigned)) == (["running", "adapted"], ["exact"])
    assert raw.get_title(loc="left").startswith("Raw")
    assert "linear baseline 0.200" in [text.get_text() for text in raw.texts]
    assert "linear baseline 0.200" not in [text.get_text() for text in assigned.texts]


def test_test_wells_come_before_held_out_ones(rungs, held_out):
    assert rungs_of_split(held_out + rungs) == rungs
    assert rungs_of_split(held_out + rungs, "held_out") == held_out == rungs_of_split(held_out)


def test_one_kind_alone_and_no_rung_at_all(rungs):
    assert len(ladder(rungs[:1]).axes) == 1
    assert ladder([]).png() and experiment_dots([]).png()


def test_experiments_have_an_axis_for_each_kind(rungs):
    raw, assigned = experiment_dots(rungs).axes
    assert raw.get_title(loc="left") == "Raw: running, adapted"
    assert len(raw.lines) == 2 and len(assigned.lines) == 1

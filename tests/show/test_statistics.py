"""Pixel statistics from images agree with the pixels."""

import cv2
import numpy as np
import pandas as pd

from cellsignal.show.eda.batch_effect import channels_there, pixel_stats


def sites(root) -> pd.DataFrame:
    """Three sites of one well each; the last lacks two channels."""
    frame = pd.DataFrame({"well": ["B02", "B03", "B04"], "experiment": "RPE-01", "plate": 1, "site": 1})
    frame["id_code"], frame["stem"] = "RPE-01_1_" + frame["well"], frame["well"] + "_s1"
    for n, stem in enumerate(frame["stem"]):
        for channel in range(1, 7 if n < 2 else 5):
            cv2.imwrite(str(root / f"{stem}_w{channel}.png"), np.full((4, 4), 10 * n + channel, np.uint8))
    return frame


def test_files_of_a_site_are_counted(tmp_path):
    assert channels_there(tmp_path, sites(tmp_path)).tolist() == [6, 6, 4]
    assert channels_there(tmp_path, sites(tmp_path)[:0]).empty


def test_statistics_have_the_competitions_columns(tmp_path):
    stats = pixel_stats(tmp_path, sites(tmp_path)[:2])
    assert list(stats.columns) == "id_code experiment plate well site channel mean std median min max".split()
    assert stats["mean"].tolist() == [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    assert not stats["std"].any()


def test_a_sample_is_spread_evenly(tmp_path):
    table = sites(tmp_path).iloc[[0, 1, 0, 1]]
    assert pixel_stats(tmp_path, table, max_sites=2)["id_code"].unique().tolist() == ["RPE-01_1_B02"]
    assert pixel_stats(tmp_path, table[:0]).empty

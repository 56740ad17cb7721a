"""Tables of profiles: what is read, and what is refused in one line."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from pandas.testing import assert_frame_equal
from tables import make_table

from cellsignal.data.tables import headers
from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.profiles.correct import steps
from cellsignal.profiles.settings import ProfileSettings
from cellsignal.profiles.table import PERTURBATION, from_frame, read_profiles
from cellsignal.receipts import Receipt


def changed(change: Callable[[pd.DataFrame], object], **design: int) -> pd.DataFrame:
    table = make_table(**design)
    result = change(table)
    return result if isinstance(result, pd.DataFrame) else table


WRONG = {  # whatever is done with them
    "no column": (lambda table: table.drop(columns="Metadata_Batch"), "no column Metadata_Batch; name the columns"),
    "no row": (lambda table: table.iloc[:0], "no row; write it again"),
    "no feature": (lambda table: table.filter(like="Metadata_"), r"no numeric column besides Metadata_\*; add the features"),
    "no number": (lambda table: table.__setitem__("embedding_1", np.where(table.index == 5, np.nan, 1.0)), "embedding_1 is nan in well W.. on plate 0 of batch-0 .*1 of 6.; drop these"),
    "infinite": (lambda table: table.__setitem__("embedding_2", np.inf), "embedding_2 is inf in well"),
    "twice": (lambda table: pd.concat([table, table.iloc[:2]]), "2 wells are there twice, such as well W.. on plate 0 of batch-0; average the rows"),
    "unknown type": (lambda table: table.__setitem__("Metadata_Control_Type", "trt"), "Metadata_Control_Type is 'trt' in row 1; write one of negcon, poscon, treatment, empty"),
    "contradiction": (lambda table: table.__setitem__("Metadata_Control", False), "Metadata_Control is False and Metadata_Control_Type 'negcon' in row"),
    "no plate": (lambda table: table.__setitem__("Metadata_Plate", None), "no Metadata_Plate in row 1; fill the column"),
    "all the same": (lambda table: table.__setitem__(slice(None), table.assign(**dict.fromkeys(table.filter(like="embedding_"), 1.0))), "all wells have the same features"),
    "numbers as text": (lambda table: table.__setitem__("embedding_1", np.where(table.index == 5, "n/a", "1.5")), "the feature embedding_1 is text, such as 'n/a' in row 6; write numbers, or call it Metadata_embedding_1"),
    "numbers as text, and rows of one name": (lambda table: table.assign(embedding_1=np.where(table.index == 5, "n/a", "1.5")).set_axis([0] * len(table)), "the feature embedding_1 is text, such as 'n/a' in row 6"),
    "an index": (lambda table: table.insert(0, "Unnamed: 0", range(len(table))), "the column Unnamed: 0 seems to be an index, not a feature; write the table without"),
    "two levels": (lambda table: table.set_axis(pd.MultiIndex.from_product([table.columns, [""]]), axis=1), "column names of 2 levels; give each column one name"),
    "control unknown": (lambda table: table.__setitem__("Metadata_Control", pd.array([pd.NA] * len(table), "boolean")), "Metadata_Control is <NA> and Metadata_Control_Type 'treatment' in row 1"),
    "too large": (lambda table: table.__setitem__("embedding_2", 1e39 * table["embedding_2"]), "embedding_2 is -?inf in well"),
    "two columns": (lambda table: table.set_axis([*table.columns[:-1], "embedding_0"], axis=1), "two columns embedding_0; rename or drop one"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_a_wrong_table_ends_in_one_line(change: Callable[[pd.DataFrame], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        from_frame(changed(change), where="table.csv")
    assert str(refused.value).startswith("table.csv: ") and "\n" not in str(refused.value)


def single_treatment(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["Metadata_Control_Type"] == "negcon") | (table["Metadata_Perturbation"] == "t0") | (table["Metadata_Batch"] != "batch-1")]


WRONG_FOR_A_STEP = {  # a change, settings that refuse it, the message, and settings that do not
    "no controls": (lambda table: table[table["Metadata_Control_Type"] == "treatment"], {}, "no controls: no well has .* negcon or poscon; mark", {"center": "plate", "sphering": "none"}),
    "a plate without controls": (lambda table: table[(table["Metadata_Control_Type"] != "negcon") | (table["Metadata_Batch"] != "batch-1")], {}, "no controls on plate 0 of batch-1 and 1 more plates", {"center": "none"}),
    "one well a plate": (lambda table: table.drop_duplicates(["Metadata_Batch", "Metadata_Plate"]), {"center": "plate", "sphering": "none"}, "plate 0 of batch-0 has a single well, which would become 0; centre on controls", {"center": "none", "sphering": "none"}),
    "one treatment a plate": (single_treatment, {"center": "plate"}, "plate 0 of batch-1 has a single treatment, which its mean would take away", {"center": "controls"}),
    "one control a plate": (lambda table: table.drop(table[table["Metadata_Control_Type"] == "negcon"][table[table["Metadata_Control_Type"] == "negcon"].duplicated(["Metadata_Batch", "Metadata_Plate"])].index), {}, "the controls show no variation", {"center": "plate"}),
    "a constant feature": (lambda table: table.assign(embedding_3=7.0), {}, "the feature embedding_3 is constant; drop what is constant", {"scale": "none"}),
    "a constant feature, sphered": (lambda table: table.assign(embedding_3=7.0), {"scale": "none", "components": 0, "regularisation": 0.0}, "or one of these is constant; set regularisation above 0", {"scale": "none", "components": 0}),
}  # fmt: skip


@pytest.mark.parametrize("change, settings, message, other", WRONG_FOR_A_STEP.values(), ids=WRONG_FOR_A_STEP)
def test_what_is_wrong_for_one_step_is_refused_for_that_step_only(
    change: Callable[[pd.DataFrame], pd.DataFrame], settings: dict[str, object], message: str, other: dict[str, object]
) -> None:
    profiles = from_frame(changed(change))
    with pytest.raises(InputError, match=message) as refused:
        list(steps(profiles, ProfileSettings(**settings)))
    assert "\n" not in str(refused.value) and "; " in str(refused.value)
    *_, (_, result) = steps(profiles, ProfileSettings(**other))
    assert np.isfinite(result.features).all()


@pytest.mark.parametrize("name", ["table.parquet", "table.csv", "table.csv.gz"])
def test_formats_give_the_same_profiles(tmp_path: Path, name: str) -> None:
    table = make_table().assign(Metadata_Plate="01")
    table["Metadata_Well"] = [f"W{number}" for number in range(len(table))]
    table.loc[0, "Metadata_Perturbation"] = None
    table.to_parquet(tmp_path / name) if name.endswith("parquet") else table.to_csv(tmp_path / name, index=False)
    read, expected = read_profiles(tmp_path / name), from_frame(table)
    np.testing.assert_allclose(read.features, expected.features, rtol=1e-6)
    assert set(read.wells["Metadata_Plate"]) == {"01"} and read.perturbations[0] == -1 and not read.treated[0]
    assert (read.perturbations == expected.perturbations).all() and read.names == [f"embedding_{number}" for number in range(6)]


CSV: dict[str, Callable[[str], str]] = {  # the same table
    "quoted": lambda text: '"' + text.rstrip("\n").replace(",", '","').replace("\n", '"\n"') + '"\n',
    "byte order mark": lambda text: "\ufeff" + text,
    "spaces": lambda text: text.replace(",", " , "),
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "blank lines": lambda text: text + "\n\n",
}
NO_CSV: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "semicolons": (lambda text: text.replace(",", ";"), "table.csv:1: columns are not separated by commas; save it as CSV with commas"),
    "Excel's": (lambda text: "sep=;\n" + text.replace(",", ";"), "table.csv:1: columns are not separated by commas; save it as CSV with commas"),
    "UTF-16": (lambda text: text.encode("utf-16"), "table.csv: is not UTF-8 text; save the table as CSV in UTF-8"),
    "a NUL": (lambda text: text[:200] + "\0" + text[200:], "table.csv: is not UTF-8 text; save the table as CSV in UTF-8"),
    "nothing": (lambda text: "\n", "table.csv: the file is empty; copy the table again"),
    "a column twice": (lambda text: text.replace("embedding_1", "embedding_0"), "table.csv:1: two columns embedding_0; rename or drop one"),
    "decimal commas": (lambda text: text.replace(".", ","), "table.csv: rows have more cells than the header's 11; give each column one cell"),
    "commas at the end": (lambda text: text.replace("\n", ",\n").replace(",\n", "\n", 1), "table.csv: rows have more cells than the header's 11"),
}


@pytest.mark.parametrize("kind", CSV)
def test_csv_is_the_same_however_it_is_written(tmp_path: Path, kind: str) -> None:
    table = make_table().assign(Metadata_Plate="01")
    table["Metadata_Well"] = [f"W{number}" for number in range(len(table))]
    (tmp_path / "table.csv").write_text(CSV[kind](table.to_csv(index=False)), newline="")
    read, expected = read_profiles(tmp_path / "table.csv"), from_frame(table)
    np.testing.assert_allclose(read.features, expected.features, rtol=1e-6)
    assert set(read.wells["Metadata_Plate"]) == {"01"} and (read.perturbations == expected.perturbations).all() and (read.treated == expected.treated).all()


@pytest.mark.parametrize("kind", NO_CSV)
def test_csv_that_pandas_would_take_for_another_table_is_refused(tmp_path: Path, kind: str) -> None:
    table = make_table()
    assert len(table.columns) == 11
    content = NO_CSV[kind][0](table.to_csv(index=False))
    (tmp_path / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        read_profiles(tmp_path / "table.csv")
    assert str(refused.value).startswith(f"{tmp_path}/{NO_CSV[kind][1]}")


def test_anndata_is_read_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "table.h5ad").write_bytes(b"")
    with pytest.raises(InputError, match="need the library anndata|cannot be read"):
        read_profiles(tmp_path / "table.h5ad")
    anndata = pytest.importorskip("anndata")
    table = make_table()
    features = table.filter(like="embedding_")
    anndata.AnnData(features.to_numpy(np.float32), table.drop(columns=features).set_axis(table.index.astype(str))).write_h5ad(tmp_path / "table.h5ad")
    np.testing.assert_allclose(read_profiles(tmp_path / "table.h5ad").features, features, rtol=1e-6)


@pytest.mark.parametrize("name, message", [("nothing.csv", "no such file"), ("table.txt", "not a file name of profiles"), ("broken.parquet", "cannot be read .Arrow")])
def test_a_file_that_is_no_table_ends_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    for other in ("table.txt", "broken.parquet"):
        (tmp_path / other).write_text("no table")
    with pytest.raises(InputError, match=message):
        read_profiles(tmp_path / name)


@pytest.mark.parametrize("receipt", ["e.parquet.json", "receipt.json"])
def test_a_table_is_read_as_its_receipt_says(tmp_path: Path, receipt: str) -> None:
    path, table = tmp_path / "e.parquet", make_table()
    table.to_parquet(path)
    Receipt(tmp_path / receipt, outputs={path.name: sha256(path)}).write()
    assert read_profiles(path).features.shape == (len(table), table.columns.str.startswith("embedding_").sum())
    table.assign(embedding_0=table["embedding_0"] + 1).to_parquet(path)
    with pytest.raises(InputError, match=f"e.parquet: not as its receipt {receipt} says; write it again, or remove {receipt} if you changed it yourself$"):
        read_profiles(path)
    (tmp_path / receipt).unlink()
    assert len(read_profiles(path).wells) == len(table)


def same_text(text: str, rows: int) -> pa.Array:
    """Rows of one text, which a Parquet file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text]))


BOMBS: dict[str, Callable[[Path], None]] = {
    "rows.parquet": lambda path: pa.parquet.write_table(pa.table({"embedding_0": np.zeros(600_000)}), path),
    "lists.parquet": lambda path: pa.parquet.write_table(pa.table({"embedding_0": [[0.0] * 600_000]}), path),
    "novel.parquet": lambda path: pa.parquet.write_table(pa.table({PERTURBATION: same_text("x" * 10_000, 200).cast(pa.string())}), path),
    "novel as categories.parquet": lambda path: pa.parquet.write_table(pa.table({PERTURBATION: same_text("x" * 10_000, 200)}), path),
    "swollen.parquet": lambda path: pa.parquet.write_table(pa.table({PERTURBATION: ["x" * 2_000_000]}), path, compression="zstd"),
    "rows.csv.gz": lambda path: path.write_bytes(gzip.compress(b"embedding_0\n" + b"0\n" * 1_000_000)),
    "one line.csv.gz": lambda path: path.write_bytes(gzip.compress(b"x" * 2_000_000)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_table_that_would_swell_is_refused_before_it_does(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_TABLE_BYTES", 1_000_000)
    BOMBS[name](tmp_path / name)
    with pytest.raises(InputError) as refused:
        read_profiles(tmp_path / name)
    size = f"{max(1.0, (tmp_path / name).stat().st_size / 1e4):,.1f} MB"
    assert str(refused.value) == f"{tmp_path / name}: unpacks to more than {size}, as no measurements in a file of its size do; look what it holds, and write it again"


def test_a_network_of_categories_and_an_index_are_read_as_they_were(tmp_path: Path) -> None:
    table = make_table().astype({"Metadata_Batch": "category"}).rename_axis("row")
    table.to_parquet(tmp_path / "table.parquet")
    assert_frame_equal(read_profiles(tmp_path / "table.parquet").frame(), from_frame(pd.read_parquet(tmp_path / "table.parquet")).frame())


def test_wells_that_a_network_has_learnt_from_are_not_measured() -> None:
    table = make_table()
    table["Metadata_Split"] = np.where(table["Metadata_Batch"] == "batch-0", "train", "test")
    profiles = from_frame(table)
    assert set(profiles.wells["Metadata_Batch"][profiles.treated]) == {"batch-1", "batch-2"}
    assert from_frame(table.assign(Metadata_Split="train")).treated.sum() == 8 * 6, "unless there are no others"


def test_networks_are_told_apart() -> None:
    table = make_table()
    parts = from_frame(table.assign(Metadata_Network=np.where(table["Metadata_Batch"] == "batch-0", "U2OS/model", "RPE/model"))).by_network()
    assert {name: len(part.wells) for name, part in parts.items()} == {"RPE/model": 48, "U2OS/model": 24} and list(parts) == ["RPE/model", "U2OS/model"]


def test_a_smaller_network_has_only_its_own_features() -> None:
    """As in the corrected table of networks of different sizes."""
    table = make_table(batches=2).assign(Metadata_Network=lambda table: table["Metadata_Batch"])
    smaller = table["Metadata_Network"] == "batch-1"
    table.loc[smaller, "embedding_5"] = np.nan
    parts = from_frame(table).by_network()
    assert {name: len(part.names) for name, part in parts.items()} == {"batch-0": 6, "batch-1": 5}
    assert all(np.isfinite(part.features).all() for part in parts.values()) and parts["batch-1"].features.shape == (24, 5)
    for faulty in (table.assign(embedding_4=np.nan), table.assign(embedding_4=np.where(table.index == table.index[-1], np.nan, 1.0))):
        with pytest.raises(InputError, match="embedding_4 is nan in well .* .features with such values: 1 of 6."):
            from_frame(faulty)
    table.loc[smaller, [f"embedding_{number}" for number in range(6)]] = np.nan
    with pytest.raises(InputError, match="embedding_0 is nan in well .* of batch-1"):
        from_frame(table)


@pytest.mark.parametrize("value, simulated", [("False", False), ("0", False), (None, False), (False, False), ("True", True), (True, True)])
def test_text_says_too_whether_plates_are_simulated(value: object, simulated: bool) -> None:
    assert from_frame(make_table().assign(Metadata_Simulated=value)).simulated is simulated


def test_numbers_in_a_csv_file_are_names_as_they_are_written(tmp_path: Path) -> None:
    table = make_table()
    numbers = {"t0": "01", "t1": "1", "untreated": "0"} | {f"t{number}": str(number) for number in range(2, 8)}
    table["Metadata_Compound"] = table["Metadata_Perturbation"] = table["Metadata_Perturbation"].map(numbers)
    table.to_csv(tmp_path / "table.csv", index=False)
    wells = read_profiles(tmp_path / "table.csv").wells
    assert set(wells["Metadata_Perturbation"]) == set(wells["Metadata_Compound"]) == set(numbers.values())
    table["Metadata_Perturbation"] = table["Metadata_Perturbation"].astype(float).where(table.index > 0)
    table.to_csv(tmp_path / "table.csv", index=False)
    assert set(read_profiles(tmp_path / "table.csv").wells["Metadata_Perturbation"].dropna()) == {str(number) for number in range(8)}


def test_text_that_is_no_number_is_no_feature_and_names_keep_their_zeros(tmp_path: Path) -> None:
    table = make_table().assign(Comment="as in the protocol", Metadata_Batch="007", Metadata_Control=lambda table: (table["Metadata_Control_Type"] != "treatment").astype(str))
    table["Metadata_Plate"] = [f"{number // 12:02}" for number in range(len(table))]
    table.to_csv(tmp_path / "table.csv", index=False)
    profiles = read_profiles(tmp_path / "table.csv")
    assert profiles.names == [f"embedding_{number}" for number in range(6)]
    assert set(profiles.wells["Metadata_Batch"]) == {"007"} and profiles.wells["Metadata_Plate"].iloc[0] == "00"
    assert profiles.wells["Metadata_Control"].equals(profiles.wells["Metadata_Control_Type"] != "treatment")

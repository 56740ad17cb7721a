"""pixel_stats.csv: whatever a spreadsheet makes of it is named by file, line and column, by all who read it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cellsignal.data.check import check_dataset
from cellsignal.data.tables.wells import read_pixel_stats
from cellsignal.data.tables.wells import read_tables
from cellsignal.errors import InputError
from cellsignal.learn.networks.standardise import channel_stats

HEADER = "id_code,experiment,plate,well,site,channel,mean,std,median,min,max"
GOOD = [HEADER, *(f"RPE-01_1_B02,RPE-01,1,B02,{site},{channel},{channel}.5,{site}.25,3.0,0,255" for site in (1, 2) for channel in range(1, 7))]


def second(old: str, new: str) -> Callable[[], bytes]:
    """The table with another second row."""
    line = GOOD[2].replace(old, new, 1)
    assert line != GOOD[2]
    return lambda: "\n".join([*GOOD[:2], line, *GOOD[3:], ""]).encode()


MEAN, STD = "write a number from 0 to 255 with a decimal point, such as 12.5", "is not a standard deviation of pixels"
FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "decimal comma": (second("2.5", '"2,5"'), f":3:mean: '2,5' is not a mean of pixels; {MEAN}"),
    "decimal comma without quotes": (second("2.5", "2,5"), ":3: 12 cells where the header has 11; give each column one cell"),
    "all of a European spreadsheet": (
        lambda: "\n".join(GOOD).replace(",", ";").replace(".", ",").encode(), ":1: columns are not separated by commas; save it as CSV with commas"
    ),
    "division by zero": (second("1.25", "#DIV/0!"), f":3:std: '#DIV/0!' {STD}; {MEAN}"),
    "nothing": (second("2.5", ""), f":3:mean: '' is not a mean of pixels; {MEAN}"),
    "NaN": (second("2.5", "nan"), f":3:mean: 'nan' is not a mean of pixels; {MEAN}"),
    "infinite": (second("1.25", "inf"), f":3:std: 'inf' {STD}; {MEAN}"),
    "too large for a number": (second("2.5", "1e999"), f":3:mean: '1e999' is not a mean of pixels; {MEAN}"),
    "a number of its own": (second("2.5", "1e200"), f":3:mean: '1e200' is not a mean of pixels; {MEAN}"),
    "16 bits": (second("1.25", "1250"), f":3:std: '1250' {STD}; {MEAN}"),
    "another well's id": (second("B02", "B03"), ":3:id_code: 'RPE-01_1_B03' disagrees with experiment, plate and well; write experiment_plate_well"),
    "a channel twice": (second(",1,2,2.5", ",1,1,2.5"), ":3:channel: 1 is the channel of an earlier row of this site; keep one of the rows"),
    "header alone": (lambda: HEADER.encode(), ": no row below the header; copy it again"),
    "below zero": (second("1.25", "-1.25"), f":3:std: '-1.25' {STD}; {MEAN}"),
    "thousands": (second("2.5", "2_000.5"), f":3:mean: '2_000.5' is not a mean of pixels; {MEAN}"),
    "Plate1": (second(",1,B02", ",Plate1,B02"), ":3:plate: 'Plate1' is not a plate; write a whole number from 1 to 99"),
    "plate as a float": (second(",1,B02", ",1.0,B02"), ":3:plate: '1.0' is not a plate; write a whole number from 1 to 99"),
    "w2": (second(",1,2,2.5", ",1,w2,2.5"), ":3:channel: 'w2' is not a channel; write a whole number from 1"),
    "channel 0": (second(",1,2,2.5", ",1,0,2.5"), ":3:channel: '0' is not a channel; write a whole number from 1"),
    "UTF-16": (lambda: "\n".join(GOOD).encode("utf-16"), ": is not UTF-8 text; save the table as CSV in UTF-8"),
    "UTF-16 without a mark": (lambda: "\n".join(GOOD).encode("utf-16-le"), ": is not UTF-8 text; save the table as CSV in UTF-8"),
    "no bytes": (lambda: b"", ": the file is empty; copy the table again"),
    "a row twice": (lambda: "\n".join([*GOOD, GOOD[1]]).encode(), ":14:channel: 1 is the channel of an earlier row of this site; keep one of the rows"),
    "a decimal point lost": (second("2.5", "256"), f":3:mean: '256' is not a mean of pixels; {MEAN}"),
    "two byte order marks": (lambda: ("\ufeff\ufeff" + "\n".join(GOOD)).encode(),
                             rf":1: no column id_code (there are: '\ufeffid_code', {HEADER[8:].replace(',', ', ')}); "
                             "name the columns id_code,experiment,plate,well,site,channel,mean,std"),
    "a row cut short": (lambda: "\n".join(GOOD)[:-9].encode(), ":13: 9 cells where the header has 11; give each column one cell"),
    "no column": (lambda: "\n".join(GOOD).replace("std", "sd").encode(),
                  f":1: no column std (there are: {HEADER.replace('std', 'sd').replace(',', ', ')}); "
                  "name the columns id_code,experiment,plate,well,site,channel,mean,std"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_named_by_every_reader(data_set: Path, kind: str) -> None:
    content, expected = FAULTS[kind]
    path = data_set / "pixel_stats.csv"
    path.write_bytes(content())
    expected = f"{path}{expected}, or remove the file to do without"
    sites = read_tables(data_set).sites[:1]
    for read in (lambda: read_pixel_stats(data_set), lambda: channel_stats(data_set, sites, "plate", 6)):
        with pytest.raises(InputError) as refused:
            read()
        assert str(refused.value) == expected
    [fault] = check_dataset(data_set, progress=False).to_dict("records")
    assert f"{fault['file']}: {fault['problem']}; {fault['cure']}" == expected


def test_a_whole_table_is_read_whoever_wrote_it(tmp_path: Path) -> None:
    columns = [2, 7, 0, 1, 3, 4, 5, 6]  # in another order, and without what nobody needs
    lines = [line.split(",") for line in GOOD]
    odd = "\ufeff" + "\r\n".join(", ".join(f'"{line[place]}"' for place in columns) for line in lines) + "\r\n\r\n"
    tables = []
    for text in ("\n".join(GOOD), odd):
        (tmp_path / "pixel_stats.csv").write_text(text, newline="")
        tables.append(read_pixel_stats(tmp_path))
    assert tables[0].equals(tables[1]) and tables[0].columns.tolist() == HEADER.split(",")[:8]
    assert tables[0]["mean"].tolist() == [1.5, 2.5, 3.5, 4.5, 5.5, 6.5] * 2 and tables[0]["channel"].dtype == np.int64
    (tmp_path / "pixel_stats.csv").unlink()
    assert read_pixel_stats(tmp_path) is None

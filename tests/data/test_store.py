"""A store gives back every pixel, is nobody's surprise when it is damaged, and goes on where packing stopped."""

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cellsignal import files
from cellsignal.data import simulated
from cellsignal.data.images import packed_store
from cellsignal.data import check
from cellsignal.data.packing import pack, plate_file
from cellsignal.data.check import check_dataset
from cellsignal.data.images.reader import channel_path, missing_channels, read_site, read_sites, area_resized, stems_in, folder_fingerprints, whole_sites
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.decide.scores import cache
from cellsignal.decide.evaluate.answers import design_digest
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.tasks import RXRX1

GONE, HALF = "train/HUVEC-01/Plate1/B02_s1", "train/HUVEC-02/Plate3/B02_s2"  # no image at all; two channels lost


@pytest.fixture
def plates(data_set: Path, draw: Callable[..., None]) -> Tables:
    """Two sites of every plate, 8 px: 28 plates, of which two sites are not whole."""
    tables = read_tables(data_set)
    for stem in tables.sites.loc[tables.sites["well"] == "B02", "stem"]:
        if stem != GONE:
            draw(data_set, stem)
    for channel in (5, 6):
        channel_path(data_set, HALF, channel).unlink()
    return read_tables(data_set)


def drawn(tables: Tables):
    return tables.sites[tables.sites["well"] == "B02"].reset_index(drop=True)


def packed(tables: Tables, out: Path, **asked) -> packed_store.Store:
    pack.pack(pack.plan_pack(tables.root, **asked), out, progress=False)
    return packed_store.open_store(out)


@pytest.mark.parametrize("codec", packed_store.CODECS)
def test_a_store_is_the_data_set_itself(plates: Tables, tmp_path: Path, codec: str) -> None:
    made = packed(plates, tmp_path / "store", codec=codec)
    again = read_tables(made.root)
    assert again.sites.equals(plates.sites) and again.wells.equals(plates.wells) and again.sample == plates.sample
    sites = drawn(plates)
    lost, here = (missing_channels(root, sites["stem"], channels=RXRX1.suffixes) for root in (plates.root, made.root))
    assert lost.equals(here)
    (whole, notes), (same, told) = whole_sites(plates.root, sites), whole_sites(made.root, sites)
    assert whole.equals(same) and notes == told and len(notes) == 2
    pixels = read_sites(plates.root, whole)
    assert np.array_equal(pixels, read_sites(made.root, whole))
    assert np.array_equal(pixels, made.read_many(whole["stem"].tolist()))
    assert np.array_equal(read_site(made.root, whole["stem"].iloc[0], channels=("_w5.png", "_w2.png")), pixels[0][[4, 1]])
    assert set(stems_in(made.root, "train/HUVEC-02/Plate3")) == set(whole["stem"]) & set(stems_in(plates.root, "train/HUVEC-02/Plate3"))


def test_a_store_of_simulated_plates_says_so(plates: Tables, tmp_path: Path) -> None:
    """And is of the same design as what was packed, for a comparison of runs."""
    assert not simulated.is_simulated(packed(plates, tmp_path / "real").root)
    Receipt(plates.root / "simulate.json", {"preset": "tiny", "seed": 0}).write()
    made = packed(plates, tmp_path / "drawn").root
    assert simulated.identity(made) == {"preset": "tiny", "seed": 0}
    assert design_digest(made) == design_digest(plates.root) != design_digest(tmp_path / "real")
    (plates.root / simulated.WORKING_FOLDER).mkdir()
    (plates.root / "simulate.json").rename(plates.root / simulated.WORKING_FOLDER / "simulate.json")  # before its last table is written
    assert simulated.is_simulated(packed(plates, tmp_path / "unfinished").root)


def test_reduced_copies_are_means_over_areas(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store", codec="raw", sizes=(8, 4))
    stem = drawn(plates)["stem"].iloc[-1]
    image = read_site(plates.root, stem)
    assert made.sizes == [8, 4] and np.array_equal(read_site(made.root, stem), image)
    means = image.reshape(6, 4, 2, 4, 2).mean((2, 4))
    for copy in (read_site(made.root, stem, size=4), read_site(plates.root, stem, size=4)):
        assert np.array_equal(copy, np.floor(means + 0.5))
    assert area_resized(np.zeros((1, 8, 6), np.uint8), 4).shape == (1, 4, 3)
    with pytest.raises(InputError, match="no copies of 2 px; choose one of 8, 4, or pack"):
        made.read(stem, size=2)
    with pytest.raises(InputError, match="a copy of 9 px of an image of 8; choose"):
        read_site(plates.root, stem, size=9)


def test_a_buffer_is_filled_and_threads_do_not_mix(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    stems = whole_sites(plates.root, drawn(plates))[0]["stem"].tolist()
    out = np.empty((len(stems), 6, 8, 8), np.uint8)
    with ThreadPoolExecutor(8) as pool:
        filled = list(pool.map(lambda row: made.read(stems[row], out[row]), range(len(stems))))
    assert all(np.shares_memory(each, out) for each in filled)
    assert np.array_equal(out, made.read_many(stems))
    for bad in (np.empty((6, 8, 7), np.uint8), np.empty((6, 8, 8)), np.empty((8, 8, 6), np.uint8).T):
        with pytest.raises(InputError, match="a buffer of"):
            made.read(stems[0], bad)


def test_a_store_outlives_forks_and_pickles_as_its_folder(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    stems = whole_sites(plates.root, drawn(plates))[0]["stem"].tolist()
    assert pickle.loads(pickle.dumps(made)) is made
    expected = [made.read(stem).sum() for stem in stems]
    child = os.fork()
    if not child:  # reads the same files, from the same descriptors, at the same time
        os._exit(0 if all([made.read(stem).sum() for stem in stems] == expected for _ in range(20)) else 1)
    assert all([made.read(stem).sum() for stem in stems] == expected for _ in range(20))
    assert os.waitpid(child, 0)[1] == 0


def test_packing_goes_on_and_grows(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, plan = tmp_path / "store", pack.plan_pack(plates.root, cell_types=("RPE",))
    written = []

    def write(out: Path, shard: plate_file.PlateShard, *rest, **more) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shard.name)
        plate_file.write(out, shard, *rest, **more)

    monkeypatch.setitem(pack.FORMATS, "plates", write)
    with pytest.raises(KeyboardInterrupt):
        pack.pack(plan, out, progress=False)
    with pytest.raises(InputError, match="the store is not whole; the same `cellsignal pack` goes on"):
        read_site(out, drawn(plates)["stem"].iloc[0])
    monkeypatch.undo()
    orphan = out / written[0] / f"{files.TEMPORARY}1-8.blosc2"
    orphan.touch()
    assert set(pack.pack(plan, out, progress=False)) == {shard.name for shard in plan.shards} - set(written)
    assert pack.pack(plan, out, progress=False) == [] and not orphan.exists()
    assert not any(name.startswith("train/HUVEC") for name in packed_store.open_store(out).parts)
    pack.pack(pack.plan_pack(plates.root), out, progress=False)
    assert check.verify(out, progress=False) == len(drawn(plates)) - 2


def test_a_store_whose_images_are_replaced_is_not_whole_meanwhile(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed(plates, tmp_path / "store")
    stem = "train/RPE-02/Plate2/B02_s1"
    channel_path(plates.root, stem, 1).write_bytes(channel_path(plates.root, stem, 2).read_bytes())

    def write(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(pack.FORMATS, "plates", write)
    with pytest.raises(KeyboardInterrupt):
        pack.pack(pack.plan_pack(plates.root), made.root, progress=False)
    with pytest.raises(InputError, match="the store is not whole; the same `cellsignal pack` goes on"):
        read_site(made.root, stem)
    monkeypatch.undo()
    assert pack.pack(pack.plan_pack(plates.root), made.root, progress=False) == [stem.rpartition("/")[0]]
    assert np.array_equal(read_site(made.root, stem), read_site(plates.root, stem))


def test_an_image_that_changes_while_it_is_packed_is_packed_again(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem, encode = "train/RPE-02/Plate2/B02_s1", plate_file.encode

    def late(root: Path, spec: plate_file.StoreSpec, name: str) -> list[tuple[bytes, int]]:
        found = encode(root, spec, name)
        if name == stem:
            channel_path(root, stem, 1).write_bytes(channel_path(root, stem, 2).read_bytes())
        return found

    monkeypatch.setattr(plate_file, "encode", late)
    made = packed(plates, tmp_path / "store")
    monkeypatch.undo()
    assert pack.pack(pack.plan_pack(plates.root), made.root, progress=False) == [stem.rpartition("/")[0]]
    assert np.array_equal(read_site(made.root, stem), read_site(plates.root, stem))


def test_a_folder_that_is_cut_in_other_parts_is_read_from_these(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = packed(plates, tmp_path / "store")
    stem = "train/RPE-02/Plate2/B02_s1"
    folder = stem.rpartition("/")[0]
    count = len(made.stems(folder))
    monkeypatch.setattr(pack, "_MAX_SITES_PER_PART", 1)
    channel_path(plates.root, stem, 1).write_bytes(channel_path(plates.root, stem, 2).read_bytes())
    pack.pack(pack.plan_pack(plates.root), made.root, progress=False)
    again = packed_store.open_store(made.root)
    assert len(again.stems(folder)) == count > 1 and np.array_equal(again.read(stem), read_site(plates.root, stem))
    assert folder not in again.parts


def test_a_store_inside_a_store_is_refused(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    for folder in (made.root / "inner", made.root):
        with pytest.raises(InputError, match=f"{folder.name}: is the store .*, or lies in it; choose another folder"):
            pack.pack(pack.plan_pack(made.root), folder, progress=False)
    assert packed_store.open_store(made.root).sizes == made.sizes


def test_images_that_changed_are_packed_anew(plates: Tables, tmp_path: Path, draw: Callable[..., None]) -> None:
    made = packed(plates, tmp_path / "store")
    stem = "train/RPE-02/Plate2/B02_s1"
    before, wells = made.read(stem), drawn(plates)[lambda sites: sites["experiment"] == "RPE-02"]
    identity = cache.cache_key(wells, folder_fingerprints(made.root, wells["stem"]))
    draw(plates.root, "other")
    channel_path(plates.root, "other", 1).replace(channel_path(plates.root, stem, 1))
    (plates.root / "train/RPE-02/Plate1/B02_s3_w1.png").symlink_to("nowhere")  # that no table names
    assert pack.pack(pack.plan_pack(plates.root), made.root, progress=False) == ["train/RPE-02/Plate2"]
    assert not np.array_equal(read_site(made.root, stem), before)  # the open store is not the one of before
    assert cache.cache_key(wells, folder_fingerprints(made.root, wells["stem"])) != identity
    assert folder_fingerprints(made.root, [stem]) == {"train/RPE-02/Plate2": packed_store.open_store(made.root).digest("train/RPE-02/Plate2")} != {"train/RPE-02/Plate2": ""}


@pytest.mark.parametrize("codec", packed_store.CODECS)
def test_damage_is_one_line_and_found_when_asked(plates: Tables, tmp_path: Path, codec: str) -> None:
    made = packed(plates, tmp_path / "store", codec=codec)
    name = "test/RPE-03/Plate4"
    path, stem = made.file(name, 8), f"{name}/B02_s2"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    faults = check_dataset(made.root, progress=False)
    mine = faults[faults["file"].str.contains(name)]
    assert any(place.endswith("B02_s2") for place in mine["file"]) and str(path) in set(mine["file"])
    with pytest.raises(InputError, match="B02_s2: .*;"):
        check.verify(made.root, progress=False)
    with pytest.raises(InputError, match=rf"8{made.codec.suffix}: the pixels of .* are damaged; delete its folder in the store"):
        [packed_store.Store(made.root).read(f"{name}/{site}") for site in ("B02_s1", "B02_s2")]
    path.write_bytes(content[:-40])
    with pytest.raises(InputError, match=rf"8{made.codec.suffix}: is cut short; delete its folder in the store, then pack"):
        read_site(made.root, stem)
    path.unlink()
    with pytest.raises(InputError, match=rf"{stem}|No such file"):
        packed_store.Store(made.root).read(stem)


def test_a_semicolon_in_a_path_ends_no_problem(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "a; b", cell_types=("RPE",))
    path = made.file("test/RPE-03/Plate4", 8)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        check.verify(made.root, progress=False)
    stem = "test/RPE-03/Plate4/B02_s2"
    assert error.value.what == f"{path}: the pixels of {stem} are damaged" and error.value.cure.startswith("delete its folder in the store")


def test_check_of_a_store_finds_what_check_of_the_images_finds(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    lines = check_dataset(made.root, progress=False)
    assert len(lines) == len(plates.sites) - len(drawn(plates)) + 2  # whoever drew no image, and the two that lost some
    assert set(lines["problem"]) == {"was not packed", "lacked channels 5, 6 when it was packed"}


def test_pixels_are_looked_at_once(plates: Tables, tmp_path: Path) -> None:
    """A training reads a site in every epoch, and plain pixels faster than it can look at them."""
    made = packed(plates, tmp_path / "store", codec="raw")
    stem, (part, row) = "test/RPE-03/Plate4/B02_s2", made.locate("test/RPE-03/Plate4/B02_s2")
    first = made.read(stem)
    made.part(part).crc32[8][row] ^= 1
    assert np.array_equal(made.read(stem), first)
    with pytest.raises(InputError, match="the pixels of test/RPE-03/Plate4/B02_s1 are damaged"):
        made.part(part).crc32[8][1 - row] ^= 1
        made.read("test/RPE-03/Plate4/B02_s1")


def test_names_that_are_exchanged_in_an_index_are_found(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    path = made.root / "test/RPE-03/Plate4" / packed_store.INDEX
    path.write_text(path.read_text().replace("B02_s1", "B02_s3"))
    with pytest.raises(InputError, match="sites.json: is no index of a store; delete its folder in the store, then pack"):
        packed_store.Store(made.root).read("test/RPE-03/Plate4/B02_s2")


@pytest.mark.parametrize("change", [{"places": {"8": [0]}}, {"places": {"8": [9, 1, 5]}}, {"crc32": {}}, {"sites": None}, {"places": 3}, {"places": {"8": [-5, 1, 5]}}])
def test_an_index_that_does_not_fit_is_refused(plates: Tables, tmp_path: Path, change: dict) -> None:
    made = packed(plates, tmp_path / "store", cell_types=("RPE",))
    path = made.root / "train/RPE-01/Plate1" / packed_store.INDEX
    index = Receipt.read(path)
    replace(index, details={**index.details, **change}).write()
    with pytest.raises(InputError, match=r"sites.json: is no index of a store( \(.*\))?; delete its folder in the store, then pack"):
        packed_store.Store(made.root).read("train/RPE-01/Plate1/B02_s1")
    for told, match in (({"store": 99}, "is no store that this version reads"), ({"parts": [1]}, "does not say what the store holds"),
                        ({"shapes": {"abc": [6, 8, 8]}}, "does not say"), ({"shapes": {}}, "does not say"),
                        ({"shapes": {"8": [6, 8, 8]}, "parts": {"a": {"folder": "a"}}}, "does not say"),
                        ({"parts": {}, "codec": "jpeg"}, "no codec 'jpeg'; choose one of")):
        edit_store(made.root, told)
        with pytest.raises(InputError, match=match):
            read_site(made.root, "train/RPE-01/Plate1/B02_s1")
        Receipt(made.root / packed_store.FILE, {"store": 1, "codec": "raw", "suffixes": [], "shapes": {}}, details={"parts": {}}).write()


def edit_store(root: Path, told: dict) -> None:
    """Have store.json say something else, as if it had been written so."""
    receipt = Receipt.read(root / packed_store.FILE)
    details = {name: value for name, value in told.items() if name == "parts"}
    identity = {name: value for name, value in told.items() if name != "parts"}
    replace(receipt, identity={**receipt.identity, **identity}, details={**receipt.details, **details}).write()


def test_a_store_of_something_else_is_refused(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store")
    with pytest.raises(InputError, match="holds a store of sizes 8×8, not 4×4; choose"):
        pack.pack(pack.plan_pack(plates.root, sizes=(4,)), made.root, progress=False)
    with pytest.raises(InputError, match="holds files that no packing wrote; choose another folder$"):
        pack.pack(pack.plan_pack(plates.root), plates.root, progress=False)
    (plates.root / "pixel_stats.csv").write_text("id_code\n")
    (made.root / "pixel_stats.csv").write_text("id_code,experiment\n")
    with pytest.raises(InputError, match="pixel_stats.csv: differs from .*; choose"):
        pack.pack(pack.plan_pack(plates.root), made.root, progress=False)


def test_what_nobody_packed_is_named(plates: Tables, tmp_path: Path) -> None:
    made = packed(plates, tmp_path / "store", cell_types=("HUVEC",))
    for stem, channel in ((HALF, 5), (GONE, 1), ("test/RPE-03/Plate4/B02_s2", 1)):
        with pytest.raises(InputError, match=rf"{stem}_w{channel}\.png: was not packed into this store; pack it"):
            read_site(made.root, stem)
    with pytest.raises(InputError, match="_red.png: was not packed"):
        read_site(made.root, "train/HUVEC-01/Plate2/B02_s1", channels=("_red.png",))


def test_room_is_asked_for_and_kaggle_is_thought_of(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pack.plan_pack(plates.root, codec="raw", sizes=(8, 4))
    lines = pack.size_lines(plan)
    assert [line.split()[0] for line in lines] == ["HUVEC", "RPE", "together", "note:"]
    assert lines[3] == f"note: sites without all of their images are left out: {plan.left_out:,}"
    assert plan.left_out == len(plates.sites) - len(drawn(plates)) + 2
    assert plan.bytes == len(plan.sites) * 6 * (64 + 16)
    monkeypatch.setattr(pack, "KAGGLE_BYTES", 6 * 80 * 25)
    assert "there fits: --cell-type RPE, or --sizes 4" in pack.size_lines(plan)[-1]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 100}))
    with pytest.raises(InputError, match="packing needs .* free; free some space, or pack less"):
        pack.pack(plan, tmp_path / "store", progress=False)


def test_settings_may_change_while_nothing_is_packed(plates: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the line that says there is no room advises; no image has been read then."""
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 100}))
        with pytest.raises(InputError, match="or pack less: --cell-type NAME, --sizes PX"):
            packed(plates, tmp_path / "store")
    assert packed(plates, tmp_path / "store", sizes=(4,)).sizes == [4]
    (tmp_path / "store/store.json").unlink()
    with pytest.raises(InputError, match="holds files that no packing wrote"):
        packed(plates, tmp_path / "store")


def test_only_files_are_taken_for_tables(plates: Tables, tmp_path: Path) -> None:
    (plates.root / "old.csv").mkdir()
    (plates.root / "._train.csv").write_bytes(b"\0\5\26\7")
    os.mkfifo(plates.root / "scores.csv")
    made = packed(plates, tmp_path / "store").root
    assert {path.name for path in made.glob("*.csv")} == {path.name for path in plates.root.glob("[a-z]*.csv") if path.is_file()}


def test_a_name_that_is_not_utf8_stops_no_packing(plates: Tables, tmp_path: Path) -> None:
    (plates.root / os.fsdecode(b"train/RPE-02/Plate2/\xff.png")).write_bytes(b"")
    made = packed(plates, tmp_path / "store", cell_types=("RPE",))
    assert made.locate("train/RPE-02/Plate2/B02_s1") is not None


def test_a_damaged_image_is_named_and_leaves_no_part(plates: Tables, tmp_path: Path) -> None:
    path = channel_path(plates.root, "train/RPE-01/Plate3/B02_s1", 4)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"RPE-01/Plate3/B02_s1_w4\.png: is cut short or damaged"):
        pack.pack(pack.plan_pack(plates.root), tmp_path / "store", progress=False)
    assert not list((tmp_path / "store/train/RPE-01").glob("Plate3/*"))


def test_a_chunk_lies_in_its_folder_and_is_a_file(plates: Tables, tmp_path: Path) -> None:
    """As OME-Zarr has them: a file for each site."""
    made = packed(plates, tmp_path / "store", codec="raw", cell_types=("RPE",))
    path, stem = made.root / "train/RPE-01/Plate1" / packed_store.INDEX, "train/RPE-01/Plate1/B02_s1"
    index = Receipt.read(path)
    chunk = path.parent / "chunk"
    chunk.write_bytes(made.read(stem).tobytes())
    (tmp_path / "outside").write_bytes(chunk.read_bytes())
    names = {"chunk": None, "../../../../outside": "is no index of a store", str(tmp_path / "outside"): "is no index of a store",
             "pipe": "pipe: is no regular file; put the file itself there", "zero": "zero: is no regular file", "none": "No such file"}
    os.mkfifo(path.parent / "pipe")
    (path.parent / "zero").symlink_to("/dev/zero")
    for name, refusal in names.items():
        replace(index, details={**index.details, "places": {}, "chunks": {"8": [name] * len(index.details["sites"])}}).write()
        again = packed_store.Store(made.root)
        if refusal is None:
            assert np.array_equal(again.read(stem), made.read(stem))
        else:
            with pytest.raises(InputError, match=refusal):
                again.read(stem)


@pytest.mark.parametrize(("told", "match"), [
    ({"shapes": {"8": [6, -8, 8]}}, "tells of images of 6x-8x8, not of channels, rows and columns, 1,073,741,824 bytes in all at most; delete the whole"),
    ({"shapes": {"8": [6, 10**9, 10**9]}}, "tells of images of 6x1000000000x1000000000, not of"),
    ({"shapes": {"8": [6, 8]}}, "tells of images of 6x8, not of"),
    ({"shapes": {"8": "688"}}, r"does not say what the store holds \(shapes.8: input should be a valid list\); delete the whole folder of the store, then pack"),
    ({"codec": ["raw"]}, r"does not say what the store holds \(codec: input should be a valid string\)"),
    ({"suffixes": "_w1.png"}, "suffixes: input should be a valid list"),
    ({"parts": {"../other": {"folder": "a", "digest": "", "bytes": {}}}}, "'../other' does not name a file inside the store; delete the whole"),
    ({"parts": {"a": {"folder": "a", "digest": "", "bytes": {"/etc/passwd": 1}}}}, "'/etc/passwd' does not name a file inside"),
    ({"parts": {"a": {"folder": "a", "digest": "", "bytes": {"8.npy": "1"}}}}, "bytes.8.npy: input should be a valid int"),
    ({"shapes": {"8": [6, 8, 8], "4": [6, 4, 4]}}, "sites.json: lacks sizes that store.json names; delete its folder"),
])  # fmt: skip
def test_a_store_json_of_another_shape_is_refused(plates: Tables, tmp_path: Path, told: dict, match: str) -> None:
    made = packed(plates, tmp_path / "store", codec="raw", cell_types=("RPE",))
    edit_store(made.root, told)
    with pytest.raises(InputError, match=match):
        packed_store.Store(made.root).read("train/RPE-01/Plate1/B02_s1")


@pytest.mark.parametrize("codec", packed_store.CODECS)
@pytest.mark.parametrize("end", [10**6, 10**15, 10**30])
def test_places_beyond_all_bounds_take_no_memory(plates: Tables, tmp_path: Path, codec: str, end: int) -> None:
    made = packed(plates, tmp_path / "store", codec=codec, cell_types=("RPE",))
    path = made.root / "train/RPE-01/Plate1" / packed_store.INDEX
    index = Receipt.read(path)
    places = index.details["places"]["8"]
    replace(index, details={**index.details, "places": {"8": [end + row for row in places]}}).write()
    with pytest.raises(InputError, match="is cut short|is no index of a store"):
        packed_store.Store(made.root).read("train/RPE-01/Plate1/B02_s1")
    replace(index, details={**index.details, "places": {"8": [places[0], *[end] * len(index.details["sites"])]}}).write()
    if codec != "raw":
        with pytest.raises(InputError, match="the pixels of train/RPE-01/Plate1/B02_s1 are damaged|is no index of a store"):
            packed_store.Store(made.root).read("train/RPE-01/Plate1/B02_s1")

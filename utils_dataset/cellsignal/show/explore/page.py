"""explore.html: the wells of a run on plate maps and on a map of embeddings, self-contained; plain JavaScript, because it is a hundredth of Plotly's bundle."""

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

from cellsignal import files
from cellsignal.data.simulated import shown, titled
from cellsignal.data.tables.wells import Tables, read_tables
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.show import html
from cellsignal.show.explore import maps, thumbnails
from cellsignal.show.explore.maps import WellMap
from cellsignal.show.explore.thumbnails import Sheets
from cellsignal.show.explore.wells import explored_wells, outcomes
from cellsignal.tasks import RXRX1

PAGE = "explore.html"
EMBEDDINGS = "embeddings.parquet"
RUNNING_EMBEDDINGS = "embeddings.running.parquet"  # of the same networks under running statistics, if somebody wrote them
MAX_BYTES = 4_900_000  # of the page: images get what its tables leave
MAX_SET = 6  # siRNAs of a prediction set that are named
OUTCOMES = ["right", "wrong", "unknown", "no answer", "positive_control", "negative_control"]
TYPES = ["treatment", "positive_control", "negative_control"]
TEMPLATE, SCRIPT = (Path(__file__).with_name(f"page.{kind}") for kind in ("html.jinja", "js"))


def write_page(run: Path, *, plate_groups: Sequence[Sequence[int]] | None = None, data: Path | None = None) -> Path | None:
    """Write `run`/explore.html, atomic; None, and no such file, where no well has an answer.

    Reads answers.csv, submission.confidence.csv, submission.sets.parquet, embeddings.parquet and RUNNING_EMBEDDINGS, and tables and
    images in `data`. What is missing is left out and named on the page. Titles say it if simulated data are shown
    (`data.simulated.showing`).
    """
    tables, notes = _tables(data)
    embeddings, note = maps.read_embeddings(run / EMBEDDINGS)
    wells, more = explored_wells(run, tables, embeddings)
    notes += [note] * bool(note) + more
    path = run / PAGE
    if wells.empty:
        path.unlink(missing_ok=True)
        return None
    running, note = _running_embeddings(run) if len(embeddings) else (embeddings, "")
    notes += [note] * bool(note)
    networks = maps.networks(embeddings.set_index("id_code")).reindex(wells["id_code"]) if len(embeddings) else pd.Series(np.nan, index=wells["id_code"])
    well_maps, note = _well_maps(embeddings, running, wells)
    notes += [note] * bool(note)
    content = page_data(wells, well_maps, networks.to_numpy(), plate_groups=plate_groups or [])
    if len(running) and len(_json(content)) > MAX_BYTES:
        content = page_data(wells, _well_maps(embeddings, running.iloc[:0], wells)[0], networks.to_numpy(), plate_groups=plate_groups or [])
        notes.append("There are no maps under running statistics: with them the page would grow too large.")
    sheets = Sheets()
    if tables is not None:
        sheets = thumbnails.plate_sheets(wells, tables, max_bytes=MAX_BYTES - len(_json(content)))
        notes += _image_notes(sheets, wells)
    _add_images(content, sheets, wells)
    files.write_text(path, render(content, f"The wells of {run.name}", notes=notes, sheets=list(sheets.uris.values())))
    return path


def _tables(data: Path | None) -> tuple[Tables | None, list[str]]:
    missing = "There are no images of wells: the plates are not where this page was written."
    try:
        return (None, [missing]) if data is None or not data.is_dir() else (read_tables(data), [])
    except InputError:
        return None, ["There are no images of wells: the tables of the plates cannot be read."]


def _running_embeddings(run: Path) -> tuple[pd.DataFrame, str]:
    """The table RUNNING_EMBEDDINGS, and ""; without rows, and why, where no receipt says that the weights of the run's own table made it."""
    if not (run / RUNNING_EMBEDDINGS).exists():
        return pd.DataFrame(), ""
    own, running = (Receipt.find(run / f"{name}.json") for name in (EMBEDDINGS, RUNNING_EMBEDDINGS))
    if own and running and own.details.get("weights") == running.details.get("weights"):
        return maps.read_embeddings(run / RUNNING_EMBEDDINGS)[0], ""
    again = f"cellsignal embed {run.name} --experiments scored --statistics running --out {run.name}/{RUNNING_EMBEDDINGS}"
    return pd.DataFrame(), f"There are no maps under running statistics: by its receipt {RUNNING_EMBEDDINGS} was made by other weights than {EMBEDDINGS}, or it has none; write it again with {again}"


def _well_maps(embeddings: pd.DataFrame, running: pd.DataFrame, wells: pd.DataFrame) -> tuple[list[WellMap], str]:
    """The maps of both tables of embeddings, where they have rows, and why one is left out, else ""."""
    well_maps, _ = maps.well_maps(running, wells, prefix="running statistics, ") if len(running) else ([], "")
    more_maps, note = maps.well_maps(embeddings, wells, prefix="the run's statistics, " * bool(well_maps)) if len(embeddings) else ([], "")
    return well_maps + more_maps, note


def _image_notes(sheets: Sheets, wells: pd.DataFrame) -> list[str]:
    plates = wells.groupby(["experiment", "plate"]).ngroups
    if sheets.plates_left_out:
        return [f"{len(sheets.uris)} of {plates} plates have images of their wells here: for more the page would grow too large."]
    return [] if sheets.uris else ["There are no images of wells: none could be read."]


def page_data(wells: pd.DataFrame, well_maps: Sequence[WellMap], networks: np.ndarray, *, plate_groups: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the page's script reads, a list of values per column of `wells` (see `explored_wells`); numbers replace repeated names.

    `networks`: the name of each well's network, NaN without embedding.
    """
    plates = wells.drop_duplicates(["experiment", "plate"])
    experiments, cell_types = (list(dict.fromkeys(wells[name])) for name in ("experiment", "cell_type"))
    keys = dict(zip(zip(plates["experiment"], plates["plate"]), range(len(plates))))
    group_of = {sirna: number for number, group in enumerate(plate_groups) for sirna in group}
    sirnas = wells["sirna"].fillna(wells["call"])
    codes, names = pd.factorize(networks, use_na_sentinel=True)
    return {
        "simulated": shown(),
        "columns": thumbnails.COLUMNS,
        "untreated": RXRX1.negative_control,
        "outcomes": OUTCOMES,
        "types": TYPES,
        "cell_types": cell_types,
        "experiments": experiments,
        "held_out": [experiments.index(name) for name in wells.loc[wells["split"] == "held_out", "experiment"].unique()],
        "networks": [str(name) for name in names],
        "plates": [{"experiment": experiments.index(row.experiment), "number": int(row.plate), "cell_type": cell_types.index(row.cell_type), "sheet": None}
                   for row in plates.itertuples()],
        "wells": {
            "plate": [keys[key] for key in zip(wells["experiment"], wells["plate"])],
            "place": [24 * (ord(well[0]) - ord("A")) + int(well[1:]) - 1 for well in wells["well"]],
            "type": wells["well_type"].map(TYPES.index).tolist(),
            "outcome": outcomes(wells).map(OUTCOMES.index).tolist(),
            "sirna": _integers(wells["sirna"]),
            "call": _integers(wells["call"]),
            "confidence": _integers((1000 * wells["confidence"]).round()),
            "group": _integers(sirnas.map(group_of)),
            "set": [None if not isinstance(known, list | np.ndarray) else [len(known), [int(sirna) for sirna in known[:MAX_SET]]] for known in wells["set"]],
            "network": [None if code < 0 else int(code) for code in codes],
            "image": [None] * len(wells),
        },
        "maps": [_map_data(each, wells, codes, list(names)) for each in well_maps],
    }  # fmt: skip


def _map_data(well_map: WellMap, wells: pd.DataFrame, codes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    return {
        "name": well_map.name,
        "x": _integers(pd.Series(1000 * well_map.positions[:, 0]).round()),
        "y": _integers(pd.Series(1000 * well_map.positions[:, 1]).round()),
        "neighbours": well_map.neighbours.tolist(),
        "shares": [[round(share, 3) for share in well_map.shares.get(name, (0, 0))] for name in names],
        "notes": [_neighbour_note(well_map.neighbours[:, 0], wells, codes == code) for code in range(len(names))],
    }


def _neighbour_note(nearest: np.ndarray, wells: pd.DataFrame, chosen: np.ndarray) -> str:
    """How many wells of a network have their nearest neighbour on the same plate, and how many treatments one of the same siRNA."""
    rows = np.flatnonzero(chosen & (nearest >= 0))
    if not len(rows):
        return ""
    plates = (wells["experiment"] + "_" + wells["plate"].astype(str)).to_numpy()
    same_plate = np.mean(plates[rows] == plates[nearest[rows]])
    sirnas = wells["sirna"].to_numpy(dtype=float, na_value=np.nan)
    known = rows[(wells["well_type"].to_numpy()[rows] == "treatment") & ~np.isnan(sirnas[rows])]
    text = f"The most similar well lies on the same plate for {100 * same_plate:.0f} % of the wells"
    return f"{text}{f', and has the same siRNA for {100 * np.mean(sirnas[known] == sirnas[nearest[known]]):.0f} % of the treatments' if len(known) else ''}."


def _add_images(content: dict[str, Any], sheets: Sheets, wells: pd.DataFrame) -> None:
    numbers = {key: number for number, key in enumerate(sheets.uris)}
    for each in content["plates"]:
        each["sheet"] = numbers.get((content["experiments"][each["experiment"]], each["number"]))
    content["wells"]["image"] = [sheets.numbers.get(name) for name in wells["id_code"]]


def _integers(values: pd.Series) -> list[int | None]:
    return [None if pd.isna(value) else int(value) for value in values]


def render(content: dict[str, Any], title: str, *, notes: Sequence[str], sheets: Sequence[str]) -> str:
    """The page; all text is escaped, and the one script in it is the one whose digest its policy names, so that no other runs."""
    script = SCRIPT.read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=titled(title),
        style=Markup(html.STYLE),
        banner=html.banner() if shown() else "",
        notes=notes,
        columns=thumbnails.COLUMNS,
        sheets=[Markup(uri) for uri in sheets],
        data=Markup(_json(content).replace("<", "\\u003c")),  # no text in it can end its element
        script=Markup(script),
        script_digest=Markup(b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)

"""One page about a run: the ladder, the curves, the plates, and how it was made."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from cellsignal import files, shapes
from cellsignal.data import simulated
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.show import html
from cellsignal.show.curves import curves
from cellsignal.show.ladder import experiment_dots, ladder, rungs_of_split
from cellsignal.show.multilabel import label_ladder, label_parts
from cellsignal.show.style import blank_figure

SPLITS = {"test": "test wells", "held_out": "held-out wells"}
THEIRS = {  # beside the column of Brodt's figures: whether ours are of simulated data
    True: "His figures and ours come from different data: compare the order of the gains, not their size.",
    False: "His figures are of the competition's test wells: where ours are of others, compare the order of the gains, not their size.",
}
PLATES = {
    "wells": "An untreated well of each cell type: the composite and its channels",
    "channel_means": "Mean of each channel by experiment: the batch effect",
    "batch_effect": "Control wells by their pixel statistics: experiment against siRNA",
    "groups": "Plate groups and their rotation",
    "sites": "Sites of frequent classes: the composite and its channels",
    "classes": "How often each class occurs",
    "companions": "Which labels go together",
    "folds": "Sites of each class in each fold",
}


def write_report(run: Path) -> Path:
    """Write `run`/report.html, self-contained and atomic; a missing part is named, never fatal.

    Reads recipe.json, metrics.json, seconds.json, weights/*/{model,final,plain}.json, eda/*.png.
    """
    run = Path(run)
    metrics, trouble = _read(run / "metrics.json", shapes.Metrics)
    with simulated.showing((metrics or {}).get("simulated", simulated.is_simulated(run / "data"))):
        parts = [
            *BODIES[(metrics or {}).get("metric", "accuracy")](run, metrics or {}, trouble),
            _training(run),
            _plates(run),
            _notes((metrics or {}).get("notes"), trouble),
            _files(run),
            _seconds(run),
            _recipe(run),
        ]
        files.write_text(run / "report.html", html.page(f"cellsignal: {run.name}", filter(None, parts)))
    return run / "report.html"


def _screen(run: Path, metrics: dict, trouble: str) -> Iterator[str]:
    """What a screen of wells is about: the ladder, accuracies, and how each experiment was decided."""
    rungs = metrics.get("ladder", [])
    yield _head(run, rungs)
    yield _ladder(rungs, metrics.get("floor"), theirs=metrics.get("brodt", {}), trouble=trouble, note=metrics.get("statistics_note", ""))
    yield from _accuracies(rungs)
    yield from _routes(metrics.get("experiments", []), error=metrics.get("calibration_error"))


# By the metric that metrics.json names; without one it is accuracy.
BODIES: dict[str, Callable[[Path, dict, str], Iterator[str]]] = {"accuracy": _screen, "macro_f1": label_parts}


def _read(path: Path, shape: Any) -> tuple[Any, str]:
    """A JSON file of a shape and, where it cannot be read or is of another one, None and the reason."""
    try:
        return files.read_json(path, shape), ""
    except InputError:
        return None, _trouble(path)


def _trouble(path: Path) -> str:
    return f"{path.name} is {'damaged' if path.exists() else 'not there yet'}."


def _head(run: Path, rungs: list[dict]) -> str:
    """The name of the run and the last raw and assigned accuracies."""
    boxes = []
    for kind in ("raw", "assigned"):
        for row in [row for row in rungs_of_split(rungs) if row["kind"] == kind][-1:]:
            label = f"{kind} accuracy ({row['rung']}), {SPLITS.get(row['split'], row['split'])}"
            boxes.append(html.number(f"{row['accuracy']:.3f}", label, kind=kind))
    return html.head("cellsignal", f"Run {run.name}", boxes)


def _ladder(rungs: list[dict], floor: dict | None, *, theirs: dict, trouble: str, note: str) -> str:
    """One trick a rung: the figure for the wells that count most, a table for every split."""
    if not rungs:
        return html.section("The ladder", html.paragraph(trouble or "No rungs yet.", quiet=True))
    words = (
        "Each rung adds one idea. Raw accuracy is the network's own, well by well; assigned accuracy "
        "also uses the design of the plates, so the two are never compared in one column."
    )
    figure = ladder(rungs, floor=floor and floor["accuracy"])
    return html.section(
        "The ladder",
        html.paragraph(words),
        *[html.paragraph(f"{note[:1].upper()}{note[1:]}.")] * bool(note),
        html.image(figure.png(), "accuracy of each rung"),
        *(_rung_table(split, rungs_of_split(rungs, split), theirs=theirs) for split in _splits(rungs)),
        _floor(floor),
    )


def _splits(rungs: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["split"] for row in rungs))


def _rung_table(split: str, rows: list[dict], *, theirs: dict) -> str:
    """One row a rung; Brodt's leaderboard accuracies beside the test wells, where he has such a rung."""
    theirs = theirs if split == "test" else {}
    cells = []
    for rung in dict.fromkeys(row["rung"] for row in rows):
        ours = {row["kind"]: float(row["accuracy"]) for row in rows if row["rung"] == rung}
        his = " / ".join(f"{value:.2f}" for value in theirs.get(rung, ()))
        cells.append([rung, ours.get("raw"), ours.get("assigned"), *[his] * bool(theirs)])
    names = ["rung", "raw accuracy", "assigned accuracy", *["Brodt, leaderboard, public / private"] * bool(theirs)]
    table = html.table(names, cells, kinds=["", "raw", "assigned", *[""] * bool(theirs)])
    caveat = html.paragraph(THEIRS[simulated.shown()], quiet=True) if theirs else ""
    return html.subsection(SPLITS.get(split, split).capitalize(), table, caveat)


def _floor(floor: dict | None) -> str:
    if not floor:
        return html.paragraph("No linear model to compare with: it needs pixel statistics of every well, and two siRNAs or more to learn.", quiet=True)
    words = "Floor, raw: a logistic regression on channel means and standard deviations, standardised by plate, reaches"
    return html.paragraph(f"{words} {floor['accuracy']:.3f}.")


def _accuracies(rungs: list[dict]) -> Iterator[str]:
    """Accuracy by cell type and by experiment, for the wells that count most."""
    rows = rungs_of_split(rungs)
    names = sorted({name for row in rows for name in row.get("by_cell_type", {})})
    if not names:
        return
    tables = []
    for kind in ("raw", "assigned"):
        some = [row for row in rows if row["kind"] == kind]
        cells = [[name, *(row["by_cell_type"].get(name) for row in some)] for name in names]
        header, kinds = ["cell type", *(row["rung"] for row in some)], ["", *[kind] * len(some)]
        if some:
            tables.append(html.subsection(f"{kind.capitalize()} accuracy", html.table(header, cells, kinds=kinds)))
    yield html.section("By cell type", *tables)
    last = [[row for row in rows if row["kind"] == kind][-1:] for kind in ("raw", "assigned")]
    figure = experiment_dots(sum(last, []))
    yield html.section("By experiment", html.image(figure.png(), "accuracy of each experiment"))


def _routes(experiments: list[dict], *, error: float | None) -> Iterator[str]:
    """How the answers of each test experiment came about."""
    if not experiments:
        return
    words = (
        "What was used to decide: the network alone (raw), each siRNA once (one-to-one), the plate groups, or a known layout. "
        "Certainty is the posterior probability of the groups' order on plates 1, 2, …; surprise tells by how many bits "
        "the scores like an order better that is no rotation seen in training."
    )
    if error is not None:
        words += f" Stated and true probability of the answers differ by {error:.3f} on average (expected calibration error)."
    cells = [
        [row["experiment"], row["route"], " ".join(map(str, row["group_on_plate"] or [])), row["group_confidence"],
         row["surprise_bits"], row["note"]] for row in experiments
    ]
    names = ["experiment", "route", "groups on plates", "certainty", "surprise, bits", "note"]
    yield html.section("How each experiment was decided", html.paragraph(words), html.table(names, cells))


def _training(run: Path) -> str:
    """Curves of each network: controls first, then treatments, phase by phase."""
    recipe, _ = _read(run / "recipe.json", shapes.Description)
    parameters = (recipe or {}).get("parameters", {})
    wanted = parameters.get("wells", {}).get("cell_types")  # an earlier run may have trained others, whose weights stay
    folders = [folder for folder in sorted((run / "weights").glob("*/")) if not wanted or folder.name in wanted]
    parts = [part for folder in folders for part in _curves(folder, parameters)]
    return html.section("Training", *(parts or [html.paragraph("No weights yet.", quiet=True)]))


def _curves(folder: Path, parameters: dict) -> Iterator[str]:
    """One figure per network; its last JSON holds the history of all earlier phases."""
    training = parameters.get("training", {})
    last = "final" if training.get("final_epochs") else "model"
    for name in [last, *["plain"] * bool(training.get("ablate_virtual_batch"))]:
        path = folder / f"{name}.json"
        card = Receipt.find(path, shapes.Card)
        if card is None:
            yield html.paragraph(f"{folder.name}: {_trouble(path)}", quiet=True)
        elif history := card.details.get("history"):
            title = folder.name if name != "plain" else f"{folder.name}, treatments without the virtual batch"
            yield html.image(curves(history, title=title).png(), f"training of {title}")


def _plates(run: Path) -> str:
    """The main figures of the first notebook."""
    paths = {name: run / "eda" / f"{name}.png" for name in PLATES}
    figures = [
        html.subsection(PLATES[name], html.image(path.read_bytes(), PLATES[name]))
        for name, path in paths.items()
        if path.is_file()
    ]
    missing = html.paragraph("No figures yet: the notebook 1-eda makes them.", quiet=True)
    return html.section("The plates", *(figures or [missing]))


def _notes(notes: list[str] | None, trouble: str) -> str:
    """What was not as it should be, such as missing sites; None where nobody looked."""
    lines = [html.paragraph(note) for note in notes or []]
    nothing = trouble or ("Not noted." if notes is None else "Nothing was missing.")
    return html.section("Notes", *(lines or [html.paragraph(nothing, quiet=True)]))


def _seconds(run: Path) -> str:
    seconds, trouble = _read(run / "seconds.json", shapes.Seconds)
    if trouble:
        return ""
    return html.section("Time", html.table(["step", "seconds"], [[k, f"{v:.0f}"] for k, v in seconds.items()]))


def _recipe(run: Path) -> str:
    """Every parameter and version that made the run."""
    recipe, trouble = _read(run / "recipe.json", shapes.Description)
    if trouble:
        return html.section("Recipe", html.paragraph(trouble, quiet=True))
    plain = {key: value for key, value in recipe.items() if not isinstance(value, dict)}
    groups = {key: value for key, value in recipe.items() if isinstance(value, dict)} | {"made with": plain}
    return html.section("Recipe", *(_group(name, values) for name, values in groups.items() if values))


def _group(name: str, values: dict) -> str:
    rows = [[key, _text(value)] for key, value in values.items()]
    return html.subsection(name.capitalize(), html.table(["name", "value"], rows))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _files(run: Path) -> str:
    """Links to the executed notebooks and the submission."""
    there = [*sorted((run / "notebooks").glob("*.html")), run / "submission.csv", run / "submission.confidence.csv", run / "metrics.json"]
    targets = [path.relative_to(run).as_posix() for path in there if path.is_file()]
    names = [(quote(target), target) for target in targets]
    return html.section("Files", html.links(names) if names else html.paragraph("None yet.", quiet=True))


# The ladder of a run as one figure, for any metric.


# By the metric that a metrics.json names, without one accuracy: under which key it has its rungs, and who draws them.
PICTURES: dict[str, tuple[str, Callable[[list[dict]], Figure]]] = {"accuracy": ("ladder", ladder), "macro_f1": ("rungs", label_ladder)}


def ladder_figure(metrics: Mapping[str, Any]) -> Figure:
    """A bar for each rung, from the content of a metrics.json; says so when there is none."""
    key, draw = PICTURES[metrics.get("metric", "accuracy")]
    return draw(metrics[key]) if metrics.get(key) else blank_figure("No rung yet.")

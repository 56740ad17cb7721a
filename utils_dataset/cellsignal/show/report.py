"""The report of a run: the ladder, training curves, plates, and the recipe."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from cellsignal import files, json_schemas
from cellsignal.data import simulated
from cellsignal.data.control_separation import MIN_AGREEMENT, MIN_EFFECT_SIZE, MIN_WELLS
from cellsignal.errors import InputError
from cellsignal.receipts import Receipt
from cellsignal.show import html
from cellsignal.show.curves import curves
from cellsignal.show.explore.page import write_page
from cellsignal.show.results.ladder import estimated_accuracy, experiment_dots, ladder, last_rungs, rejection_curve, rungs_of_split, set_sizes
from cellsignal.show.results.multilabel import label_ladder, label_parts
from cellsignal.show.results.splits import accuracy_by_split, split_parts
from cellsignal.show.style import blank_figure

SPLITS = {"test": "test wells", "held_out": "held-out wells"}
SPLIT_WORDS = {
    "test": "Wells of experiments whose labels no network has seen.",
    "held_out": "Labelled wells that training left out: they tell how good it is, and calibrate the confidences.",
}
TRAINING = (
    "A recipe uses some of these phases: a network learns the controls (controls), then the treatments, with a new head alone (head), as a whole "
    "(whole), and in the last epochs from the held-out wells too (final). The accuracy is that of single sites."
)
BRODT_CAVEATS = {  # beside the column of Brodt's figures: whether ours are of simulated data
    True: "His figures and ours come from different data: compare the order of the gains, not their size.",
    False: "His figures are of the competition's test wells: where ours are of others, compare the order of the gains, not their size.",
}
WITHOUT_LABELS = (
    "A right answer lies in its plate's group of siRNAs, a wrong one only by chance. So the share of raw answers that lie in the groups of "
    "their plates tells how many are right, in wells whose siRNA nobody knows."
)
SETS = (
    "For each well the siRNAs among which the right one is, with a nominal coverage: the surer the network, the smaller the set. "
    "Experiments differ, so the observed coverage may be above or below the nominal one, most of all in a single experiment; the table names the worst."
)
SUREST = (
    "How many of the answers are right if only the surest wells are kept, and the others left undecided? "
    "Choose on this curve how many wells you can do without; where the two lines diverge, the confidences are not calibrated."
)
CONTROLS = (
    "How well the controls of each plate can be told apart, by {name}. Agreement is the correlation of its control wells with the same controls on the other plates of the cell type: "
    "near 0, they do not differ as they do elsewhere, and neither may the treatments. Effect size is the median |Cohen's d| between untreated and "
    "positive wells; if all were alike it would be {chance}, so with few untreated wells it says little. A plate is among the notes if its agreement is below {min_agreement} "
    "and the controls of its cell type differ at all, or if its effect size is below {min_effect_size} and it has at least {min_wells} wells of either kind."
)
PLATES = {
    "wells": "An untreated well of each cell type: the composite and its channels",
    "channel_means": "Mean of each channel by experiment: the batch effect",
    "batch_effect": "Control wells by their pixel statistics: experiment against siRNA",
    "groups": "Plate groups and their rotation",
    "sites": "Sites of frequent classes: the composite and its channels",
    "training_sites": "A training site of each cell type: the composite and its channels",
    "classes": "How often each class occurs",
    "companions": "Which labels go together",
    "folds": "Sites of each class in each fold",
}


def write_report(run: Path, *, data: Path | None = None) -> Path:
    """Write `run`/report.html and the page of its wells, self-contained and atomic; a missing part is named, never fatal.

    Reads recipe.json, metrics.json, seconds.json, weights/*/{model,final,plain}.json, eda/*.png, and what `explore.page.write_page`
    reads. `data`: the folder of the plates, for images of wells; else that of the run folder is taken.
    """
    run = Path(run)
    metrics, trouble = _read_or_reason(run / "metrics.json", json_schemas.Metrics)
    with simulated.showing((metrics or {}).get("simulated", simulated.is_simulated(run / "data"))):
        metric = (metrics or {}).get("metric", "accuracy")
        explored = write_page(run, plate_groups=(metrics or {}).get("plate_groups"), data=data or run / "data") if metric == "accuracy" else None
        head, *body = BODIES[metric](run, metrics or {}, trouble)
        parts = [
            head,
            _explore(explored) if explored else None,
            *body,
            _training(run, TRAINING if metric == "accuracy" else ""),
            _plates(run),
            *_controls((metrics or {}).get("controls", {})),
            _notes(run, (metrics or {}).get("notes"), trouble),
            _files(run),
            _seconds(run),
            _recipe(run),
        ]
        files.write_text(run / "report.html", html.page(f"cellsignal: {run.name}", filter(None, parts)))
    return run / "report.html"


def _wells_report(run: Path, metrics: dict, trouble: str) -> Iterator[str]:
    """The report of wells: the ladder, accuracies, and how each experiment was assigned."""
    rungs = metrics.get("ladder", [])
    yield _head(run, rungs)
    sirnas = sum(map(len, metrics.get("plate_groups") or []))
    note = ". ".join(filter(None, [metrics.get("statistics_note", ""), f"guessing among the {sirnas:,} siRNAs would have a raw accuracy of {1 / sirnas:.3f}" if sirnas else ""]))
    yield _ladder(rungs, metrics.get("linear_baseline"), brodt=metrics.get("brodt", {}), trouble=trouble, note=note)
    yield from _accuracies(rungs)
    yield from _estimated_accuracy(metrics.get("estimated_accuracy", []))
    yield from _routes(metrics.get("experiments", []), error=metrics.get("calibration_error"))
    yield from _prediction_sets(metrics.get("prediction_sets", []))
    if surest := metrics.get("most_confident_wells", []):
        yield html.section("The surest wells", html.paragraph(SUREST), html.image(rejection_curve(surest).png(), "accuracy of the wells kept"))


# By the metric that metrics.json names; without one it is accuracy.
BODIES: dict[str, Callable[[Path, dict, str], Iterator[str]]] = {"accuracy": _wells_report, "macro_f1": label_parts, "split_accuracy": split_parts}


def _read_or_reason(path: Path, shape: Any) -> tuple[Any, str]:
    """A JSON file of a shape and "", or None and the reason why it cannot be read."""
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
            wells = f"{row['wells']:,} " if "wells" in row else ""  # which files of earlier versions lack
            label = f"{kind} accuracy ({row['rung']}), {wells}{SPLITS.get(row['split'], row['split'])}"
            boxes.append(html.number(f"{row['accuracy']:.3f}", label, kind=kind))
    return html.head("cellsignal", f"Run {run.name}", boxes)


def _ladder(rungs: list[dict], baseline: dict | None, *, brodt: dict, trouble: str, note: str) -> str:
    """One trick a rung: the figure for the wells that count most, a table for every split."""
    if not rungs:
        return html.section("The ladder", html.paragraph(trouble or "No rungs yet.", quiet=True))
    words = (
        "Each rung adds one idea. Raw accuracy is the network's own, well by well; assigned accuracy "
        "also uses the design of the plates, so the two are never compared in one column."
    )
    figure = ladder(rungs, linear_baseline=baseline and baseline["accuracy"])
    return html.section(
        "The ladder",
        html.paragraph(words),
        *[html.paragraph(f"{note[:1].upper()}{note[1:]}.")] * bool(note),
        html.image(figure.png(), "accuracy of each rung"),
        *(_rung_table(split, rungs_of_split(rungs, split), brodt=brodt) for split in _splits(rungs)),
        _linear_baseline(baseline),
    )


def _splits(rungs: list[dict]) -> list[str]:
    return list(dict.fromkeys(row["split"] for row in rungs))


def _rung_table(split: str, rows: list[dict], *, brodt: dict) -> str:
    """One row a rung; Brodt's leaderboard accuracies beside the test wells, where he has such a rung."""
    brodt = brodt if split == "test" else {}
    cells = []
    for rung in dict.fromkeys(row["rung"] for row in rows):
        accuracies = {row["kind"]: float(row["accuracy"]) for row in rows if row["rung"] == rung}
        brodt_text = " / ".join(f"{value:.2f}" for value in brodt.get(rung, ()))
        cells.append([rung, accuracies.get("raw"), accuracies.get("assigned"), *[brodt_text] * bool(brodt)])
    names = ["rung", "raw accuracy", "assigned accuracy", *["Brodt, leaderboard, public / private"] * bool(brodt)]
    table = html.table(names, cells, kinds=["", "raw", "assigned", *[""] * bool(brodt)])
    caveat = html.paragraph(BRODT_CAVEATS[simulated.shown()], quiet=True) if brodt else ""
    words = html.paragraph(SPLIT_WORDS[split], quiet=True) if split in SPLIT_WORDS else ""
    return html.subsection(SPLITS.get(split, split).capitalize(), words, table, caveat)


def _linear_baseline(baseline: dict | None) -> str:
    if not baseline:
        return html.paragraph("No linear baseline: it needs pixel statistics of every well, and two siRNAs or more to learn.", quiet=True)
    words = "Linear baseline, raw: a logistic regression on channel means and standard deviations, standardised by plate, reaches"
    return html.paragraph(f"{words} {baseline['accuracy']:.3f}.")


def _accuracies(rungs: list[dict]) -> Iterator[str]:
    """Accuracy by cell type and by experiment, for the wells that count most."""
    rows = rungs_of_split(rungs)
    names = sorted({name for row in rows for name in row.get("by_cell_type", {})})
    if not names:
        return
    tables = []
    for kind in ("raw", "assigned"):
        kind_rows = [row for row in rows if row["kind"] == kind]
        cells = [[name, *(row["by_cell_type"].get(name) for row in kind_rows)] for name in names]
        header, kinds = ["cell type", *(row["rung"] for row in kind_rows)], ["", *[kind] * len(kind_rows)]
        if kind_rows:
            tables.append(html.subsection(f"{kind.capitalize()} accuracy", html.table(header, cells, kinds=kinds)))
    yield html.section("By cell type", *tables)
    figure = experiment_dots(last_rungs(rungs))
    yield html.section("By experiment", html.image(figure.png(), "accuracy of each experiment"))


def _routes(experiments: list[dict], *, error: float | None) -> Iterator[str]:
    """How the answers of each test experiment came about."""
    if not experiments:
        return
    words = (
        "What was used to decide: the network alone (raw), each siRNA once (one-to-one), the plate groups, or a known layout. "
        "The group posterior is the probability of the groups' order on plates 1, 2, …; surprise is the number of bits by which "
        "the scores favour another order over every rotation seen in training."
    )
    if error is not None:
        words += f" Stated and true probability of the answers differ by {error:.3f} on average (expected calibration error)."
    cells = [
        [row["experiment"], row["route"], " ".join(map(str, row["group_on_plate"] or [])), row["group_posterior"],
         row["surprise_bits"], row["note"]] for row in experiments
    ]
    names = ["experiment", "route", "groups on plates", "group posterior", "surprise, bits", "note"]
    yield html.section("How each experiment was decided", html.paragraph(words), html.table(names, cells))


def _estimated_accuracy(rows: list[dict]) -> Iterator[str]:
    """The accuracy of raw answers to test wells, estimated without labels, of all rungs, and of the last one by experiment."""
    if not rows:
        return
    cells = [[row["rung"], row["wells"], row["estimated_accuracy"], row["standard_error"], row["accuracy"], row["note"]] for row in rows if row["level"] == "all"]
    names = ["raw rung", "wells", "estimated accuracy", "standard error", "true accuracy", "note"]
    yield html.section("Accuracy without labels", html.paragraph(WITHOUT_LABELS), html.table(names, cells),
                       html.image(estimated_accuracy(rows).png(), "accuracy estimated without labels, by experiment"))


def _prediction_sets(rows: list[dict]) -> Iterator[str]:
    """Size and coverage of the prediction sets, by experiment, and the experiment that is covered worst."""
    if not rows:
        return
    parts = [html.paragraph(SETS), html.image(set_sizes(rows).png(), "size and coverage of the prediction sets")]
    for split in _splits(rows):
        known = [row for row in rows if row["split"] == split and row["covered"] is not None and row["experiment"] != "all"]
        worst = {row["coverage"]: row for row in sorted(known, key=lambda row: -row["covered"])}  # the last one stays
        cells = [[f"{row['coverage']:.0%}", row["mean_size"], row["covered"], *_worst_cells(worst.get(row["coverage"]))]
                 for row in rows if row["split"] == split and row["experiment"] == "all"]
        names = ["nominal coverage", "mean size of a set", "observed coverage", "worst experiment", "its coverage"]
        parts.append(html.subsection(SPLITS.get(split, split).capitalize(), html.table(names, cells)))
    yield html.section("Prediction sets", *parts)


def _worst_cells(row: dict | None) -> list[str | float | None]:
    return [None, None] if row is None else [row["experiment"], row["covered"]]


def _explore(page: Path) -> str:
    words = "Plate maps and a map of all wells with answers, with the image, the answer and the most similar wells of each: a page to explore."
    return html.section("Well by well", html.paragraph(words), html.links([(page.name, page.name)]))


def _training(run: Path, words: str) -> str:
    """Curves of each network: controls first, then treatments, phase by phase."""
    recipe, _ = _read_or_reason(run / "recipe.json", json_schemas.Description)
    parameters = (recipe or {}).get("parameters", {})
    cell_types = parameters.get("wells", {}).get("cell_types")  # an earlier run may have trained others, whose weights stay
    names = ["all"] if cell_types and parameters.get("network", {}).get("one_network") else cell_types
    folders = [folder for folder in sorted((run / "weights").glob("*/")) if not names or folder.name in names]
    parts = [part for folder in folders for part in _curves(folder, parameters)]
    return html.section("Training", *([html.paragraph(words)] * bool(words) + parts if parts else [html.paragraph("No weights yet.", quiet=True)]))


def _curves(folder: Path, parameters: dict) -> Iterator[str]:
    """One figure per network; its last JSON holds the history of all phases."""
    training = parameters.get("training", {})
    last = "final" if training.get("final_epochs") else "model"
    for name in [last, *["plain"] * bool(training.get("ablate_virtual_batch"))]:
        path = folder / f"{name}.json"
        description = Receipt.find(path, json_schemas.WeightDetails)
        if description is None:
            yield html.paragraph(f"{folder.name}: {_trouble(path)}", quiet=True)
        elif history := description.details.get("history"):
            title = folder.name if name != "plain" else f"{folder.name}, treatments without the virtual batch"
            yield html.image(curves(history, title=title).png(), f"training of {title}")


def _plates(run: Path) -> str:
    """The main figures of the first notebook."""
    paths = {name: run / "eda" / f"{name}.png" for name in PLATES}
    images = [
        html.subsection(PLATES[name], html.image(path.read_bytes(), PLATES[name]))
        for name, path in paths.items()
        if path.is_file()
    ]
    none = html.paragraph("No figures yet: the notebook 1-eda makes them.", quiet=True)
    return html.section("The plates", *(images or [none]))


def _controls(tables: Mapping[str, list[dict]]) -> Iterator[str]:
    """How the controls of each plate agree with those of other plates, by embeddings or else by channel means."""
    name, rows = next(((name, rows) for name, rows in reversed(tables.items()) if rows), ("", []))
    if not rows:
        return
    by_plate = {(row["experiment"], row["plate"]): row for row in rows}
    plates = sorted({plate for _, plate in by_plate})
    cells = [[experiment, *(by_plate.get((experiment, plate), {}).get(value) for value in ("agreement", "effect_size") for plate in plates)]
             for experiment in sorted({experiment for experiment, _ in by_plate})]
    header = ["experiment", *(f"{value}, plate {plate}" for value in ("agreement", "effect size") for plate in plates)]
    chance = [row["chance"] for row in rows if row["chance"] is not None]
    words = CONTROLS.format(name=name, chance=f"about {sum(chance) / len(chance):.2f}" if chance else "not known",
                            min_agreement=MIN_AGREEMENT, min_wells=MIN_WELLS, min_effect_size=MIN_EFFECT_SIZE)
    yield html.section("Controls", html.paragraph(words), html.table(header, cells))


def _notes(run: Path, notes: list[str] | None, trouble: str) -> str:
    """What was not as it should be, such as missing sites (None where nobody looked), and what was made with other parameters than the run has."""
    recipe, _ = _read_or_reason(run / "recipe.json", json_schemas.Description)
    lines = [html.paragraph(note) for note in (*(recipe or {}).get("notes", []), *(notes or []))]
    nothing = trouble or ("Not noted." if notes is None else "Nothing was missing.")
    return html.section("Notes", *(lines or [html.paragraph(nothing, quiet=True)]))


def _seconds(run: Path) -> str:
    seconds, trouble = _read_or_reason(run / "seconds.json", json_schemas.Seconds)
    if trouble:
        return ""
    return html.section("Time", html.table(["step", "seconds"], [[k, f"{v:.0f}"] for k, v in seconds.items()]))


def _recipe(run: Path) -> str:
    """Every parameter and version that made the run."""
    recipe, trouble = _read_or_reason(run / "recipe.json", json_schemas.Description)
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
    paths = [*sorted((run / "notebooks").glob("*.html")), run / "submission.csv", run / "submission.confidence.csv", run / "submission.sets.parquet", run / "embeddings.parquet", run / "metrics.json"]
    targets = [path.relative_to(run).as_posix() for path in paths if path.is_file()]
    names = [(quote(target), target) for target in targets]
    return html.section("Files", html.links(names) if names else html.paragraph("None yet.", quiet=True))


# The rungs of a run as one figure, for any metric.


# By the metric that a metrics.json names, without one accuracy: under which key it has its rungs, and who draws them.
RUNG_FIGURES: dict[str, tuple[str, Callable[[list[dict]], Figure]]] = {
    "accuracy": ("ladder", ladder), "macro_f1": ("rungs", label_ladder), "split_accuracy": ("splits", accuracy_by_split),
}  # fmt: skip


def rungs_figure(metrics: Mapping[str, Any]) -> Figure:
    """A bar for each rung, from the content of a metrics.json; says so when there is none."""
    key, draw = RUNG_FIGURES[metrics.get("metric", "accuracy")]
    return draw(metrics[key]) if metrics.get(key) else blank_figure("No rung yet.")

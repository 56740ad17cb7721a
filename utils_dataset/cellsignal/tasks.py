"""The tasks as data: no other code depends on which task it is."""

from dataclasses import dataclass

from cellsignal.errors import InputError

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """One competition or benchmark: its files, channels, classes and metric.

    `reader`, `metric` and `plan` are keys of registries, dicts of functions by name. What a task does not have (cell
    types, controls, class names) is left empty.
    """

    name: str
    competition: str  # its slug on Kaggle; empty for a benchmark elsewhere
    channels: tuple[str, ...]  # in file order
    suffixes: tuple[str, ...]  # how the file of each channel ends, after the stem of its site; ".png#2" is the second plane of a colour image
    colours: tuple[Colour, ...]  # 8-bit RGB of each channel in composites
    id_column: str
    label_column: str  # of the tables with answers
    answer_column: str  # of a submission
    labels: str  # of a row of the tables: "one", or "many" separated by spaces
    classes: int
    identifying_tables: tuple[tuple[str, str], ...]  # (table, column): a folder with one of these holds this task's data
    reader: str  # of the tables: run.inputs.READERS
    metric: str  # of a submission: decide.commands.SUBMISSION_METRICS
    plan: str  # which steps a run has: run.chain.plans.PLANS
    identifying_value: str = ""  # a cell that such a column then has, where another task's table has the column too
    presets: tuple[str, ...] = ()  # of the virtual microscope that draws for it
    class_names: tuple[str, ...] = ()
    cell_types: tuple[str, ...] = ()  # those with most wells first
    positive_controls: range = range(0)  # class numbers
    negative_control: int = -1  # class number of untreated wells

    def __post_init__(self) -> None:
        counts = {name: len(getattr(self, name)) for name in ("channels", "suffixes", "colours")}
        if len(set(counts.values())) > 1:
            counted = " and ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"has {counted}", where=f"task {self.name}", cure="give each channel a name, a suffix and a colour in tasks.py")

    @property
    def controls(self) -> tuple[int, ...]:
        """All control class numbers, ascending: what pretraining learns."""
        return (*self.positive_controls, *[self.negative_control] * (self.negative_control >= 0))

    @property
    def submission_columns(self) -> tuple[str, str]:
        """The header of a submission."""
        return self.id_column, self.answer_column


RXRX1 = Task(
    name="rxrx1",
    competition="recursion-cellular-image-classification",
    channels=(
        "nuclei",
        "endoplasmic reticulum",
        "actin",
        "nucleoli and RNA",
        "mitochondria",
        "Golgi",
    ),
    suffixes=tuple(f"_w{number}.png" for number in range(1, 7)),
    colours=(
        (0, 0, 255),
        (0, 255, 0),
        (255, 0, 0),
        (0, 255, 255),
        (255, 0, 255),
        (255, 255, 0),
    ),
    id_column="id_code",
    label_column="sirna",
    answer_column="sirna",
    labels="one",
    classes=1108,
    identifying_tables=(("train_controls.csv", ""), ("metadata.csv", "site_id")),
    reader="wells",
    metric="accuracy",
    plan="by cell type",
    presets=("demo", "small", "hard", "tiny"),
    cell_types=("HUVEC", "HEPG2", "RPE", "U2OS"),
    positive_controls=range(1108, 1138),
    negative_control=1138,
)

# Names in the order of the class numbers, as the competition's data page has them.
PROTEIN_ATLAS = Task(
    name="protein-atlas",
    competition="human-protein-atlas-image-classification",
    channels=("microtubules", "protein", "nucleus", "endoplasmic reticulum"),
    suffixes=("_red.png", "_green.png", "_blue.png", "_yellow.png"),
    colours=((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)),
    id_column="Id",
    label_column="Target",
    answer_column="Predicted",
    labels="many",
    classes=28,
    identifying_tables=(("train.csv", "Target"),),
    reader="sites",
    metric="macro_f1",
    plan="in folds",
    presets=("atlas-demo", "atlas-tiny"),
    class_names=(
        "Nucleoplasm", "Nuclear membrane", "Nucleoli", "Nucleoli fibrillar center", "Nuclear speckles", "Nuclear bodies",
        "Endoplasmic reticulum", "Golgi apparatus", "Peroxisomes", "Endosomes", "Lysosomes", "Intermediate filaments",
        "Actin filaments", "Focal adhesion sites", "Microtubules", "Microtubule ends", "Cytokinetic bridge", "Mitotic spindle",
        "Microtubule organizing center", "Centrosome", "Lipid droplets", "Plasma membrane", "Cell junctions", "Mitochondria",
        "Aggresome", "Cytosol", "Cytoplasmic bodies", "Rods & rings",
    ),
)  # fmt: skip

# The benchmark RxRx1-WILDS (Koh et al. 2021, arXiv 2012.07421): the public release's wells, each site scored alone, the controls as classes.
RXRX1_WILDS = Task(
    name="rxrx1-wilds",
    competition="",
    channels=RXRX1.channels[:3],
    suffixes=(".png#1", ".png#2", ".png#3"),
    colours=RXRX1.colours[:3],
    id_column="site_id",
    label_column="sirna_id",
    answer_column="sirna_id",
    labels="one",
    classes=1139,
    identifying_tables=(("metadata.csv", "dataset"),),
    identifying_value="val",
    reader="splits",
    metric="split_accuracy",
    plan="one network",
)

TASKS = {task.name: task for task in (RXRX1, PROTEIN_ATLAS, RXRX1_WILDS)}

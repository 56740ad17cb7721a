"""What a task is, as data, so that no code asks which task it is."""

from dataclasses import dataclass

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """One competition: what its channels show, what is predicted and how it is scored."""

    name: str
    competition: str  # its slug on Kaggle
    cell_types: tuple[str, ...]  # those with most wells first
    channels: tuple[str, ...]  # in file order: _w1 is the first
    colours: tuple[Colour, ...]  # 8-bit RGB of each channel in composites
    positive_controls: range  # class numbers
    negative_control: int  # class number of untreated wells
    submission_columns: tuple[str, ...]
    metric: str

    @property
    def controls(self) -> tuple[int, ...]:
        """All control class numbers, ascending: what pretraining learns."""
        return (*self.positive_controls, self.negative_control)


RXRX1 = Task(
    name="rxrx1",
    competition="recursion-cellular-image-classification",
    cell_types=("HUVEC", "HEPG2", "RPE", "U2OS"),
    channels=(
        "nuclei",
        "endoplasmic reticulum",
        "actin",
        "nucleoli and RNA",
        "mitochondria",
        "Golgi",
    ),
    colours=(
        (0, 0, 255),
        (0, 255, 0),
        (255, 0, 0),
        (0, 255, 255),
        (255, 0, 255),
        (255, 255, 0),
    ),
    positive_controls=range(1108, 1138),
    negative_control=1138,
    submission_columns=("id_code", "sirna"),
    metric="accuracy",
)

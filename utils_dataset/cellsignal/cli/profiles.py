"""The command `cellsignal profile`: what a table of profiles shows, before and after correction."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

# Everything else is imported inside the command: `--help` must not wait for pandas.


class Scale(StrEnum):
    """Which wells give each feature's mean and deviation."""

    none = "none"
    table = "table"


class Center(StrEnum):
    """What each plate is centred on."""

    none = "none"
    controls = "controls"
    plate = "plate"


class Controls(StrEnum):
    """Which controls are used."""

    negative = "negative"
    all = "all"


class Sphering(StrEnum):
    """Whose variation is made alike in all directions."""

    none = "none"
    controls = "controls"


def profile(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="Profiles, a row per well: .parquet, .csv, .csv.gz or .h5ad.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to fill.")],
    random: Annotated[Path | None, typer.Option(metavar="TABLE", help="The same wells by a network with random weights.")] = None,
    scale: Annotated[Scale, typer.Option(help="Standardise features over the whole table.")] = Scale.table,
    center: Annotated[Center, typer.Option(help="Centre each plate on its controls, or on all its wells.")] = Center.controls,
    controls: Annotated[Controls, typer.Option(help="Use untreated wells alone, or positive controls too.")] = Controls.all,
    components: Annotated[int, typer.Option(metavar="N", min=0, help="Principal components to keep; 0 keeps the features.")] = 32,
    sphering: Annotated[Sphering, typer.Option(help="Shrink the directions in which replicates of a control vary.")] = Sphering.controls,
    regularisation: Annotated[float, typer.Option(metavar="SHARE", min=0, help="Share of the mean variance to add before sphering.")] = 0.1,
    permutations: Annotated[int, typer.Option(metavar="N", min=99, max=1_000_000, help="Size of the null distributions.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the null distributions.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Correct profiles of wells, and measure them before and after.

    TABLE has the columns Metadata_Plate, Metadata_Well, Metadata_Batch, Metadata_Perturbation, Metadata_Control_Type
    (negcon, poscon, treatment, empty), and a numeric column per feature: embeddings of a network, or features of
    CellProfiler. Text columns are ignored. With Metadata_Compound and Metadata_Mechanism, accuracy by mechanism is measured too.

    Networks of different cell types (Metadata_Network) are measured one by one, and wells that a network has learnt from
    (Metadata_Split train) only where there are no others.

    Writes profiles.parquet, which is the corrected table, perturbations.csv, neighbours.csv, profile.json and a receipt.
    """
    from cellsignal.profiles import commands
    from cellsignal.profiles.settings import ProfileSettings

    settings = ProfileSettings(
        scale=scale.value, center=center.value, controls=controls.value, components=components, sphering=sphering.value,
        regularisation=regularisation, permutations=permutations, seed=seed,
    )  # fmt: skip
    commands.check_folder(out, table, random)
    results = commands.profile_table(table, settings, random=random, progress=not as_json)
    record = commands.write(results, out, table=table, random=random)
    if as_json:
        print(json.dumps(record))
        return
    print("\n\n".join([*["simulated plates"] * record["simulated"], *map(commands.as_text, results), *["note: not compared with a network with random weights; --random TABLE does"] * (random is None), f"wrote {out}"]))

"""The command `cellsignal embed`: what a run's network sees in every well, as a table."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cellsignal.errors import InputError


class Format(StrEnum):
    """Of the table."""

    parquet = "parquet"
    h5ad = "h5ad"


class Weights(StrEnum):
    """Of the network."""

    trained = "trained"
    random = "random"


class Statistics(StrEnum):
    """Of batch normalisation."""

    running = "running"
    batch = "batch"
    adapted = "adapted"
    plate_with_controls = "plate_with_controls"
    controls = "controls"
    auto = "auto"


def embed(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run folder; it stays as it is.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Table to write, with its receipt FILE.json beside it.")],
    format: Annotated[Format, typer.Option(help="h5ad is AnnData, and needs the package anndata.")] = Format.parquet,
    experiments: Annotated[str, typer.Option(metavar="NAME,...", help="all, scored (those of the submission), or names.")] = "all",
    statistics: Annotated[Statistics | None, typer.Option(help="Batch-normalisation statistics; else those of the submission.")] = None,
    network: Annotated[str, typer.Option(metavar="NAME", help="Which of the run, such as model-2; else the submission's first.")] = "",
    weights: Annotated[Weights, typer.Option(help="random: the same architecture untrained, to compare with.")] = Weights.trained,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the random weights; else 0.")] = None,
) -> None:
    """Write the embedding of every well, controls included.

    One row per well, mean over its sites, with the columns of image-based profiling (Metadata_Plate, Metadata_Well,
    Metadata_Batch, Metadata_Perturbation, Metadata_Control_Type, ..., embedding_0, ...). Where each cell type has a network
    of its own, compare wells of one cell type only.
    """
    from cellsignal.run.kernels.embed import embed_run

    if seed is not None and weights is Weights.trained:
        raise InputError("trained weights have no seed", where="--seed", cure="add --weights random, or leave it out")
    names = tuple(name.strip() for name in experiments.split(",") if name.strip())
    random_seed = seed or 0 if weights is Weights.random else None
    print(embed_run(run, out, experiments=names, statistics=statistics.value if statistics else "", network=network, random_seed=random_seed,
                    format=format.value)[1])

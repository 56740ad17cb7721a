"""The embeddings of a finished run's wells as a table: of its own network, or of one with random weights."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from cellsignal import settings
from cellsignal.budget import Budget
from cellsignal.data.simulated import RECEIPT as SIMULATION
from cellsignal.data.simulated import is_drawn, is_simulated
from cellsignal.decide.embeddings import checked_output, is_current, receipt_path, table_identity, write_embeddings
from cellsignal.decide.predict.predict import ScoringOptions, embedding_identities, score_experiments
from cellsignal.decide.predict.weights import weights_path
from cellsignal.errors import InputError, name_advice
from cellsignal.learn.networks.classifier import read_config, save_weights
from cellsignal.receipts import Receipt
from cellsignal.run.inputs import data_folder
from cellsignal.run.parameters import CheckedParameters
from cellsignal.run.kernels.prediction import EMBEDDINGS_FILE, Predictor
from cellsignal.run.recipe import check
from cellsignal.run.record.results import check_files, read_parameters
from cellsignal.run.record.session import Session
from cellsignal.tasks import RXRX1, TASKS


def embed_run(run: Path, out: Path, *, experiments: Sequence[str] = ("all",), statistics: str = "", network: str = "", random_seed: int | None = None,
              format: str = "parquet") -> tuple[pd.DataFrame | None, str]:
    """Write the embeddings of a run's wells, controls included, to `out`; returns the table and a line that says what it holds.

    `experiments`: names, "scored" for those that the submission scores, "all" for all whose cell type has a network. `statistics`:
    of batch normalisation, else the run's; `network`: a name of weights, else the submission's first. `random_seed`: of new weights
    for the same architecture, under the statistics of the plates even where the run has running ones. Embeddings that the run has
    are taken over. A killed call goes on in the folder `<out>.parts`. The table is kept, and None returned, if the same
    data, settings and code made it. InputError for what the run does not have or did not leave so, and for its own table as `out`.
    """
    out = checked_output(out, format)
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists() and not receipt_path(out).exists():
        raise InputError("is there, and has no receipt that says it is a table of embeddings", where=out, cure="remove it, or choose another name")
    predictor = open_predictor(run)
    if out.exists() and (own := predictor.folder / EMBEDDINGS_FILE).exists() and out.samefile(own):
        raise InputError("is the run's own table, which stays as it is", where=out, cure="choose another name")
    name = network or predictor.embedded_network
    if name not in predictor.networks:
        raise InputError(f"no network {name!r} in this run", where=run, cure=f"choose from {', '.join(predictor.networks)}")
    sites = _chosen_sites(predictor, experiments)
    check_files(predictor.folder, _weights(predictor.scoring, sites["cell_type"].unique(), name))
    statistics = statistics or predictor.recipe.prediction.statistics
    statistics = "adapted" if random_seed is not None and statistics == "running" else statistics  # running ones of no training mean nothing
    wanted = predictor.recipe.prediction.wells.model_copy(update={"statistics": statistics, "tta_views": 1})
    scoring = replace(predictor.scoring, settings=wanted, all_statistics=False, embedded_sites=sites, embed_controls=True)
    wells = predictor.wells_as_learnt(name)
    with TemporaryDirectory() as folder:
        label = name
        if random_seed is not None:
            label = f"random-{random_seed}"
            scoring = replace(scoring, weights=_random_weights(scoring, sites["cell_type"].unique(), name, Path(folder), seed=random_seed))
        identities = embedding_identities(predictor.root, sites, scoring, name=name)
        if is_current(out, table_identity(identities, wells, network=label, format=format)):
            return None, f"{out} was there already, made by the same data, settings and code"
        for kind in (statistics, "embeddings") if random_seed is None and not parts.exists() else ():
            if (stored := predictor.folder / "scores" / name / kind).is_dir():
                shutil.copytree(stored, parts / kind)
        score_experiments(predictor.root, sites, scoring, out=parts, name=name)
    table = write_embeddings(out, parts / "embeddings", wells, network=label, one_network=predictor.recipe.network.one_network,
                             simulated=is_simulated(predictor.root), format=format, random_seed=random_seed)
    shutil.rmtree(parts)
    return table, _summary(table, out, label, statistics)


def open_predictor(run: Path) -> Predictor:
    """A finished run's wells and networks; InputError for a folder or a task that has none."""
    folder = Path(run).absolute()
    if not folder.is_dir():
        raise InputError("no such run folder", where=run, cure="name one that `cellsignal run` wrote")
    if not (folder / "weights").is_dir():
        raise InputError("no weights in this folder", where=run, cure="name a finished run, one that `cellsignal run` wrote")
    check_files(folder, [folder / "recipe.json"])  # by another seed its plates would be drawn anew
    recipe = check(settings.nest(read_parameters(folder)), where=str(run))
    if TASKS[recipe.task].metric != RXRX1.metric:
        raise InputError(f"a run of {recipe.task} has no plates", where=run, cure=f"name a run of {RXRX1.name}")
    root = data_folder(recipe.data, run=folder)
    if recipe.preset and is_drawn(root, preset=recipe.preset, seed=recipe.seed):
        Receipt.read(root / SIMULATION).check_outputs(root, made_by="the virtual microscope", cure="give the command that began the run again")
        recipe = recipe.model_copy(update={"preset": ""})  # the plates that the networks saw, even if this version would draw others
    return Predictor(Session("4-predict-assign", folder, CheckedParameters(recipe, {}, {}), Budget(), {}))


def _chosen_sites(predictor: Predictor, experiments: Sequence[str]) -> pd.DataFrame:
    known, scored = sorted(predictor.sites["experiment"].unique()), predictor.sites_to_score["experiment"].unique()
    groups = {"all": known, "scored": list(scored)}
    unknown = [name for name in experiments if name not in (*known, *groups)]
    if unknown or not experiments:
        what = f"no experiment {unknown[0]!r}" if unknown else "no experiment is named"
        raise InputError(what, where="--experiments", cure=name_advice(unknown[0] if unknown else "", known, otherwise="choose all, scored or some of"))
    return predictor.sites[predictor.sites["experiment"].isin([name for each in experiments for name in groups.get(each, [each])])]


def _weights(scoring: ScoringOptions, cell_types: Sequence[str], name: str) -> set[Path]:
    return {weights_path(scoring.weights, cell_type, name, joint=scoring.joint) for cell_type in cell_types}


def _random_weights(scoring: ScoringOptions, cell_types: Sequence[str], name: str, folder: Path, *, seed: int) -> Path:
    """Weights of the same architectures as initialised with `seed`, in `folder`."""
    for path in _weights(scoring, cell_types, name):
        config = read_config(path)
        save_weights(folder / path.relative_to(scoring.weights), config.build(seed=seed).state_dict(), config)
    return folder


def _summary(table: pd.DataFrame, out: Path, network: str, statistics: str) -> str:
    types = table["Metadata_Control_Type"].value_counts()
    counts = f"{types.get('treatment', 0):,} treated, {types.get('negcon', 0):,} untreated and {types.get('poscon', 0):,} positive control wells"
    plates, features = table["Metadata_Plate"].nunique(), table.columns.str.startswith("embedding_").sum()
    note = "; networks differ by cell type: compare within one only" if table["Metadata_Network"].nunique() > 1 else ""
    return f"wrote {out}: {counts} on {plates} plates, {features:,} features of {network} under {statistics} statistics{note}"

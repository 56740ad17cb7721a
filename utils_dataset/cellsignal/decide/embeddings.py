"""The table of embeddings: one row per well, with the columns of image-based profiling, as Parquet or AnnData; and its receipt."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellsignal.decide.scores.cache import PREDICT_AGAIN, read_embeddings, read_receipt
from cellsignal.errors import InputError
from cellsignal.files import atomic_path, is_stream, output_file, sha256, write_parquet
from cellsignal.receipts import Receipt

FORMATS = ("parquet", "h5ad")
CONTROL_TYPE = {"negative_control": "negcon", "positive_control": "poscon", "treatment": "treatment"}  # pycytominer's names, by well_type
FEATURE = "embedding_"


def embedding_table(embeddings: pd.DataFrame, wells: pd.DataFrame, *, network: str, one_network: bool, simulated: bool) -> pd.DataFrame:
    """One row per well of `embeddings`: columns `Metadata_…`, then `embedding_0` and so on, float32.

    `embeddings`: index id_code, one column per feature. `wells`: columns of `Tables.wells`, and split. `network`: the name of the
    weights; with `one_network` those of all cell types. Unknown siRNAs are missing. Features of different `Metadata_Network` have
    nothing in common, and must not be compared. InputError for a well without embedding values, or one that `wells` does not have.
    """
    if unknown := embeddings.index.difference(wells["id_code"]).tolist():
        raise InputError(f"{len(unknown)} wells that the tables do not have, such as {unknown[0]}", where="embeddings", cure="predict again with these tables")
    if len(bad := embeddings.index[~np.isfinite(embeddings.to_numpy()).all(axis=1)]):
        raise InputError(f"features that are no numbers in {len(bad)} wells, such as {bad[0]}", where=bad[0],
                         cure="embed with networks of one backbone, or train again")
    rows = wells.set_index("id_code").loc[embeddings.index]
    control_type = rows["well_type"].map(CONTROL_TYPE)
    metadata = {
        "Metadata_Plate": rows["experiment"] + "_" + rows["plate"].astype(str),
        "Metadata_Well": rows["well"],
        "Metadata_Batch": rows["experiment"],
        "Metadata_Perturbation": rows["sirna"].astype("Int64").astype("string"),
        "Metadata_Control_Type": control_type,
        "Metadata_Control": control_type != "treatment",
        "Metadata_CellType": rows["cell_type"],
        "Metadata_Id": rows.index.to_series(),
        "Metadata_Split": rows["split"],
        "Metadata_Network": ("all" if one_network else rows["cell_type"]) + f"/{network}",
        "Metadata_Simulated": simulated,
    }
    features = embeddings.astype(np.float32).set_axis([f"{FEATURE}{number}" for number in range(embeddings.shape[1])], axis=1)
    return pd.concat([pd.DataFrame(metadata, index=rows.index), features], axis=1).reset_index(drop=True)


def receipt_path(out: Path) -> Path:
    """The receipt of a table: `embeddings.parquet.json` of `embeddings.parquet`."""
    return out.with_name(f"{out.name}.json")


def table_identity(identities: Mapping[str, str], wells: pd.DataFrame, *, network: str, format: str) -> dict[str, Any]:
    """What decides a table's content: the embeddings of each experiment (weights, images, statistics, code), and what is known of its wells."""
    columns = ["id_code", "experiment", "cell_type", "plate", "well", "well_type", "sirna", "split"]
    some = wells.loc[wells["experiment"].isin(identities), columns].to_csv(index=False)
    return {"embeddings": dict(identities), "wells": hashlib.sha256(some.encode()).hexdigest(), "network": network, "format": format}


def is_current(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the table `out` is as its receipt says, and of this identity."""
    receipt = Receipt.find(receipt_path(out))
    return receipt is not None and receipt.is_current(identity) and out.is_file() and receipt.outputs.get(out.name) == sha256(out)


def write_embeddings(out: Path, folder: Path, wells: pd.DataFrame, *, network: str, one_network: bool, simulated: bool, format: str = "parquet",
                     **details: Any) -> pd.DataFrame:
    """Write the embeddings in `folder`, those of a run in scores/<network>/embeddings, as a table with a receipt; returns the table.

    For the other arguments see `embedding_table`; `details`: further ones of the receipt. A table that the same data, settings and
    code made is kept. InputError if the embeddings are not those that their receipt names, or are those of treatments alone.
    """
    record = read_receipt(folder)
    if not record.outputs or not record.details.get("controls"):
        raise InputError("no embeddings of these wells and their controls", where=folder, cure=PREDICT_AGAIN)
    for name in record.outputs:
        if not (folder / name).is_file() or sha256(folder / name) != record.outputs[name]:
            raise InputError("not the embeddings that metadata.json beside them names", where=folder / name, cure=PREDICT_AGAIN)
    embeddings = pd.concat([read_embeddings(folder / name) for name in record.outputs])
    table = embedding_table(embeddings, wells, network=network, one_network=one_network, simulated=simulated)
    identity = table_identity(record.identity, wells, network=network, format=format)
    if not is_current(out, identity):
        receipt_path(out).unlink(missing_ok=True)
        WRITERS[format](out, table)
        how = {key: record.details.get(key) for key in ("weights", "basis", "scope", "precision", "device", "training_scope", "experiments")}
        details = {"network": network, "wells": len(table), "features": embeddings.shape[1], "simulated": simulated, **how, **details}
        Receipt(receipt_path(out), identity, {out.name: sha256(out)}, details=details).write()
    return table


def checked_output(out: Path, format: str) -> Path:
    """Where the table and its receipt are written, behind links; InputError unless that is a name for a file of this format, and can be written."""
    target = output_file(out)
    if is_stream(target):
        raise InputError("is a device or a FIFO, beside which no receipt can lie", where=out, cure="name a file")
    if out.suffix != f".{format}":
        raise InputError(f"is no name for {format}", where=out, cure=f"call it {out.with_suffix(f'.{format}').name}, or give --format {_format_of(out)}")
    if format == "h5ad":
        _anndata()
    return target


def _format_of(out: Path) -> str:
    return next((name for name in FORMATS if out.suffix == f".{name}"), "parquet")


def _write_h5ad(out: Path, table: pd.DataFrame) -> None:
    """As AnnData: features in X, the rest in obs, by id_code."""
    features = [name for name in table if name.startswith(FEATURE)]
    obs = table.drop(columns=features).set_index("Metadata_Id", drop=False).rename_axis(None)
    texts = obs.select_dtypes(exclude="bool").columns
    obs[texts] = obs[texts].astype("category")  # files of AnnData have no missing text
    data = _anndata().AnnData(X=table[features].to_numpy(np.float32), obs=obs, var=pd.DataFrame(index=features))
    with atomic_path(out) as temporary:
        data.write_h5ad(temporary)


def _anndata() -> Any:
    try:
        import anndata
    except ImportError:
        raise InputError("h5ad needs the package anndata", where="--format", cure='pip install -e "utils_dataset[h5ad]", or write parquet') from None
    return anndata


WRITERS = {"parquet": write_parquet, "h5ad": _write_h5ad}

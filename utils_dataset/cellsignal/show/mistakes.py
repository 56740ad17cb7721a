"""Wells that are taken for another siRNA: which siRNAs are confused most, and what the two look like."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cellsignal.data.images.reader import read_sites
from cellsignal.show.eda.composites import composite, hide_ticks
from cellsignal.show.style import ASSIGNED, RAW, blank_figure, new_figure, styled

COLUMNS = ["sirna", "predicted", "wells", "share"]


def confused_pairs(predicted: pd.Series, truth: pd.Series, *, count: int = 10) -> pd.DataFrame:
    """The siRNAs that are most often taken for another one.

    `predicted`, `truth`: siRNA by id_code; wells without a known siRNA do not count. Columns: sirna; predicted (what it was taken for);
    wells (so often); share (of the wells of this siRNA). The most frequent come first, then the largest share.
    """
    both = _known(predicted, truth)
    wrong = both[both["sirna"] != both["predicted"]]
    pairs = wrong.groupby(["sirna", "predicted"]).size().rename("wells").reset_index()
    pairs["share"] = pairs["wells"] / both["sirna"].value_counts().reindex(pairs["sirna"]).to_numpy()
    order = pairs.sort_values(["wells", "share", "sirna", "predicted"], ascending=[False, False, True, True])
    return order.head(count).reset_index(drop=True)[COLUMNS]


def wrong_wells(predicted: pd.Series, truth: pd.Series, wells: pd.DataFrame, *, pairs: pd.DataFrame | None = None, count: int = 6,
                confidence: pd.Series | None = None, seed: int = 0) -> pd.DataFrame:
    """Examples of wells that are taken for another siRNA, each beside a training well of that siRNA in the same cell type.

    `predicted`, `truth`: siRNA by id_code. `wells`: id_code, cell_type, sirna and split, where only those of the split "train" serve
    for comparison. `pairs`: one example for each of these, as `confused_pairs` gives them; else so many wells, those of
    the highest `confidence` (by id_code) first, or drawn by `seed`. Columns: id_code, sirna, predicted, example (an id_code). A
    siRNA without a training well has no example.
    """
    both = _known(predicted, truth)
    wrong = both[both["sirna"] != both["predicted"]].sample(frac=1, random_state=seed)
    if confidence is not None:
        wrong = wrong.loc[confidence.reindex(wrong.index).sort_values(ascending=False, kind="stable").index]
    if pairs is not None:
        chosen = pairs[["sirna", "predicted"]].merge(wrong.rename_axis("id_code").reset_index(), on=["sirna", "predicted"])
        wrong, count = chosen.drop_duplicates(["sirna", "predicted"]).set_index("id_code"), len(pairs)
    table = wells.set_index("id_code")
    train = table[(table["split"] == "train") & table["sirna"].notna()].sample(frac=1, random_state=seed)
    train = train.reset_index().drop_duplicates(["cell_type", "sirna"])
    examples = train.set_index(["cell_type", train["sirna"].astype(int)])["id_code"]
    keys = pd.MultiIndex.from_arrays([table["cell_type"].reindex(wrong.index), wrong["predicted"]])
    wrong = wrong.assign(example=examples.reindex(keys).to_numpy())
    return wrong.dropna(subset="example").head(count).rename_axis("id_code").reset_index()


@styled
def image_pairs(examples: pd.DataFrame, root: Path, sites: pd.DataFrame, *, columns: int = 3, title: str = "") -> Figure:
    """Each well beside the one it resembles, as colour composites of one site, each image on a scale of its own.

    `examples`: as `wrong_wells` gives them. `sites`: id_code, stem and site of both wells of each pair, below `root`; a
    pair without images is left out.
    """
    first = sites.sort_values("site").drop_duplicates("id_code").set_index("id_code")
    some = examples[examples["id_code"].isin(first.index) & examples["example"].isin(first.index)]
    if some.empty:
        return blank_figure("No image of these wells was opened." if len(examples) else "No well was taken for another siRNA.")
    left, right = (read_sites(Path(root), first.loc[some[name]].reset_index()) for name in ("id_code", "example"))
    columns = min(columns, len(some))
    rows = -(-len(some) // columns)
    figure = new_figure(max(5, 4.1 * columns), 2.35 * rows + 0.35)
    figure.suptitle(title or "Left: a well of one siRNA. Right: a training well of the siRNA that it was taken for", x=0.01, ha="left", fontsize=11)
    panels = np.ravel(figure.subfigures(rows, columns, wspace=0.04, squeeze=False))
    for panel, pair, *images in zip(panels, some.itertuples(), left, right):
        captions = (f"{pair.id_code}\nsiRNA {pair.sirna}", f"{pair.example}\nsiRNA {pair.predicted}")
        for axes, image, caption, colour in zip(panel.subplots(1, 2), images, captions, (RAW, ASSIGNED)):
            hide_ticks(axes)
            axes.imshow(composite(image))
            axes.set_title(caption, fontsize=8.5, color=colour)
    return figure


def _known(predicted: pd.Series, truth: pd.Series) -> pd.DataFrame:
    """siRNA and prediction of the wells that have both, int64, by id_code."""
    both = pd.DataFrame({"sirna": truth.dropna(), "predicted": predicted}).dropna()
    return both.astype(int).sort_index()

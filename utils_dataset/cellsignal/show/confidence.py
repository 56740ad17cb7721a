"""Whether a probability means what it says."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from cellsignal.show.style import ASSIGNED, pale, picture, styled


@styled
def reliability(confidence: pd.Series, right: pd.Series, *, bins: int = 10) -> Figure:
    """Share of right answers against their stated probability, and how often each was stated.

    `confidence`: probability by id_code; `right`: bool by id_code. A point on the diagonal is
    honest, one below it boasts. Bars are 95 % binomial intervals (Wilson's).
    """
    figure = picture(9, 3.4)
    curve, counts = figure.subplots(1, 2)
    values, hits = confidence.to_numpy(float), right.reindex(confidence.index).to_numpy(bool)
    box = np.clip((values * bins).astype(int), 0, bins - 1)
    for index in np.unique(box):
        inside = box == index
        share = binomtest(int(hits[inside].sum()), int(inside.sum()))
        mean, ends = values[inside].mean(), share.proportion_ci(method="wilson")
        curve.plot([mean, mean], ends, color=pale(ASSIGNED), lw=4, solid_capstyle="butt")
        curve.plot(mean, share.statistic, "o", color=ASSIGNED, ms=6)
    curve.plot([0, 1], [0, 1], color="#999999", lw=1, ls="--", zorder=0)
    curve.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="stated probability", title="Share of right answers")
    counts.hist(values, bins=np.linspace(0, 1, bins + 1), color=pale(ASSIGNED))
    counts.set(xlim=(0, 1.02), xlabel="stated probability", title="Wells")
    return figure


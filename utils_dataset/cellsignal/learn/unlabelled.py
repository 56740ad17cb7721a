"""Sites without labels that train under labels of the network's own making."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cellsignal.learn.batches import SCOPES, SiteImages, joined
from cellsignal.learn.models import Card, Classifier
from cellsignal.learn.world import World

# From a network, its card and an epoch (from 0) to the class index of each site without a label, int64[N], -1 where it
# stays unused: a function of these alone, which leaves the network as it was.
Relabel = Callable[[Classifier, Card, int], np.ndarray]
SECONDS = "labelling_seconds"  # in a row of the history
FIRST = 2  # epochs that a first labelling may last, at least
THERE_AND_BACK = 3  # a picture that trains is about so much work as so many that are only looked at


class Unlabelled:
    """The sites `data` beside others without labels, which `relabel` names anew before an epoch (Lee 2013, "Pseudo-Label")."""

    def __init__(self, data: SiteImages, others: SiteImages, relabel: Relabel) -> None:
        self.data, self.relabel, self.both = data, relabel, joined(data, others)

    def seconds(self, rows: Sequence[dict], ordinary: float) -> float:
        """How long naming all sites may last: as in the epochs of `rows` at worst, or, before the first, by an `ordinary` epoch.

        A `relabel` may tell how many pictures it looks at, as `images`.
        """
        guess = max(FIRST, getattr(self.relabel, "images", 0) / (THERE_AND_BACK * len(self.data))) * ordinary
        return max((row[SECONDS] for row in rows if SECONDS in row), default=guess)

    def labelled(self, model: Classifier, card: Card, epoch: int, *, world: World, scope: str) -> tuple[SiteImages, np.ndarray]:
        """All sites with the labels of this epoch, and the rows that train: those of the data and those newly named.

        The first process names, and all take its labels. Sites that would be alone in their scope, and so
        without batch statistics, are left out.
        """
        count = len(self.both) - len(self.data)
        labels = torch.zeros(count, dtype=torch.float64, device=world.device)
        if world.first:
            labels += torch.from_numpy(self.relabel(model.eval(), card, epoch).astype(np.float64)).to(labels)
        labels = (world.sum(labels) if world.size > 1 else labels).long().cpu().numpy()
        self.both.labels = np.concatenate([self.data.labels, labels])
        rows = np.concatenate([np.arange(len(self.data)), len(self.data) + np.flatnonzero(labels >= 0)])
        return self.both, self._in_company(rows, scope)

    def _in_company(self, rows: np.ndarray, scope: str) -> np.ndarray:
        if not (keys := SCOPES[scope]):
            return rows
        company = self.both.sites.iloc[rows].groupby(keys)["stem"].transform("size").to_numpy()
        return rows[(company > 1) | (rows < len(self.data))]

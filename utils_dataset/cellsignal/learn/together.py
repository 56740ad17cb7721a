"""Whether a network, its sites and a way of training go together, asked before any of them is set to work."""

from collections.abc import Callable

from cellsignal.errors import InputError
from cellsignal.learn.batches import SiteImages
from cellsignal.learn.models import Classifier
from cellsignal.learn.phases import Phase


def check(model: Classifier, data: SiteImages, phase: Phase, *, controls: SiteImages | None, relabel: Callable | None,
          unlabelled: SiteImages | None) -> None:
    """Raise InputError, which names the phase, for a loss or data that ask for what is not there."""
    losses, where = phase.losses, f"phase {phase.name}"
    if losses.cosines and model.cosine == "none":
        raise InputError(f"the loss {phase.loss!r} looks at cosines, and the network has no head for them", where=where,
                         cure="build it with cosine: beside or alone, or take another loss")
    if losses.one_label and data.multilabel:
        raise InputError(f"the loss {phase.loss!r} asks for one label, and sites have several", where=where,
                         cure="use bce, focal or lovasz")
    if phase.pseudo_epochs and (relabel is None or unlabelled is None or data.multilabel):
        raise InputError("nobody gives labels to sites without one", where=where, cure="set pseudo_epochs: 0")
    if model.control_features and (controls is None or phase.scope != "plate"):
        raise InputError("control features want the controls of each plate, and batches from one plate", where=where,
                         cure="use batches: plate on data with controls, or control_features: false")

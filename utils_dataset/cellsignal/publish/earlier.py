"""What a kernel that goes on says first: that what its earlier session left is mounted."""

from cellsignal import code_identity
from cellsignal.errors import InputError
from cellsignal.run import manifest, mounts

MISSING = "its earlier session is not mounted"


def expect(step: str) -> None:
    """Raise InputError unless an attached run holds what an earlier session of `step` left.

    Without it a kernel that was pushed to go on would begin from nothing, and nobody would see it for hours. The cell that
    asks is none of the notebook's own: it does not count as code of a training.
    """
    code_identity.notebook.begin()
    if not any(manifest.read(run, step) for run in mounts.runs()):
        raise InputError(MISSING, where=step, cure=mounts.names())


def cell(step: str) -> str:
    """The source of the cell that says so."""
    return f"from cellsignal.publish import earlier\n\nearlier.expect({step!r})  # pushed to go on, not to begin from nothing"

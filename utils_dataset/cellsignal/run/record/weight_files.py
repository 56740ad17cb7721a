"""Files of weights, as far as their headers tell of them."""

import os
from math import prod
from pathlib import Path

from cellsignal import files
from cellsignal.errors import InputError

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # stored with the weights, and not learnt by steps


def count_weights(path: Path) -> int:
    """Learnt numbers in a safetensors file; buffers of batch normalisation do not count. InputError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        os.close(files.open_regular(path))  # a pipe would be waited for
        with safe_open(path, framework="numpy") as found:
            return sum(prod(found.get_slice(name).get_shape()) for name in found.keys() if not name.endswith(BUFFERS))
    except (SafetensorError, OSError) as error:
        raise InputError(f"is no safetensors file ({error})", where=path, cure="run the training that wrote it again") from None

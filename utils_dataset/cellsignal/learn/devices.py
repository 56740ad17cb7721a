"""Where the arithmetic happens."""

import torch

from cellsignal.errors import InputError


def pick(device: str) -> torch.device:
    """The device called "cpu", "cuda", or "auto": the GPU when there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU here", where="device", cure="use device: auto or device: cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")

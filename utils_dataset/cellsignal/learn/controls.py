"""Features of a plate's controls, beside which its other wells are seen (Brodt's list of what was not better)."""

import torch

CONTROLS = ("positive_control", "negative_control")  # well types


def plate_means(features: torch.Tensor, *, positive: torch.Tensor, plates: torch.Tensor,
                asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of the positive and of the negative controls of each asked site's plate, two of [N, F].

    `features`: [M, F] of control sites; `positive`: bool[M]; `plates`: int[M], by any numbers; `asked`: int[N], the plate of
    each site that is to be classified. Zeros, which tell nothing, where a plate has no such control. Differentiable.
    """
    same = asked[:, None] == plates[None, :]
    return tuple(_mean(features, (same & kind).to(features)) for kind in (positive, ~positive))


def _mean(features: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return shares / shares.sum(1, keepdim=True).clamp(min=1) @ features

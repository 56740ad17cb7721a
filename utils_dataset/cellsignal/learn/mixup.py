"""MixUp: every sample of a batch becomes a convex combination of two.

Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; Brodt finetunes with it on all data.
"""

import numpy as np
import torch

STREAM = 1  # keeps these draws apart from those of augmentations, whose keys are (seed, epoch, site)


def mixup(alpha: float, *tensors: torch.Tensor, key: tuple[int, ...]) -> list[torch.Tensor]:
    """Mix each tensor's rows with the same rows in another order: share * x + (1 - share) * x[order].

    The share, one for the batch as in the authors' code, comes from Beta(alpha, alpha). It and the
    order depend on `key` (seed, epoch, number of the batch) alone, so that a resumed training mixes
    the same pairs on any device. Tensors: [N, ...], mixed as floats where they lie.
    """
    generator = np.random.default_rng((*key, STREAM))
    share = float(generator.beta(alpha, alpha))
    order = torch.from_numpy(generator.permutation(len(tensors[0])))
    return [torch.lerp(tensor[order.to(tensor.device)].float(), tensor.float(), share) for tensor in tensors]

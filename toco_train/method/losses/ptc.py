"""Patch-token contrast (PTC)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_train.distributed import global_sum, world_size
from toco_train.method.losses.full_precision import in_full_precision


@in_full_precision
def patch_token_contrast(features: Tensor, affinity: Tensor) -> Tensor:
    """Pull same-class patch tokens together and push different ones apart.

    Args:
        features: Final patch tokens, float ``[B, D, h, w]``.
        affinity: Pseudo relation of each pair of tokens, integer ``[B, N, N]``: 1 same class, 0 different, 255
            unknown (left out).

    Returns:
        Scalar; 0.5 if no pair is known. Its mean over processes is in [0, 1].

    Source: ToCo (CVPR 2023), section 3.3; docs/method.md, step 3. The similarity is |cos|, as in the published code.
    Deviation: pairs are counted over all processes (see the package's docstring).
    """
    tokens = F.normalize(features.flatten(2).float(), dim=1)
    similarity = (tokens.transpose(1, 2) @ tokens).abs()
    same, different = affinity == 1, affinity == 0
    num_same, num_different = global_sum(torch.stack([same.sum(), different.sum()]))
    positive: Tensor = world_size() * (similarity * same).sum() / (num_same + 1)
    negative: Tensor = world_size() * (similarity * different).sum() / (num_different + 1)
    return 0.5 * (1 - positive) + 0.5 * negative

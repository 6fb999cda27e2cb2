"""Cross-entropy of the segmentation, balanced over background and foreground."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX
from toco_train.distributed import global_sum, world_size


def balanced_segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Compute the mean of the cross-entropies over background and over foreground pixels.

    Args:
        logits: float ``[B, C + 1, H, W]``, background first.
        labels: Pseudo labels, int64 ``[B, H, W]``.
        ignore_index: Pixels with this label are ignored.

    Returns:
        Scalar; finite even if there is no pixel of one kind, or none at all.

    Source: docs/method.md, step 6. Deviations: a term without pixels is 0, where the published code divides by zero;
    pixels are counted over all processes (see the package's docstring).
    """
    per_pixel = F.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="none")
    background = labels == 0
    foreground = (labels != 0) & (labels != ignore_index)
    num_background, num_foreground = global_sum(torch.stack([background.sum(), foreground.sum()])).clamp(min=1)
    mean_over_background: Tensor = world_size() * (per_pixel * background).sum() / num_background
    mean_over_foreground: Tensor = world_size() * (per_pixel * foreground).sum() / num_foreground
    return 0.5 * (mean_over_background + mean_over_foreground)

"""Image-level classification loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def classification_loss(class_logits: Tensor, image_labels: Tensor) -> Tensor:
    """Compute the multi-label soft-margin loss of image-level logits.

    Args:
        class_logits: float ``[B, C]``.
        image_labels: Multi-hot image labels, float ``[B, C]``.

    Returns:
        Scalar, mean over images and classes.
    """
    return F.multilabel_soft_margin_loss(class_logits, image_labels)

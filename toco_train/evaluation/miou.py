"""Mean IoU (mIoU) from confusion counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toco_core.palette import IGNORE_INDEX


def confusion_counts(prediction: Tensor, truth: Tensor, num_labels: int) -> Tensor:
    """Count pixels by true and predicted label, without those whose truth is 255.

    Args:
        prediction: Integer ``[...]``, 0..num_labels - 1.
        truth: Integer ``[...]``, 0..num_labels - 1 or 255.
        num_labels: Number of labels, background included.

    Returns:
        int64 ``[num_labels, num_labels]``, rows truth, columns prediction.
    """
    return multiclass_confusion_matrix(
        prediction.flatten().long(), truth.flatten().long(), num_labels, ignore_index=IGNORE_INDEX, validate_args=False
    )


def per_class_iou(counts: Tensor) -> Tensor:
    """Return the IoU of each label from confusion counts ``[L, L]``: float64 ``[L]``, NaN where truth has none."""
    counts = counts.double()
    intersection, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    return torch.where(truth > 0, intersection / (truth + predicted - intersection), torch.nan)


def mean_iou(counts: Tensor) -> float:
    """Return the mean IoU over the labels that the ground truth holds, 0 to 1, from confusion counts ``[L, L]``."""
    return float(per_class_iou(counts).nanmean())

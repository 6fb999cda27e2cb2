"""Boundary IoU: how well masks follow the edges of things."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toco_core.palette import IGNORE_INDEX

BOUNDARY_RATIO = 0.02
_OUTSIDE = -1


def boundary_width(height: int, width: int) -> int:
    """Return how many pixels count as boundary: 2 % of the diagonal, at least 1."""
    return max(1, round(BOUNDARY_RATIO * math.hypot(height, width)))


def boundary_counts(prediction: Tensor, truth: Tensor, num_labels: int) -> Tensor:
    """Count pixels by true and predicted label, where all but those near the edge of their region are "inside".

    A pixel is near the edge if a pixel of another label, or the border of the image, is at most ``boundary_width``
    rows and columns away. So Boundary IoU is the IoU that these counts give, their last label left out.

    Pixels whose truth is 255 are not counted, and the prediction is taken to be 255 there, too, before its edges are
    sought: what a network says where nobody knows the truth moves no edge, and a prediction that is right wherever
    it counts has a Boundary IoU of 1.

    Args:
        prediction: Integer ``[H, W]``, 0..num_labels - 1.
        truth: Integer ``[H, W]``, 0..num_labels - 1 or 255.
        num_labels: Number of labels, background included.

    Returns:
        int64 ``[num_labels + 1, num_labels + 1]``, rows truth, columns prediction; the last label is "inside".

    Source: Cheng et al., "Boundary IoU" (CVPR 2021): region minus its erosion by a 3 x 3 square, ``boundary_width``
    times, the image's border taken for an edge; 2 % is their ratio for COCO. The handling of 255 is ours.
    """
    width = boundary_width(*truth.shape)
    counted = truth != IGNORE_INDEX
    maps = (prediction.masked_fill(~counted, IGNORE_INDEX), truth)
    predicted, true = (m.masked_fill(_is_uniform(m.short(), width), num_labels)[counted].long() for m in maps)
    return multiclass_confusion_matrix(predicted, true, num_labels + 1, validate_args=False)


def _is_uniform(label_map: Tensor, reach: int) -> Tensor:
    """Tell where all pixels up to ``reach`` rows and columns away have one label: int16 -> bool ``[H, W]``."""
    highest = lowest = F.pad(label_map, [reach] * 4, value=_OUTSIDE)
    for dim in (0, 1):
        covered, window = 1, 2 * reach + 1
        while covered < window:  # a window is known from two smaller ones that overlap
            step = min(covered, window - covered)
            length = highest.shape[dim] - step
            highest = torch.maximum(highest.narrow(dim, 0, length), highest.narrow(dim, step, length))
            lowest = torch.minimum(lowest.narrow(dim, 0, length), lowest.narrow(dim, step, length))
            covered += step
    return highest == lowest

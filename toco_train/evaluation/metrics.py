"""The scores of masks and of class heads: IoU, boundary IoU, pixel accuracy, F1 and average precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from toco_train.evaluation.miou import mean_iou, per_class_iou


@dataclass(frozen=True)
class Scores:
    """How good one kind of mask is. Pixels are added up over all images; those whose truth is 255 do not count.

    Attributes:
        iou: IoU of each label, background first, ``[C + 1]``; NaN for one that the ground truth does not hold.
        mean_iou: Mean over the labels that the ground truth holds.
        pixel_accuracy: Share of pixels with the right label.
        boundary_iou: Boundary IoU of each label, as ``iou``.
        mean_boundary_iou: Its mean, as ``mean_iou``.
    """

    iou: tuple[float, ...]
    mean_iou: float
    pixel_accuracy: float
    boundary_iou: tuple[float, ...]
    mean_boundary_iou: float


@dataclass(frozen=True)
class ClassScores:
    """How well a class head tells what is in an image.

    Attributes:
        f1: F1 of each class at probability 0.5, ``[C]``; NaN for a class that no image is tagged with.
        mean_f1: Mean over the classes that some image is tagged with.
        average_precision: Area under precision over recall of each class, as ``f1``.
        mean_average_precision: Its mean, as ``mean_f1``: mAP.
    """

    f1: tuple[float, ...]
    mean_f1: float
    average_precision: tuple[float, ...]
    mean_average_precision: float


def mask_scores(counts: Tensor, boundary: Tensor) -> Scores:
    """Return the scores of confusion counts ``[L, L]`` and boundary counts ``[L + 1, L + 1]``."""
    boundary_iou = per_class_iou(boundary)[:-1]
    return Scores(
        iou=tuple(per_class_iou(counts).tolist()),
        mean_iou=mean_iou(counts),
        pixel_accuracy=float(counts.diagonal().sum() / counts.sum()),
        boundary_iou=tuple(boundary_iou.tolist()),
        mean_boundary_iou=float(boundary_iou.nanmean()),
    )


def class_scores(probabilities: Tensor, tags: Tensor) -> ClassScores:
    """Return F1 and average precision of a class head.

    Args:
        probabilities: float ``[N, C]`` in [0, 1].
        tags: Which classes each image holds, multi-hot ``[N, C]``.
    """
    tagged = tags.bool().any(dim=0)
    f1, precision = torch.full((2, len(tagged)), torch.nan)
    if tagged.any():
        arguments = probabilities[:, tagged], tags[:, tagged].long(), int(tagged.sum())
        f1[tagged] = multilabel_f1_score(*arguments, average=None, validate_args=False)
        precision[tagged] = multilabel_average_precision(*arguments, average=None, validate_args=False)
    return ClassScores(
        f1=tuple(f1.tolist()),
        mean_f1=float(f1.nanmean()),
        average_precision=tuple(precision.tolist()),
        mean_average_precision=float(precision.nanmean()),
    )

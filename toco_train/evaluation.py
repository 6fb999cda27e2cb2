"""How good masks are: IoU over confusion counts, for CAM, auxiliary CAM and segmentation of a whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_confusion_matrix

from toco.config import FrozenModel
from toco.errors import DataError
from toco.palette import IGNORE_INDEX
from toco_train.cam import label_from_cam, multi_scale_cam
from toco_train.data.source import Sample, image_labels, read_image, read_mask, with_masks
from toco_train.model import ToCo


class EvaluationConfig(FrozenModel):
    """When and how a run is evaluated."""

    every: int = Field(2000, gt=0, description="Steps between two evaluations.")
    max_images: int = Field(
        0, ge=0, description="Images used on the way, evenly spread; 0 means all. The last uses all."
    )
    batch_size: int = Field(4, gt=0, description="Images a batch.")


@dataclass(frozen=True)
class Scores:
    """IoU of one way to make masks.

    Attributes:
        iou: IoU of each label, background first, ``[C + 1]``; NaN for one that the ground truth does not hold.
        mean_iou: Mean over the labels that the ground truth holds.
    """

    iou: tuple[float, ...]
    mean_iou: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a split.

    Attributes:
        cam: Label of the CAM at the background threshold, given the image label.
        aux_cam: The same of the auxiliary CAM.
        seg: Argmax of the segmentation; no label given.
        token_similarity: Mean pairwise |cosine| of final patch tokens, 0 to 1: high is over-smoothed.
        num_images: Images evaluated.
    """

    cam: Scores
    aux_cam: Scores
    seg: Scores
    token_similarity: float
    num_images: int


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one image, at the image's own size.

    Attributes:
        cam: float ``[C, H, W]`` in [0, 1].
        aux_cam: float ``[C, H, W]`` in [0, 1].
        seg: int64 ``[H, W]``, 0..C.
        token_similarity: Mean pairwise |cosine| of its final patch tokens.
    """

    cam: Tensor
    aux_cam: Tensor
    seg: Tensor
    token_similarity: float


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
        prediction.flatten(), truth.flatten().long(), num_labels, ignore_index=IGNORE_INDEX, validate_args=False
    )


def per_class_iou(counts: Tensor) -> Tensor:
    """Return the IoU of each label from confusion counts ``[L, L]``: float64 ``[L]``, NaN where truth has none."""
    counts = counts.double()
    intersection, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    return torch.where(truth > 0, intersection / (truth + predicted - intersection), torch.nan)


def mean_iou(counts: Tensor) -> float:
    """Return the mean IoU over the labels that the ground truth holds, 0 to 1, from confusion counts ``[L, L]``."""
    return float(per_class_iou(counts).nanmean())


def mean_token_similarity(patch_tokens: Tensor) -> Tensor:
    """Return the mean |cosine| over pairs of different tokens: ``[B, D, h, w]`` -> ``[B]``."""
    tokens = F.normalize(patch_tokens.flatten(2).float(), dim=1)
    similarity = (tokens.transpose(1, 2) @ tokens).abs()
    num_tokens = similarity.shape[-1]
    itself = similarity.diagonal(dim1=1, dim2=2).sum(dim=1)
    return (similarity.sum(dim=(1, 2)) - itself) / (num_tokens * (num_tokens - 1))


@torch.no_grad()
def predict(model: ToCo, samples: Sequence[Sample], scales: Sequence[float], batch_size: int) -> Iterator[Prediction]:
    """Yield the prediction of each sample in order, from the picture resized to the network's square.

    Raises:
        DataError: A picture cannot be read.
    """
    config, device = model.config, next(model.parameters()).device
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (config.mean, config.std))
    for start in range(0, len(samples), batch_size):
        pictures = [read_image(sample.image) for sample in samples[start : start + batch_size]]
        square = [p.resize((config.image_size, config.image_size), resample=2) for p in pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in square])).to(device)
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
        output = model(images)
        cams, aux_cams = multi_scale_cam(model, images, scales, scale_one=(output.cam, output.aux_cam))
        similarity = mean_token_similarity(output.patch_tokens).tolist()
        for index, picture in enumerate(pictures):
            cam, aux_cam, logits = (
                F.interpolate(m[index : index + 1], size=picture.size[::-1], mode="bilinear", align_corners=False)[0]
                for m in (cams, aux_cams, output.seg_logits)
            )
            yield Prediction(cam, aux_cam, logits.argmax(dim=0), similarity[index])


def evaluate(
    model: ToCo,
    samples: Sequence[Sample],
    *,
    scales: Sequence[float],
    background_threshold: float,
    batch_size: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score a network on the samples that have a mask.

    Args:
        model: The network; it is put in evaluation mode and left in the mode that it was in.
        samples: Images with masks; those without are left out.
        scales: Scales of the CAM.
        background_threshold: Threshold of the CAM's label.
        batch_size: Images a batch.
        progress: Called with the images done and their number.

    Raises:
        DataError: No sample has a mask, or a picture or mask cannot be read or holds an unknown label.
    """
    samples = with_masks(samples)
    if not samples:
        raise DataError("no image to evaluate has a mask; evaluation needs masks, training does not")
    num_labels = model.num_classes + 1
    counts = torch.zeros(3, num_labels, num_labels, dtype=torch.int64)
    similarity = 0.0
    was_training = model.training
    model.eval()
    try:
        for done, (sample, prediction) in enumerate(
            zip(samples, predict(model, samples, scales, batch_size), strict=True), start=1
        ):
            truth = _checked_mask(sample, num_labels)
            known = torch.from_numpy(image_labels(sample, model.num_classes))[None].to(prediction.cam.device)
            masks = (
                label_from_cam(prediction.cam[None], known, background_threshold)[0],
                label_from_cam(prediction.aux_cam[None], known, background_threshold)[0],
                prediction.seg,
            )
            counts += torch.stack([confusion_counts(mask.cpu(), truth, num_labels) for mask in masks])
            similarity += prediction.token_similarity
            progress(done, len(samples))
    finally:
        model.train(was_training)
    cam, aux_cam, seg = (Scores(tuple(per_class_iou(c).tolist()), mean_iou(c)) for c in counts)
    return Evaluation(cam, aux_cam, seg, similarity / len(samples), len(samples))


def _checked_mask(sample: Sample, num_labels: int) -> Tensor:
    """Return the ground truth, uint8 ``[H, W]``, if its labels are known."""
    truth = read_mask(sample)
    wrong = truth[(truth >= num_labels) & (truth != IGNORE_INDEX)]
    if wrong.size:
        raise DataError(
            f"mask {sample.mask} holds the label {wrong[0]}, expected 0 to {num_labels - 1} or {IGNORE_INDEX}; "
            "evaluate on data with the classes that the network was trained on"
        )
    return torch.from_numpy(truth)

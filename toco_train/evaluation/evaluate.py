"""How good a network is on a whole split: IoU of CAM, auxiliary CAM and segmentation, F1 and AP of its class heads."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from toco_core.errors import DataError
from toco_core.fitting import Size
from toco_core.palette import IGNORE_INDEX
from toco_train.config import SegmentConfig
from toco_train.data.mask_tags import MaskKind, describe, disagreement, refuse_unusable_masks
from toco_train.data.source import Sample, image_labels, read_mask, with_masks
from toco_train.distributed import gathered, global_sum, rank, shard
from toco_train.evaluation.boundary_iou import boundary_counts
from toco_train.evaluation.metrics import ClassScores, Scores, class_scores, mask_scores
from toco_train.evaluation.miou import confusion_counts, mean_iou
from toco_train.inference.predict import Prediction, predict
from toco_train.models.toco import ToCo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a split.

    Attributes:
        cam: Label of the CAM at the background threshold, given the image label.
        aux_cam: The same of the auxiliary CAM.
        seg: Argmax of the segmentation; no label given.
        cls: The class head.
        aux_cls: The auxiliary class head.
        token_similarity: Mean pairwise |cosine| of final patch tokens, 0 to 1: high is over-smoothed.
        num_images: Images evaluated.
        confusion: Pixels by kind of mask (CAM, aux CAM, segmentation), true and predicted label, int64
            ``[3, C + 1, C + 1]``.
        image_iou: Mean IoU of each image's segmentation over the labels that its own truth holds, in the order of the
            samples that have a mask; NaN for one whose truth is all 255.
    """

    cam: Scores
    aux_cam: Scores
    seg: Scores
    cls: ClassScores
    aux_cls: ClassScores
    token_similarity: float
    num_images: int
    confusion: Tensor
    image_iou: tuple[float, ...]


def evaluate(
    model: ToCo,
    samples: Sequence[Sample],
    *,
    scales: Sequence[float],
    background_threshold: float,
    segment: SegmentConfig = SegmentConfig(),  # noqa: B008  (frozen)
    sizes: Sequence[Size] | None = None,
    crf: bool = False,
    batch_size: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Evaluation:
    """Score a network on the samples that have a mask; several processes share them out, and each has the result.

    Args:
        model: The network; it is put in evaluation mode and left in the mode that it was in.
        samples: Images with masks; those without are left out.
        scales: Scales of the CAM.
        background_threshold: Threshold of the CAM's label.
        segment: How the segmentation sees an image.
        sizes: Height and width of the sizes that images are fitted to; None: those of the run.
        crf: Refine all three masks by a dense CRF.
        batch_size: Images a batch.
        progress: Called with the images that this process has done and has to do.
        watch: Called with each sample of this process and its prediction.

    Raises:
        DataError: No sample has a mask, an image or mask cannot be read, is of another size or holds an unknown
            label, or the masks hold nothing but 0 and 255.
        ConfigError: ``crf`` without the extra.
    """
    samples = with_masks(samples)
    if not samples:
        raise DataError("no image to evaluate has a mask; evaluation needs masks, training does not")
    refuse_unusable_masks(samples)
    own, num_labels = shard(samples), model.num_classes + 1
    confusion = torch.zeros(3, num_labels, num_labels, dtype=torch.int64)
    boundary = torch.zeros(3, num_labels + 1, num_labels + 1, dtype=torch.int64)
    similarity = torch.zeros((), dtype=torch.float64)
    probabilities, image_iou, disagreements = list[Tensor](), list[float](), list[frozenset[MaskKind]]()
    was_training = model.training
    model.eval()
    try:
        for sample, prediction in zip(own, predict(model, own, scales, batch_size, segment, sizes=sizes), strict=True):
            watch(sample, prediction)
            truth = _checked_mask(sample, prediction, num_labels)
            disagreements.append(disagreement(sample, truth.numpy()))
            masks = (
                prediction.cam_mask(prediction.cam, background_threshold, crf=crf),
                prediction.cam_mask(prediction.aux_cam, background_threshold, crf=crf),
                prediction.seg_mask(crf=crf),
            )
            counts = torch.stack([confusion_counts(mask, truth, num_labels) for mask in masks])
            confusion += counts
            image_iou.append(mean_iou(counts[2]))
            boundary += torch.stack([boundary_counts(mask, truth, num_labels) for mask in masks])
            similarity += prediction.token_similarity
            probabilities.append(torch.stack([prediction.class_scores, prediction.aux_class_scores]).cpu())
            progress(len(probabilities), len(own))
    finally:
        model.train(was_training)
    said = describe(gathered(disagreements))
    if said and rank() == 0:
        log.warning("%s", said)
    confusion, boundary = global_sum(confusion), global_sum(boundary)
    cam, aux_cam, seg = map(mask_scores, confusion, boundary)
    tags = torch.from_numpy(np.stack([image_labels(sample, model.num_classes) for sample in samples]))
    cls, aux_cls = (class_scores(head, tags) for head in torch.stack(gathered(probabilities), dim=1))
    mean_similarity = float(global_sum(similarity)) / len(samples)
    return Evaluation(
        cam, aux_cam, seg, cls, aux_cls, mean_similarity, len(samples), confusion, tuple(gathered(image_iou))
    )


def evaluation_numbers(evaluation: Evaluation) -> dict[str, object]:
    """Return the scores, without confusion and single images, as plain numbers for JSON; None where there is none."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {key: plain(value) for key, value in asdict(evaluation).items() if key not in ("confusion", "image_iou")}


def _checked_mask(sample: Sample, prediction: Prediction, num_labels: int) -> Tensor:
    """Return the ground truth, uint8 ``[H, W]``, if it fits the image and its labels are known."""
    truth = read_mask(sample)
    if truth.shape != prediction.size:
        (height, width), (rows, columns) = prediction.size, truth.shape
        raise DataError(
            f"mask {sample.mask} is {columns}x{rows} px, but its image {sample.image} is {width}x{height} px upright; "
            "put the right mask there"
        )
    wrong = truth[(truth >= num_labels) & (truth != IGNORE_INDEX)]
    if wrong.size:
        raise DataError(
            f"mask {sample.mask} holds the label {wrong[0]}, expected 0 to {num_labels - 1} or {IGNORE_INDEX}; "
            "evaluate on data with the classes that the network was trained on"
        )
    return torch.from_numpy(truth)

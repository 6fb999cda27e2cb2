"""Pseudo labels: from the maps of a network to label maps that a segmenter can train on, 255 where they are unsure.

C foreground classes, K tags of an image, H x W pixels, h x w the size at which maps are refined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX, UInt8Array
from toco_train.config import LabelConfig, SegmentConfig
from toco_train.data.source import Sample
from toco_train.inference.predict import Prediction, label_map, predict, resized
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import agree
from toco_train.models.normalize import unit_range
from toco_train.models.toco import ToCo

MAX_REFINED_SIDE = 512


@dataclass(frozen=True)
class PseudoLabel:
    """What a network takes each pixel of an image for.

    Attributes:
        mask: uint8 ``[H, W]``: 0 background, 1..C, 255 unsure.
        confidence: uint8 ``[H, W]``: 255 times the score that the network itself gives the label, before any
            refinement; 0 where the label is 255. From the CAM: the activation of the class, and for background 1 less
            the strongest activation. From the segmentation: the label's softmax.
    """

    mask: UInt8Array
    confidence: UInt8Array


class Labeller:
    """Makes the pseudo label of an image.

    From the CAM, as in training: labels are taken twice, with a constant background score of ``high`` (cautious) and
    of ``low`` (generous). Where the cautious labels say foreground the label is that class, where both say background
    it is 0, else 255. Where the CAM of a tagged class is zero everywhere, that class is somewhere unseen, and nothing
    is background. From the segmentation: the most probable label, and 255 where the network gives it less than
    ``min_confidence``.

    Refinement by PAR happens at half the size of the image, as in training, and at most ``MAX_REFINED_SIDE`` pixels
    on the longer side, so that large photographs cost no more.

    Args:
        model: The network, in evaluation mode.
        config: How labels are made.

    Source: docs/method.md, step 5 (PAR) and test time (CRF).
    """

    def __init__(self, model: ToCo, config: LabelConfig) -> None:
        self._model, self._config = model, config
        self._par: PixelAdaptiveRefinement | None = None
        if config.refine == "par":
            self._par = PixelAdaptiveRefinement().to(next(model.parameters()).device)

    @torch.no_grad()
    def __call__(self, sample: Sample) -> PseudoLabel:
        """Return the pseudo label of an image, at the image's own size.

        Raises:
            DataError: The image cannot be read.
            ConfigError: A CRF is asked for and not installed.
        """
        scales = self._config.scales
        if self._config.maps == "cam":
            return self.label(next(predict(self._model, [sample], scales, 1)))
        return self.label(next(predict(self._model, [sample], (), 1, SegmentConfig(scales=scales, flip=True))))

    @torch.no_grad()
    def label(self, prediction: Prediction) -> PseudoLabel:
        """Return the pseudo label of an image from what the network makes of it: at the scales of the labels.

        Raises:
            ConfigError: A CRF is asked for and not installed.
        """
        return self._from_cam(prediction) if self._config.maps == "cam" else self._from_segmentation(prediction)

    def _from_cam(self, prediction: Prediction) -> PseudoLabel:
        cautious, generous = self._cam_masks(prediction)
        unseen = any(not cam.any() for cam in prediction.cam)
        mask = agree(cautious, generous).to(torch.uint8)
        if unseen:
            mask[mask == 0] = IGNORE_INDEX
        cams = dict(zip(prediction.labels, prediction.cam, strict=True))
        strongest = torch.zeros(prediction.size)
        for cam in prediction.cam:
            torch.maximum(strongest, _single(cam, prediction.size), out=strongest)
        return _with_confidence(mask, lambda label: _single(cams[label], prediction.size) if label else 1 - strongest)

    def _cam_masks(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Return the label maps with a high and with a low background score, each uint8 ``[H, W]``."""
        thresholds = (self._config.high, self._config.low)
        if not prediction.labels:
            cautious = generous = torch.zeros(prediction.size, dtype=torch.uint8)
        elif self._par is None:
            crf = self._config.refine == "crf"
            cautious, generous = (prediction.cam_mask(prediction.cam, t, crf=crf) for t in thresholds)
        else:
            cam = resized(prediction.cam, _refined_size(prediction.size))
            runs = [F.pad(cam, (0, 0, 0, 0, 1, 0), value=threshold).softmax(dim=0) for threshold in thresholds]
            refined = self._refined(prediction, torch.cat(runs))
            cautious, generous = (
                label_map([run], (0, *prediction.labels), prediction.size) for run in refined.chunk(2)
            )
        return cautious, generous

    def _from_segmentation(self, prediction: Prediction) -> PseudoLabel:
        probabilities = _probabilities(prediction)
        if self._par is None:
            mask = prediction.seg_mask(crf=self._config.refine == "crf")
        else:
            refined = self._refined(prediction, probabilities)
            mask = label_map([refined], range(len(refined)), prediction.size)
        pseudo_label = _with_confidence(mask, lambda label: _single(probabilities[label], prediction.size))
        unsure = pseudo_label.confidence < self._config.min_confidence * 255
        pseudo_label.mask[unsure] = IGNORE_INDEX
        pseudo_label.confidence[unsure] = 0
        return pseudo_label

    def _refined(self, prediction: Prediction, maps: Tensor) -> Tensor:
        """Refine maps ``[L, h, w]`` by PAR on the image at their size."""
        assert self._par is not None
        height, width = maps.shape[1:]
        pil_image = np.asarray(prediction.image.resize((width, height), resample=Image.Resampling.BOX))
        image = unit_range(torch.from_numpy(pil_image.copy()).to(maps.device).permute(2, 0, 1))
        refined: Tensor = self._par(image[None], maps[None])[0]
        return refined


def _probabilities(prediction: Prediction) -> Tensor:
    """Return the softmax of the mean logits of each flip pair, the largest over the scales: ``[C + 1, h, w]``."""
    size = _refined_size(prediction.size)
    scales = [resized(logits / 2, size) for logits in prediction.seg_logits]
    return torch.stack(scales).amax(dim=0).softmax(dim=0)


def _refined_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return half the size of an image, or less if that is large."""
    factor = min(0.5, MAX_REFINED_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _single(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize one map bilinearly: ``[h, w]`` -> ``[H, W]`` on the CPU."""
    return resized(plane[None], size)[0].cpu()


def _with_confidence(mask: Tensor, score_of: Callable[[int], Tensor]) -> PseudoLabel:
    """Put beside a mask the network's own score of the label that each pixel has."""
    confidence = torch.zeros(mask.shape, dtype=torch.uint8)
    for label in np.unique(mask.numpy()).tolist():
        if label != IGNORE_INDEX:
            score = (score_of(label) * 255).round().clamp(0, 255).to(torch.uint8)
            confidence = torch.where(mask == label, score, confidence)
    return PseudoLabel(mask.numpy(), confidence.numpy())

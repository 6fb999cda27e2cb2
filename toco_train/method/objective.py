"""One training step of Token Contrast: from a batch to its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.config import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.method.cam import multi_scale_cam, present_classes
from toco_train.method.local_crops import local_crops
from toco_train.method.losses import (
    balanced_segmentation_loss,
    class_token_contrast,
    classification_loss,
    dense_energy_loss,
    patch_token_contrast,
)
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import inside_boxes, refine_label, roi_mask, three_way_label, token_affinity
from toco_train.models.toco import ToCo, ToCoOutput


@dataclass(frozen=True)
class Losses:
    """The losses of a step: scalars on the training device, detached but for ``total``.

    ``parts`` holds the unweighted losses that the phase computes, by the names of ``LossWeights``.
    """

    total: Tensor
    parts: dict[str, Tensor]


class ToCoObjective(nn.Module):
    """The training objective: a network and all that turns a batch into losses.

    Source: docs/method.md, one training step. Same values as published with less work: the teacher reads the student's
    class tokens, view 1 is the training image's own pass, and so is its CAM at scale 1.
    """

    def __init__(
        self,
        model: ToCo,
        *,
        cam: CamConfig,
        contrast: ContrastConfig,
        regularization: RegularizationConfig,
        weights: LossWeights,
    ) -> None:
        super().__init__()
        self.model = model
        self.refinement = PixelAdaptiveRefinement()
        self._cam, self._contrast, self._regularization = cam, contrast, regularization
        self._weights = weights
        for name, value in (("mean", model.config.mean), ("std", model.config.std)):
            self.register_buffer(f"_{name}", torch.tensor(value).view(3, 1, 1), persistent=False)
        inset = model.patch_size - 1  # a box's first token is the first that lies wholly inside it
        self.register_buffer("_to_whole_tokens", torch.tensor([inset, 0, inset, 0]), persistent=False)
        self._mean: Tensor
        self._std: Tensor
        self._to_whole_tokens: Tensor

    def forward(self, batch: Batch, phase: Phase) -> Losses:
        """Compute the losses that the phase asks for."""
        weights, labels = self._weights, batch.image_labels
        images = self.normalise(batch.view1)
        output: ToCoOutput = self.model(images)
        parts = {
            "cls": classification_loss(output.class_logits.float(), labels),
            "aux_cls": classification_loss(output.aux_class_logits.float(), labels),
        }
        use = {name: getattr(phase, name) and getattr(weights, name) > 0 for name in ("ptc", "ctc", "seg", "reg")}
        if not any(use.values()):
            return self._weighted(parts)
        classes, present = present_classes(labels, batch.max_classes)
        cam, aux_cam = multi_scale_cam(
            self.model, images, self._cam.scales, scale_one=(output.cam, output.aux_cam), classes=classes
        )
        if use["ptc"]:
            parts["ptc"] = self._patch_token_contrast(output.patch_tokens, aux_cam, present, batch)
        if use["ctc"]:
            parts["ctc"] = self._class_token_contrast(output.cls_token, aux_cam, present, batch)
        if use["seg"] or use["reg"]:
            own_cam = cam if phase.pseudo_label == "cam" else aux_cam
            pseudo_label = self._pseudo_label(own_cam, present, classes, batch)
            # The decoder's are channels last: large, each loss would copy them.
            logits = F.interpolate(
                output.seg_logits.float().contiguous(), size=images.shape[-2:], mode="bilinear", align_corners=False
            )
            if use["seg"]:
                parts["seg"] = balanced_segmentation_loss(logits, pseudo_label)
            if use["reg"]:
                parts["reg"] = self._dense_energy(logits, pseudo_label, batch)
        return self._weighted(parts)

    def _weighted(self, parts: dict[str, Tensor]) -> Losses:
        """Add the losses up by their weights."""
        total = torch.stack([getattr(self._weights, name) * loss for name, loss in parts.items()]).sum()
        return Losses(total=total, parts={name: loss.detach() for name, loss in parts.items()})

    def normalise(self, images: Tensor) -> Tensor:
        """Scale uint8 images ``[B, 3, H, W]`` to [0, 1] and normalise each channel: float32."""
        return (images.float() / 255 - self._mean) / self._std

    def _patch_token_contrast(self, patch_tokens: Tensor, aux_cam: Tensor, present: Tensor, batch: Batch) -> Tensor:
        """Contrast final tokens by the relations that the auxiliary CAM suggests (docs/method.md, step 3)."""
        token_cam = F.interpolate(aux_cam, size=patch_tokens.shape[-2:], mode="bilinear", align_corners=False)
        boxes = torch.div(batch.boxes + self._to_whole_tokens, self.model.patch_size, rounding_mode="floor")
        labels = three_way_label(token_cam, present, self._cam.low, self._cam.high, boxes)
        return patch_token_contrast(patch_tokens, token_affinity(labels))

    def _class_token_contrast(self, cls_token: Tensor, aux_cam: Tensor, present: Tensor, batch: Batch) -> Tensor:
        """Contrast the class tokens of local crops with those of the whole image (docs/method.md, step 4)."""
        config = self._contrast
        roi = roi_mask(aux_cam, present, self._cam.low, self._cam.high)
        crops, positive = local_crops(
            self.normalise(batch.local),
            roi,
            batch.seeds,
            num_crops=config.num_local_crops,
            crop_size=config.local_crop_size,
            negative_ratio=config.negative_ratio,
        )
        second = self.model.backbone.class_token(self.normalise(batch.view2))
        local = self.model.backbone.class_token(crops.flatten(0, 1))
        views = torch.cat([torch.stack([cls_token, second], dim=1), local.view(*crops.shape[:2], -1)], dim=1)
        teacher = self.model.teacher_projection(views[:, :2].detach())
        positive = torch.cat([positive.new_ones(len(positive), 2), positive], dim=1)
        return class_token_contrast(self.model.projection(views), teacher, positive, config.temperature)

    def _pseudo_label(self, cam: Tensor, present: Tensor, classes: Tensor, batch: Batch) -> Tensor:
        """Refine a CAM to the label that the segmentation learns from (docs/method.md, step 5)."""
        return refine_label(
            batch.view1.float() / 255, cam, present, self._cam.low, self._cam.high, batch.boxes, self.refinement,
            classes=classes,
        )  # fmt: skip

    def _dense_energy(self, logits: Tensor, pseudo_label: Tensor, batch: Batch) -> Tensor:
        """Ask like pixels to agree (docs/method.md, step 7)."""
        config = self._regularization
        return config.scale * dense_energy_loss(
            batch.view1.float(),
            logits.softmax(dim=1),
            pseudo_label,
            inside_boxes(batch.boxes, *logits.shape[-2:]),
            sigma_rgb=config.sigma_rgb,
            sigma_xy=config.sigma_xy,
        )

"""One training step of Token Contrast: from a batch to its losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.config import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.method.cam import MaskedCam, inside_boxes, mask_cam, multi_scale_cam, present_classes
from toco_train.method.local_crops import local_crops
from toco_train.method.losses import (
    balanced_segmentation_loss,
    class_token_contrast,
    classification_loss,
    dense_energy_loss,
    patch_token_contrast,
)
from toco_train.method.par import PixelAdaptiveRefinement
from toco_train.method.pseudo_label import refine_label, roi_mask, three_way_label, token_affinity
from toco_train.models.normalize import normalize_images, unit_range
from toco_train.models.toco import ToCo, ToCoOutput


@dataclass(frozen=True)
class Losses:
    """The losses of a step: scalars on the training device, detached but for ``total``.

    ``parts`` holds the losses that the phase computes, before weighting, by the names of ``LossWeights``.
    """

    total: Tensor
    parts: dict[str, Tensor]


class ToCoObjective(nn.Module):
    """The training objective: the network, and everything from a batch to its losses.

    Source: docs/method.md, one training step. Same values as published with less work: the teacher reads the student's
    class tokens, and the forward pass of the training image also serves as view 1 and as its CAM at scale 1.
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
        self._mean: Tensor
        self._std: Tensor

    def forward(self, batch: Batch, phase: Phase) -> Losses:
        """Compute the losses that the phase asks for."""
        weights, pixels = self._weights, batch.view1.float()
        images = self.normalize(pixels)
        output: ToCoOutput = self.model(images)
        parts = {
            "cls": classification_loss(output.class_logits.float(), batch.image_labels),
            "aux_cls": classification_loss(output.aux_class_logits.float(), batch.image_labels),
        }
        use = {name: getattr(phase, name) and getattr(weights, name) > 0 for name in ("ptc", "ctc", "seg", "reg")}
        if not any(use.values()):
            return self._weighted(parts)
        cam, aux_cam = self._masked_cams(images, output, batch)
        if use["ptc"]:
            parts["ptc"] = self._patch_token_contrast(output.patch_tokens, aux_cam)
        if use["ctc"]:
            parts["ctc"] = self._class_token_contrast(output.cls_token, aux_cam, batch)
        if use["seg"] or use["reg"]:
            chosen = cam if phase.pseudo_label == "cam" else aux_cam
            pseudo_label = refine_label(unit_range(pixels), chosen, self._cam.low, self._cam.high, self.refinement)
            # The decoder's logits are channels last: each loss would copy them at full size.
            logits = F.interpolate(
                output.seg_logits.float().contiguous(), size=images.shape[-2:], mode="bilinear", align_corners=False
            )
            if use["seg"]:
                parts["seg"] = balanced_segmentation_loss(logits, pseudo_label)
            if use["reg"]:
                parts["reg"] = self._dense_energy(pixels, logits, pseudo_label, chosen.inside)
        return self._weighted(parts)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise RGB in [0, 255], ``[B, 3, H, W]``, as the network expects it: float32."""
        return normalize_images(images, self._mean, self._std)

    def _weighted(self, parts: dict[str, Tensor]) -> Losses:
        """Sum the losses by their weights."""
        total = torch.stack([getattr(self._weights, name) * loss for name, loss in parts.items()]).sum()
        return Losses(total=total, parts={name: loss.detach() for name, loss in parts.items()})

    def _masked_cams(self, images: Tensor, output: ToCoOutput, batch: Batch) -> tuple[MaskedCam, MaskedCam]:
        """Compute CAM and aux CAM of the classes that each image has (docs/method.md, step 1)."""
        classes, present = present_classes(batch.image_labels, batch.max_classes)
        maps, aux_maps = multi_scale_cam(
            self.model, images, self._cam.scales, scale_one=(output.cam, output.aux_cam), classes=classes
        )
        inside = inside_boxes(batch.boxes, *images.shape[-2:])
        return mask_cam(maps, present, inside, classes=classes), mask_cam(aux_maps, present, inside, classes=classes)

    def _patch_token_contrast(self, patch_tokens: Tensor, aux_cam: MaskedCam) -> Tensor:
        """Contrast final tokens by the relations in the auxiliary CAM (docs/method.md, step 3)."""
        labels = three_way_label(aux_cam.at_tokens(self.model.patch_size), self._cam.low, self._cam.high)
        return patch_token_contrast(patch_tokens, token_affinity(labels))

    def _class_token_contrast(self, cls_token: Tensor, aux_cam: MaskedCam, batch: Batch) -> Tensor:
        """Contrast the class tokens of local crops with those of the whole image (docs/method.md, step 4)."""
        config = self._contrast
        crops, positive = local_crops(
            self.normalize(batch.local),
            roi_mask(aux_cam, self._cam.low, self._cam.high),
            batch.seeds,
            num_crops=config.num_local_crops,
            crop_size=config.local_crop_size,
            negative_ratio=config.negative_ratio,
        )
        second = self.model.backbone.class_token(self.normalize(batch.view2))
        local = self.model.backbone.class_token(crops.flatten(0, 1))
        views = torch.cat([torch.stack([cls_token, second], dim=1), local.view(*crops.shape[:2], -1)], dim=1)
        teacher = self.model.teacher_projection(views[:, :2].detach())
        positive = torch.cat([positive.new_ones(len(positive), 2), positive], dim=1)
        return class_token_contrast(self.model.projection(views), teacher, positive, config.temperature)

    def _dense_energy(self, pixels: Tensor, logits: Tensor, pseudo_label: Tensor, inside: Tensor) -> Tensor:
        """Compute the dense energy of the segmentation (docs/method.md, step 7)."""
        config = self._regularization
        return config.scale * dense_energy_loss(
            pixels,
            logits.softmax(dim=1),
            pseudo_label,
            inside,
            sigma_rgb=config.sigma_rgb,
            sigma_xy=config.sigma_xy,
        )

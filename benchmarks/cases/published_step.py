"""The training step in the published order of computation, nothing shared: what ours is measured against.

Same network, same loss functions, same local crops and, to rounding, the same losses as
``toco_train.method.objective``; a test says so. What it computes again where ours reuses:

- the CAM runs all six passes (three scales, each with its flip), the unflipped one at scale 1 too;
- the teacher runs its own pass over both global views, and the student runs view 1 a second time;
- the maps of all classes are made as large as the image, and those that its label does not name then set to 0;
- the pseudo label is refined image by image, and each of its two thresholds computes the affinity of the image anew.

Left as ours, so that only the schedule differs: the memory-lean refinement and the dense energy on the training device
(the published ones gather all neighbours at once, and run a compiled CPU extension). The linear layers are PyTorch's
own after ``leave_products_to_pytorch``, as they are in what the reports call ``plain``.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX
from toco_train.config import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig
from toco_train.data.loader import Batch
from toco_train.kernels.token_linear import TokenLinear
from toco_train.method.cam import MaskedCam, inside_boxes, mask_cam, multi_scale_cam
from toco_train.method.local_crops import local_crops
from toco_train.method.losses import balanced_segmentation_loss, class_token_contrast, classification_loss
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.method.pseudo_label import roi_mask
from toco_train.models.normalize import unit_range
from toco_train.models.toco import ToCo, ToCoOutput


class PlainTokenContrast(ToCoObjective):
    """The training objective with no work shared.

    Args:
        model: The network; ``materialised_attention`` changes it.
        cam: As for ``ToCoObjective``, and so are the next three.
        contrast: See there.
        regularization: See there.
        weights: See there.
        materialised_attention: Write every attention matrix out, as the published network does.

    Source: docs/method.md, the counts under "one training step".
    """

    def __init__(
        self,
        model: ToCo,
        *,
        cam: CamConfig,
        contrast: ContrastConfig,
        regularization: RegularizationConfig,
        weights: LossWeights,
        materialised_attention: bool = False,
    ) -> None:
        super().__init__(model, cam=cam, contrast=contrast, regularization=regularization, weights=weights)
        if materialised_attention:
            materialise_attention(model)

    def forward(self, batch: Batch, phase: Phase) -> Losses:
        """Compute the losses; of the phase only ``pseudo_label`` is read, and none but the energy is ever left out."""
        pixels, labels = batch.view1.float(), batch.image_labels
        images, inside = self.normalize(pixels), inside_boxes(batch.boxes, *pixels.shape[-2:])
        cam, aux_cam = (
            mask_cam(maps, labels, inside) for maps in multi_scale_cam(self.model, images, self._cam.scales)
        )
        output: ToCoOutput = self.model(images)
        pseudo_label = self._agreed_label(cam if phase.pseudo_label == "cam" else aux_cam, batch)
        logits = F.interpolate(
            output.seg_logits.float().contiguous(), size=images.shape[-2:], mode="bilinear", align_corners=False
        )
        parts = {
            "cls": classification_loss(output.class_logits.float(), labels),
            "aux_cls": classification_loss(output.aux_class_logits.float(), labels),
            "ptc": self._patch_token_contrast(output.patch_tokens, aux_cam),
            "ctc": self._class_token_contrast(output.cls_token, aux_cam, batch),
            "seg": balanced_segmentation_loss(logits, pseudo_label),
        }
        if self._weights.reg:
            parts["reg"] = self._dense_energy(pixels, logits, pseudo_label, inside)
        return self._weighted(parts)

    def _class_token_contrast(self, cls_token: Tensor, aux_cam: MaskedCam, batch: Batch) -> Tensor:
        """Contrast the views, each from a forward pass of its own; ``cls_token`` is not used."""
        config = self._contrast
        crops, positive = local_crops(
            self.normalize(batch.local),
            roi_mask(aux_cam, self._cam.low, self._cam.high),
            batch.seeds,
            num_crops=config.num_local_crops,
            crop_size=config.local_crop_size,
            negative_ratio=config.negative_ratio,
        )
        global_views = torch.cat([self.normalize(batch.view1), self.normalize(batch.view2)])
        with torch.no_grad():
            teacher = self.model.teacher_projection(self.model.backbone(global_views).cls_token)
        whole = self.model.backbone(global_views).cls_token.unflatten(0, (2, -1)).transpose(0, 1)
        local = self.model.backbone(crops.flatten(0, 1)).cls_token.unflatten(0, crops.shape[:2])
        student = self.model.projection(torch.cat([whole, local], dim=1))
        positive = torch.cat([positive.new_ones(len(positive), 2), positive], dim=1)
        return class_token_contrast(
            student, teacher.unflatten(0, (2, -1)).transpose(0, 1), positive, config.temperature
        )

    def _agreed_label(self, cam: MaskedCam, batch: Batch) -> Tensor:
        """Refine once with each threshold and keep what the two runs agree on."""
        cautious, generous = (self._refined(cam, batch, threshold) for threshold in (self._cam.high, self._cam.low))
        label = torch.where(cautious > 0, cautious, torch.where(generous > 0, IGNORE_INDEX, 0))
        return torch.where(cam.inside, label, IGNORE_INDEX)

    @torch.no_grad()
    def _refined(self, cam: MaskedCam, batch: Batch, background: float) -> Tensor:
        """Return the refined label of each image for one background score, int64 ``[B, H, W]``."""
        height, width = cam.maps.shape[-2:]
        half = (height // 2, width // 2)
        labels = []
        for image, maps, known in zip(batch.view1[:, None], cam.maps[:, None], cam.present, strict=True):
            present = known.nonzero().flatten()
            small_image = F.interpolate(unit_range(image), size=half, mode="bilinear", align_corners=False)
            scores = F.interpolate(maps[:, present], size=half, mode="bilinear", align_corners=False)
            scores = F.pad(scores, (0, 0, 0, 0, 1, 0), value=background)
            refined = self.refinement(small_image, scores.softmax(dim=1))
            refined = F.interpolate(refined, size=(height, width), mode="bilinear", align_corners=False)
            labels.append(F.pad(present + 1, (1, 0))[refined.argmax(dim=1)])
        return torch.cat(labels)


class MaterialisedAttention(Attention):  # type: ignore[misc]
    """The attention of timm's blocks with every matrix written out, in the operations of the published network.

    It scales the whole matrix. timm without its fused kernel scales the queries first: the same to rounding, with a
    pass less over ``heads x N x N`` numbers.
    """

    def forward(self, tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the attended tokens, float ``[B, N, D]``: without a mask or a gate, which no network here has."""
        size = (*tokens.shape[:2], 3, self.num_heads, self.head_dim)
        query, key, value = self.qkv(tokens).reshape(size).permute(2, 0, 3, 1, 4)
        matrix = (self.q_norm(query) @ self.k_norm(key).transpose(-2, -1)) * self.scale
        mixed = self.attn_drop(matrix.softmax(dim=-1)) @ value
        joined: Tensor = self.proj_drop(self.proj(self.norm(mixed.transpose(1, 2).flatten(2))))
        return joined


def materialise_attention(model: ToCo) -> None:
    """Make every block compute its attention matrix and softmax as tensors, in place; names and weights stay."""
    for block in model.backbone.vit.blocks:
        block.attn.__class__ = MaterialisedAttention  # it has no state of its own


def leave_products_to_pytorch(model: ToCo) -> None:
    """Make the linear layers of every block PyTorch's own again."""
    for layer in model.backbone.vit.blocks.modules():
        if isinstance(layer, TokenLinear):
            layer.convolves = False

"""The ToCo network: a ViT with two class heads, their class activation maps, a decoder and a projection head."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_core.fitting import Size, network_sizes
from toco_train.config import ModelConfig
from toco_train.models.decoder import LargeFOV
from toco_train.models.projection import ProjectionHead
from toco_train.models.vit import Tokens, build_backbone


@dataclass(frozen=True)
class ToCoOutput:
    """The results of one forward pass, float; h = H / patch size, w = W / patch size, C foreground classes.

    Attributes:
        class_logits: Image-level logits of the final tokens, ``[B, C]``.
        aux_class_logits: Image-level logits of the auxiliary block's tokens, ``[B, C]``.
        seg_logits: Segmentation logits, ``[B, C + 1, h, w]``, background first.
        cam: Class activation map of the final tokens before ReLU, ``[B, C, h, w]``, without gradient.
        aux_cam: The same for the auxiliary block's tokens.
        cls_token: Class token after the final norm, ``[B, D]``.
        patch_tokens: Patch tokens after the final norm, ``[B, D, h, w]``.
    """

    class_logits: Tensor
    aux_class_logits: Tensor
    seg_logits: Tensor
    cam: Tensor
    aux_cam: Tensor
    cls_token: Tensor
    patch_tokens: Tensor


class ToCo(nn.Module):
    """Token Contrast network.

    Args:
        config: The network's configuration; ``config.classes`` names the C foreground classes.

    Raises:
        ConfigError: The backbone cannot be built, or its pretrained weights are not available.
        RunError: ``config.weights`` cannot be read or does not fit the backbone.
        ValueError: ``config.classes`` is empty.

    Source: ToCo (CVPR 2023), section 3; docs/method.md, network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.classes:
            raise ValueError("ModelConfig.classes is empty: a network needs the names of its foreground classes")
        self.config = config
        self.num_classes = len(config.classes)
        self.backbone = build_backbone(
            config.backbone, pretrained=config.pretrained, weights=config.weights, aux_block=config.aux_block
        )
        width = self.backbone.width
        self.classifier = nn.Conv2d(width, self.num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, self.num_classes, 1, bias=False)
        self.decoder = LargeFOV(
            width, self.num_classes + 1, channels=config.decoder_channels, dilation=config.decoder_dilation
        )
        self.projection = ProjectionHead(width)
        self.teacher_projection = copy.deepcopy(self.projection).requires_grad_(False)
        if config.freeze_position_embedding:
            self.backbone.vit.pos_embed.requires_grad_(False)

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels: image sides must be multiples of it."""
        return self.backbone.patch_size

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width of the sizes that images are fitted to: the run's, or the usual ones where it names none."""
        return self.config.sizes or network_sizes(self.config.image_size, self.patch_size)

    def forward(self, images: Tensor) -> ToCoOutput:
        """Run the whole network on normalised images, float ``[B, 3, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        tokens: Tokens = self.backbone(images)
        cam, aux_cam = self._activation_maps(tokens)
        return ToCoOutput(
            class_logits=self.classifier(F.adaptive_max_pool2d(tokens.patch_tokens, 1)).flatten(1),
            aux_class_logits=self.aux_classifier(F.adaptive_max_pool2d(tokens.aux_tokens, 1)).flatten(1),
            seg_logits=self.decoder(tokens.patch_tokens),
            cam=cam,
            aux_cam=aux_cam,
            cls_token=tokens.cls_token,
            patch_tokens=tokens.patch_tokens,
        )

    @torch.no_grad()
    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CAM and aux CAM before ReLU, each ``[B, C, h, w]``, without the decoder and without gradient."""
        return self._activation_maps(self.backbone(images))

    def segment(self, images: Tensor) -> Tensor:
        """Return only the segmentation logits, ``[B, C + 1, h, w]``; this is exported and served."""
        logits: Tensor = self.decoder(self.backbone(images).patch_tokens)
        return logits

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's projection head towards the student's: ``t = momentum * t + (1 - momentum) * s``."""
        self.teacher_projection.ema_update(self.projection, momentum)

    @torch.no_grad()
    def _activation_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.classifier(tokens.patch_tokens), self.aux_classifier(tokens.aux_tokens)

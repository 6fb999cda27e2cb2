"""The graph that is served: the network with everything before and after it, so that no client can get it wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.model import ToCo

INPUT_NAME = "image"
OUTPUT_NAMES = ("mask", "confidence")


class ServedModel(nn.Module):
    """A trained network as the contract serves it: RGB bytes in, labels and confidence out.

    The very first operation makes floats of bytes and the very last ones make bytes again: TensorRT takes uint8 only
    at a network's edge, and only there. Normalisation is the training package's, operation for operation. All before
    and after ``model.segment`` is fp32, whatever the network's layers compute in.

    Args:
        model: The network; its ``config`` gives mean and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ToCo) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.config.std).view(1, 3, 1, 1))

    def logits(self, image: Tensor) -> Tensor:
        """Return the logits at the patches' stride, float32 ``[B, C + 1, H / P, W / P]``, of uint8 ``[B, H, W, 3]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size P.
        """
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        return self.model.segment((pixels / 255 - self.mean) / self.std).to(torch.float32)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Label every pixel.

        Args:
            image: RGB, uint8 ``[B, H, W, 3]``; H and W multiples of the patch size.

        Returns:
            Label map, uint8 ``[B, H, W]`` (0 background, 1..C), and the winner's softmax times 255, rounded, uint8
            ``[B, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        return answer(self.logits(image), image.shape[1:3])


def answer(logits: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return label map and confidence, uint8 ``[B, H, W]``, of logits ``[B, C + 1, h, w]``; ``size`` is H and W."""
    logits = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    confidence, mask = logits.softmax(dim=1).max(dim=1)
    return mask.to(torch.uint8), (confidence * 255).round().to(torch.uint8)


class ExportedAttention(Attention):  # type: ignore[misc]
    """timm's attention in the form that ONNX Runtime and TensorRT fuse: the same numbers by fewer operations.

    timm cuts one tensor of five dimensions into queries, keys and values and scales through square roots; traced,
    that is 14 operations more a block.
    """

    def heads(self, joint: Tensor) -> list[Tensor]:
        """Return scaled queries, keys and values, float ``[B, heads, N, head_dim]``, of their joint projection."""
        shape = (*joint.shape[:2], self.num_heads, self.head_dim)
        queries, keys, values = (
            part.reshape(shape).transpose(1, 2) for part in torch.split(joint, self.attn_dim, dim=-1)
        )
        queries, keys = (norm(part).to(part.dtype) for norm, part in ((self.q_norm, queries), (self.k_norm, keys)))
        return [queries * self.scale, keys, values]

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the attended tokens, float ``[B, N, D]``."""
        queries, keys, values = self.heads(self.qkv(x))
        attended = (queries @ keys.transpose(-2, -1)).softmax(dim=-1) @ values
        joined: Tensor = self.proj(self.norm(attended.transpose(1, 2).flatten(2)))
        return joined


def exported_model(model: ToCo) -> ToCo:
    """Return a copy of a network in the form that is traced; its answers are the same."""
    copied = copy.deepcopy(model)
    for block in copied.backbone.vit.blocks:
        if type(block.attn) is Attention and getattr(block.attn, "gate", None) is None:
            block.attn.__class__ = ExportedAttention
    return copied

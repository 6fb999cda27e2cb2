"""The graph that is served: the network with everything before and after it, so that no client can get it wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.models.normalize import normalize_images
from toco_train.models.toco import ToCo
from toco_train.models.vit import Backbone

INPUT_NAME = "image"
OUTPUT_NAMES = ("mask", "confidence")


class ServedModel(nn.Module):
    """A trained network as the contract serves it: RGB bytes in, labels and confidence out.

    The very first operation makes floats of bytes and the very last ones make bytes again: TensorRT takes uint8 only
    at a network's edge, and only there. Normalisation is the training package's. All before
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
        return self.model.segment(normalize_images(pixels, self.mean, self.std)).to(torch.float32)

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
    largest, mask = logits.max(dim=1)
    # the softmax of the largest alone: ONNX Runtime is slow at one across an axis that is not the last
    confidence = 1 / (logits - largest[:, None]).exp().sum(dim=1)
    return mask.to(torch.uint8), (confidence * 255).round().to(torch.uint8)


class ExportedAttention(Attention):  # type: ignore[misc]
    """timm's attention in the form that ONNX Runtime and TensorRT fuse: the same numbers by fewer operations.

    timm cuts one tensor of five dimensions into queries, keys and values and scales through square roots; traced,
    that is 14 operations more a block.
    """

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the attended tokens, float ``[B, N, D]``."""
        queries, keys, values = attention_heads(self, self.qkv(x))
        attended = (queries @ keys.transpose(-2, -1)).softmax(dim=-1) @ values
        joined: Tensor = self.proj(self.norm(attended.transpose(1, 2).flatten(2)))
        return joined


def is_plain_attention(module: nn.Module) -> bool:
    """Tell whether a layer is timm's attention as a plain ViT has it, exported or not."""
    return type(module) in (Attention, ExportedAttention) and getattr(module, "gate", None) is None


def attention_heads(attention: Attention, joint: Tensor) -> list[Tensor]:
    """Return scaled queries, keys and values, float ``[B, heads, N, head_dim]``, of their joint projection."""
    shape = (*joint.shape[:2], attention.num_heads, attention.head_dim)
    queries, keys, values = (
        part.reshape(shape).transpose(1, 2) for part in torch.split(joint, attention.attn_dim, dim=-1)
    )
    norms = ((attention.q_norm, queries), (attention.k_norm, keys))
    queries, keys = (norm(part).to(part.dtype) for norm, part in norms)
    return [queries * attention.scale, keys, values]


class ExportedBackbone(Backbone):
    """The backbone with its position embedding resized by few operations that are fast everywhere.

    ONNX Runtime's cubic Resize goes one value at a time on a CPU. TensorRT rejects some forms of Resize, and none of
    these operations.
    """

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding for a grid of patches, ``[1, 1 + rows * columns, D]``."""
        embedding: Tensor = self.vit.pos_embed[0]
        patches = embedding[1:].reshape(*self.grid_size, self.width)
        patches = _cubic(_cubic(patches, 0, rows), 1, columns)
        return torch.cat([embedding[:1], patches.flatten(0, 1)]).unsqueeze(0)


def _cubic(values: Tensor, axis: int, size: int) -> Tensor:
    """Resize one axis of a grid, float ``[h, w, D]``, as PyTorch's bicubic interpolation does.

    Source: Keys, Cubic convolution interpolation for digital image processing, 1981, with a = -0.75; corners not
    aligned, edges repeated, no antialias.
    """
    number, a = values.shape[axis], -0.75
    places = (torch.arange(size, dtype=torch.float32, device=values.device) + 0.5) * (number / size) - 0.5
    taps = places.floor()[:, None] + torch.arange(-1.0, 3.0, device=values.device)
    distance = (places[:, None] - taps).abs()
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = torch.where(distance <= 1, near, far)[..., None]
    taken = values.index_select(axis, taps.clamp(0, number - 1).long().flatten())
    taken = taken.reshape(*values.shape[:axis], size, 4, *values.shape[axis + 1 :])
    return (taken * (weights if axis == 1 else weights[..., None])).sum(dim=axis + 1)


def exported_model(model: ToCo) -> ToCo:
    """Return a copy of a network in the form that is traced; its answers are the same, and its weights not copied."""
    shared = {id(weight): nn.Parameter(weight.detach(), weight.requires_grad) for weight in model.parameters()}
    copied = copy.deepcopy(model, shared)
    copied.backbone.__class__ = ExportedBackbone
    for block in copied.backbone.vit.blocks:
        if is_plain_attention(block.attn):
            block.attn.__class__ = ExportedAttention
    return copied

"""The network in half precision where that is safe, and in fp32 where fp16 overflows or loses the mask."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from toco_export.graph import ServedModel
from toco_train.model import ToCo


class FloatLayerNorm(nn.Module):
    """A LayerNorm that computes in fp32 and gives fp16: in fp16 its sum of squares overflows."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise tokens, float ``[..., D]``, over D."""
        normed: Tensor = self.norm(tokens.to(torch.float32))
        return normed.to(torch.float16)


def half_served_model(model: ToCo) -> ServedModel:
    """Return the served graph of a network with its matrix products in fp16; the network itself is left as it is.

    fp16: patch embedding, attention, MLPs, decoder. fp32: LayerNorms, position embedding and its resizing, the
    residual stream (an fp16 branch added to fp32 tokens stays fp32), the final upsampling and softmax. That is what
    automatic mixed precision computes too. Attention's softmax takes and gives fp16: it subtracts the largest score
    first, and each runtime sums it in fp32.

    The conversion happens here, in PyTorch, so that the exporter writes each cast once: ONNX Runtime's float16
    converter wrote the same cast several times for one value.
    """
    return ServedModel(half_body(model), body_dtype=torch.float16)


def half_body(model: ToCo) -> ToCo:
    """Return a copy whose ``segment`` takes normalised images and gives logits in fp16."""
    half = copy.deepcopy(model)
    for part in (half.backbone.vit.patch_embed, half.backbone.vit.blocks, half.decoder):
        part.half()
    for module in list(half.backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(module, name, FloatLayerNorm(child))
    return half

"""The network in fp16 or bf16 where that is safe, and in fp32 where it overflows or loses the mask."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from toco_core.manifest import Precision
from toco_export.graph import exported_model
from toco_train.models.toco import ToCo

Reduced = Literal["fp16", "bf16"]
DTYPES: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}


class InOwnType(nn.Module):
    """A layer that takes any type and computes in that of its own weights."""

    def __init__(self, layer: nn.Linear | nn.Conv2d | nn.LayerNorm) -> None:
        super().__init__()
        self.layer, self.dtype = layer, layer.weight.dtype

    def forward(self, values: Tensor) -> Tensor:
        """Run the layer on values, float of any shape that it takes."""
        result: Tensor = self.layer(values.to(self.dtype))
        return result


def reduced_model(model: ToCo, precision: Reduced, keep: Collection[str] = ()) -> ToCo:
    """Return a copy of a network whose ``segment`` multiplies matrices in half precision.

    Reduced: patch embedding, attention, MLPs, decoder. fp32: LayerNorms, position embedding and its resizing, the
    residual stream (a reduced branch added to fp32 tokens gives fp32). That is what automatic mixed precision
    computes too. Attention's softmax takes and gives half precision: it subtracts the largest score first, and each
    runtime sums it in fp32.

    It stands in for what a processor cannot run, and says which types ``toco_export.onnx.fp16_bf16`` has to give
    the file.

    Args:
        model: The network, which is left as it is.
        precision: What the layers are converted to.
        keep: Names, as ``product_layers`` gives them, of those that stay in fp32.
    """
    reduced = exported_model(model)
    for name, layer in list(product_layers(reduced)):
        if name not in keep:
            layer.to(DTYPES[precision])
    _wrap(reduced.backbone)
    _wrap(reduced.decoder)
    return reduced


def product_layers(model: ToCo) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Give the layers that ``segment`` multiplies matrices in, in order, by their names in the network."""
    for part in ("backbone.vit.patch_embed", "backbone.vit.blocks", "decoder"):
        for name, module in model.get_submodule(part).named_modules(prefix=part):
            if isinstance(module, nn.Linear | nn.Conv2d):
                yield name, module


def _wrap(module: nn.Module) -> None:
    """Let every layer below convert its own input."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear | nn.Conv2d | nn.LayerNorm):
            setattr(module, name, InOwnType(child))
        else:
            _wrap(child)

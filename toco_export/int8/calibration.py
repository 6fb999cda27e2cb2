"""What int8 would do to each layer: how far its inputs reach on real images, and how much of its output is noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toco_core.palette import UInt8Array
from toco_export.graph import ServedModel, exported_model
from toco_export.onnx.reduced import product_layers
from toco_export.runtimes import torch_segmenter
from toco_train.models.toco import ToCo

INPUT_STEPS = 127  # of int8, either way from 0
WEIGHT_STEPS = 64  # see toco_export.int8.quantization
TOKENS_PER_BATCH = 64  # that layers are tried on
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class LayerCalibration:
    """How a linear layer is quantised, and what that costs.

    Attributes:
        bound: Largest magnitude of an input that int8 can tell apart; what goes beyond is cut off.
        noise: Power of the error of its output, as a share of the output's own.
    """

    bound: float
    noise: float


@torch.inference_mode()
def calibrate(model: ToCo, batches: Sequence[UInt8Array]) -> dict[str, LayerCalibration]:
    """Work out how each linear layer is quantised, each by itself, the others in fp32.

    The bound is the share of the largest input that leaves the least noise in the layer's output: in a ViT a few
    channels of a few tokens are many times larger than the rest, and steps wide enough for those tell nothing else
    apart.

    Args:
        model: The network in fp32, which is left as it is.
        batches: Real images, uint8 ``[B, H, W, 3]`` each.

    Returns:
        Layer names, as ``product_layers`` gives them, to what was found; convolutions stay as they are.
    """
    copied = exported_model(model)
    layers = {name: layer for name, layer in product_layers(copied) if isinstance(layer, nn.Linear)}
    tokens: dict[str, list[Tensor]] = defaultdict(list)
    largest: dict[str, float] = defaultdict(float)

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> None:
            seen = inputs[0].flatten(0, -2)
            largest[name] = max(largest[name], float(seen.abs().amax()))
            chosen = torch.linspace(0, len(seen) - 1, min(TOKENS_PER_BATCH, len(seen))).round().long()
            tokens[name].append(seen[chosen])

        return hook

    for name, layer in layers.items():
        layer.register_forward_hook(note(name))
    segment = torch_segmenter(ServedModel(copied).eval())
    for images in batches:
        segment(images)
    return {name: _least_noise(layer, torch.cat(tokens[name]), largest[name]) for name, layer in layers.items()}


def _least_noise(layer: nn.Linear, tokens: Tensor, largest: float) -> LayerCalibration:
    """Try bounds on the inputs ``[N, D]`` of a layer."""
    weight = layer.weight
    bounds = weight.abs().amax(dim=1, keepdim=True)
    quantized = _quantized(weight, bounds, WEIGHT_STEPS)
    output = tokens @ weight.T
    power = float(output.square().sum()) or 1.0
    tried = []
    for share in SHARES:
        bound = torch.tensor(share * largest)
        error = _quantized(tokens, bound, INPUT_STEPS) @ quantized.T - output
        tried.append(LayerCalibration(float(bound), float(error.square().sum()) / power))
    return min(tried, key=lambda calibration: calibration.noise)


def _quantized(values: Tensor, bound: Tensor, steps: int) -> Tensor:
    """Round to so many steps of equal width either way from 0 to the bound."""
    width = (bound / steps).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / width).round().clamp(-steps, steps) * width

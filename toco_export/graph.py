"""The graph that is served: the network with everything before and after it, so that no client can get it wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.model import ToCo

INPUT_NAME = "image"
OUTPUT_NAMES = ("mask", "confidence")


class ServedModel(nn.Module):
    """A trained network as the contract serves it: RGB bytes in, labels and confidence out.

    The very first operation makes floats of bytes and the very last ones make bytes again: TensorRT takes uint8 only
    at a network's edge, and only there. Normalisation is the training package's, operation for operation.

    Args:
        model: The network; its ``config`` gives mean and standard deviation.
        body_dtype: What ``model.segment`` takes and gives: fp32, or fp16 for a network from ``half.half_body``.
            All before and after it is fp32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: ToCo, body_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.body_dtype = body_dtype
        self.register_buffer("mean", torch.tensor(model.config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.config.std).view(1, 3, 1, 1))

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
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        images = (pixels / 255 - self.mean) / self.std
        logits = self.model.segment(images.to(self.body_dtype)).to(torch.float32)
        logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        confidence, mask = logits.softmax(dim=1).max(dim=1)
        return mask.to(torch.uint8), (confidence * 255).round().to(torch.uint8)

"""The one normalisation of images, in training, inference and the served graph."""

from __future__ import annotations

from torch import Tensor


def unit_range(images: Tensor) -> Tensor:
    """Scale RGB values, uint8 or float32, from [0, 255] to [0, 1]: float32 of the same shape."""
    return images / 255


def normalize_images(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale images to [0, 1], subtract each channel's mean and divide by its standard deviation.

    Args:
        images: RGB in [0, 255], uint8 or float32 ``[..., 3, H, W]``.
        mean: Mean of each channel of images in [0, 1], ``[3, 1, 1]`` or ``[1, 3, 1, 1]``.
        std: Standard deviation of each channel, of the same shape.

    Returns:
        float32 ``[..., 3, H, W]``.
    """
    return (unit_range(images) - mean) / std

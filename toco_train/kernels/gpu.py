"""Triton kernels for the dense energy's filter and for PAR, which PyTorch's own operations compute slowly on a GPU.

With PyTorch's operations the filter writes and reads its n x n weights several times, and PAR launches about two
thousand small kernels a step, whose launches the device waits for. The definitions are in
``toco_train/method/losses/dense_energy.py`` and ``toco_train/method/par.py``, which call these kernels if Triton works.
Triton comes with PyTorch on Linux and needs a C compiler and Python's headers.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from toco_core.text import one_line

log = logging.getLogger(__name__)

_ROWS, _COLUMNS = 128, 64  # of the n x n weights that one program holds in registers at a time
_LEAST_CHANNELS = 16  # of a product on tensor cores
_AFFINITY_PIXELS, _AVERAGE_PIXELS = 256, 512  # of a program


def runs_kernels(tensor: Tensor) -> bool:
    """Return whether the kernels can be used on a tensor: it is on a GPU, and Triton works there."""
    return tensor.is_cuda and works_on(tensor.device)


@functools.cache
def works_on(device: torch.device) -> bool:
    """Try a kernel on a device once per process; if it fails, log why and use PyTorch's slower operations."""
    pixel, offset = torch.ones(1, 1, 1, 1, device=device), torch.zeros(1, 2, dtype=torch.int32, device=device)
    try:
        neighbour_average(pixel, offset, pixel)
    except (
        Exception
    ) as error:  # Triton is missing, finds no compiler, or does not support the GPU; each has its own error
        log.warning(
            "Triton does not work on %s (%s), so the dense energy and PAR run slowly; "
            "it takes a C compiler and Python's headers",
            device,
            one_line(error),
        )
        return False
    return True


def gaussian_filter(values: Tensor, points: Tensor) -> Tensor:
    """Return ``values W`` with ``W_ij = 2 ** -|p_i - p_j|^2``, without writing W to memory.

    Weights are float32. Their product with the values splits each factor into a sum of TF32 numbers, which has about
    the precision of float32 on tensor cores.

    Args:
        values: float32 ``[B, K, n]``.
        points: float32 ``[B, n, D]``.

    Returns:
        float32 ``[B, K, n]``.
    """
    batch, channels, number = values.shape
    values, axes = values.contiguous(), points.transpose(1, 2).contiguous()
    filtered = torch.empty_like(values)
    padded = max(_LEAST_CHANNELS, 1 << (channels - 1).bit_length())
    _kernels().gaussian_filter[-(-number // _ROWS), batch](
        values, axes, filtered, number, channels, axes.shape[1], padded, _ROWS, _COLUMNS, num_warps=8, num_stages=1
    )
    return filtered


def neighbour_affinity(
    images: Tensor, offsets: Tensor, position: Tensor, *, colour_width: float, epsilon: float
) -> Tensor:
    """Return the weight of each neighbour of each pixel, as ``PixelAdaptiveRefinement.affinity`` defines it.

    Args:
        images: float32 ``[B, C, H, W]``, C at most 4.
        offsets: Row and column of each neighbour from the pixel, int32 ``[n, 2]``.
        position: What is added to the weight of each neighbour, float32 ``[n]``.
        colour_width: Width of the Gaussian in standard deviations of the neighbours.
        epsilon: Added to the standard deviation.

    Returns:
        float32 ``[B, n, H, W]``.
    """
    images = images.contiguous()
    batch, channels, height, width = images.shape
    weights = images.new_empty(batch, len(offsets), height, width)
    _kernels().neighbour_affinity[-(-height * width // _AFFINITY_PIXELS), batch](
        images, offsets, position, weights, height, width, len(offsets), colour_width, epsilon, channels,
        _AFFINITY_PIXELS,
    )  # fmt: skip
    return weights


def neighbour_average(maps: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of each pixel's neighbours; beyond the edge the nearest pixel is used.

    Args:
        maps: float32 ``[B, K, H, W]``.
        offsets: Row and column of each neighbour from the pixel, int32 ``[n, 2]``.
        weights: float32 ``[B, n, H, W]``.

    Returns:
        float32 ``[B, K, H, W]``.
    """
    maps = maps.contiguous()
    batch, channels, height, width = maps.shape
    average = torch.empty_like(maps)
    _kernels().neighbour_average[-(-height * width // _AVERAGE_PIXELS), batch * channels](
        maps, offsets, weights, average, height, width, len(offsets), channels, _AVERAGE_PIXELS
    )
    return average


def _kernels() -> Any:
    """Import Triton when a kernel is first used: the import is slow."""
    from toco_train.kernels import triton_kernels  # noqa: PLC0415

    return triton_kernels

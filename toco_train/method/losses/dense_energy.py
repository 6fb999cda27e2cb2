"""The dense energy of the segmentation (regularised losses)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX
from toco_train.kernels.gpu import gaussian_filter, runs_kernels
from toco_train.method.losses.full_precision import in_full_precision

_LEAST_EXPONENT = -87.0  # 2^-87 is 6e-27; smaller weights give denormal products, ten times slower on a CPU
_LARGEST_TILE = {"cpu": 784, "cuda": 8192}  # fits a core's cache; needs few kernel launches
_MOST_BANDS = 8  # of a tile, one for each thread; more than two were not timed
_REACH = 6.0  # standard deviations: a weight further away is below 1.6e-8, a quarter of float32's rounding at 1


@in_full_precision
def dense_energy_loss(
    images: Tensor,
    probabilities: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    tile: int | None = None,
) -> Tensor:
    """Compute the dense energy of a soft segmentation: nearby pixels of similar colour should have the same label.

    ``-sum_k S_k^T W S_k`` with ``W_ij = exp(-|rgb_i - rgb_j|^2 / (2 sigma_rgb^2) - |xy_i - xy_j|^2 / (2 sigma_xy^2))``,
    at ``scale`` of the size (n pixels) where ``sigma_xy`` shrinks with it. Row i is weighted by the gate
    ``max(0, 1 - max_k S_ik)``, or 1 where the pseudo label is 255: confident pixels get no gradient.

    Cost: on a CPU half of the symmetric kernel is computed, tile by tile: about ``n^2 (C + 5)`` multiply-adds and
    ``n^2 / 2`` exponentials for an image; memory is ``4 * tile^2`` bytes. At 448 x 448 with 21 labels: n = 50,176, 63 G
    multiply-adds, 2.5 MB. The pixels are sorted first, and tiles whose pixels are too far apart to matter in float32
    are skipped: 0.3 to 0.5 of them in photographs, drawings and noise. On a GPU the whole kernel is computed in
    registers (``toco_train/kernels/gpu.py``): 16 ms for 4 images on an H200, without extra memory. On a GPU without
    Triton it is computed in tiles of 268 MB.

    Args:
        images: RGB in [0, 255], float ``[B, 3, H, W]``.
        probabilities: Softmax of the segmentation, float ``[B, C + 1, H, W]``.
        labels: Pseudo labels, integer ``[B, H, W]``; only whether they are 255 matters.
        valid: 1 inside the image, 0 in the padding, ``[B, H, W]`` float or bool.
        sigma_rgb: Kernel width in colour, in grey levels.
        sigma_xy: Kernel width in position, in pixels at full size.
        scale: Factor of the size at which the energy is computed.
        tile: Largest side of the part of W that is in memory at a time; None: chosen for the device.

    Returns:
        Scalar, at most 0, mean over images. It is a sum over pixels, so it needs a weight of about 1e-7.

    Source: docs/method.md, step 7 (regularised losses, Tang et al., ECCV 2018). Deviation: the exact kernel on the
    training device, where the published code runs an approximate filter in a compiled CPU extension. The gate is a
    constant and the gradient is ``-2 gate W S``, as published.
    """
    size = [int(side * scale) for side in images.shape[-2:]]
    small_images = F.interpolate(images.float(), size=size, mode="nearest")
    small = F.interpolate(probabilities.float(), size=size, mode="bilinear", align_corners=False)
    inside = F.interpolate(valid[:, None].float(), size=size, mode="nearest")
    unlabelled = F.interpolate(labels[:, None].float(), size=size, mode="nearest") == IGNORE_INDEX
    gate = torch.where(unlabelled, 1.0, inside - small.detach().amax(dim=1, keepdim=True)).clamp(min=0)
    features = _kernel_features(small_images, sigma_rgb=sigma_rgb, sigma_xy=sigma_xy * scale)
    tile = tile or _LARGEST_TILE.get(images.device.type, _LARGEST_TILE["cuda"])
    energy: Tensor = _DenseEnergy.apply(small * inside, features, gate, tile)
    return energy


def _kernel_features(images: Tensor, *, sigma_rgb: float, sigma_xy: float) -> Tensor:
    """Return each pixel's colour and position in standard deviations, float ``[B, n, 5]``, centred for precision."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device, dtype=images.dtype)
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    position = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(len(images), -1, -1, -1)
    points = torch.cat([images / sigma_rgb, position / sigma_xy], dim=1).flatten(2).transpose(1, 2)
    return points - points.mean(dim=1, keepdim=True)


class _DenseEnergy(torch.autograd.Function):
    """Energy of probabilities ``[B, K, H, W]``; its gradient reuses the filtered values of the forward pass."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, features: Tensor, gate: Tensor, tile: int) -> Tensor:
        flat = probabilities.flatten(2)
        if runs_kernels(flat):
            filtered = gaussian_filter(flat, features * math.sqrt(math.log2(math.e) / 2))
        else:
            filtered = torch.stack([_filtered(*image, tile) for image in zip(flat, features, strict=True)])
        gated = filtered.view_as(probabilities) * gate
        ctx.save_for_backward(gated)
        return -(probabilities * gated).sum() / len(probabilities)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gated,) = ctx.saved_tensors
        return -2 * grads[0] * gated / len(gated), None, None, None


def _filtered(values: Tensor, points: Tensor, largest_tile: int) -> Tensor:
    """Return ``values W``, ``[K, n]``; W is the Gaussian kernel of the points ``[n, 5]``, of which half is computed."""
    number = len(points)
    halvings = max(0, math.ceil(math.log2(number / largest_tile)))
    # Each thread keeps its own rows of a tile in every operation: memory that another core wrote last is slow to read.
    bands = min(torch.get_num_threads(), _MOST_BANDS) if points.device.type == "cpu" else 1
    padding = -number % (2**halvings * bands)  # points without a value
    values, points = F.pad(values, (0, padding)), F.pad(points, (0, 0, 0, padding))
    tiles = _in_tiles(points, halvings)
    order, tile = tiles.flatten(), tiles.shape[1]
    values, points = values[:, order], points[order] * math.sqrt(math.log2(math.e))  # exp2 is faster than exp
    half_norm, one = points.square().sum(dim=1, keepdim=True) / 2, points.new_ones(len(points), 1)
    # 2 ** (p_i . p_j - |p_i|^2 / 2 - |p_j|^2 / 2) as one product of augmented points
    left = torch.cat([points, -half_norm, one], dim=1)
    right = torch.cat([points, one, -half_norm], dim=1).T.contiguous()
    pairs: Iterable[tuple[int, int]] = combinations_with_replacement(range(len(tiles)), 2)
    if halvings and points.device.type == "cpu":  # on a GPU the host would have to wait for the distances
        pairs = _near_tiles(points.view(*tiles.shape, -1), reach=_REACH * math.sqrt(math.log2(math.e)))
    # Allocated once: the system would have to map every page of new memory.
    kernel = points.new_empty(bands, tile // bands, tile)
    total = torch.zeros_like(values)
    for first, second in pairs:
        rows, columns = (slice(index * tile, (index + 1) * tile) for index in (first, second))
        banded = left[rows].view(bands, -1, left.shape[1])
        torch.bmm(banded, right[:, columns].expand(bands, -1, -1), out=kernel).clamp_(min=_LEAST_EXPONENT).exp2_()
        by_row = torch.bmm(values[:, columns].expand(bands, -1, -1), kernel.mT)
        total[:, rows] += by_row.transpose(0, 1).flatten(1)
        if second > first:
            banded = values[:, rows].view(len(values), bands, -1).transpose(0, 1)
            total[:, columns] += torch.bmm(banded, kernel).sum(dim=0)
    return torch.empty_like(total).index_copy_(1, order, total)[:, :number]


def _in_tiles(points: Tensor, halvings: int) -> Tensor:
    """Group near points ``[n, 5]`` in tiles; return their indices, int64 ``[2 ** halvings, n / 2 ** halvings]``.

    A k-d tree: each part is halved at the median of its widest axis.
    """
    tiles = torch.arange(len(points), device=points.device)[None]
    for _ in range(halvings):
        inside = points[tiles]
        widest = (inside.amax(dim=1) - inside.amin(dim=1)).argmax(dim=1)
        along = inside.gather(2, widest[:, None, None].expand(-1, tiles.shape[1], 1)).squeeze(2)
        tiles = tiles.gather(1, along.argsort(dim=1)).view(2 * len(tiles), -1)
    return tiles


def _near_tiles(tiles: Tensor, reach: float) -> list[tuple[int, int]]:
    """Return the pairs ``first <= second`` of tiles ``[T, n, 5]`` whose bounding boxes are nearer than ``reach``."""
    low, high = tiles.amin(dim=1), tiles.amax(dim=1)
    gap = torch.maximum(low[:, None] - high, low - high[:, None]).clamp(min=0)
    return [(first, second) for first, second in (gap.norm(dim=2) < reach).triu().nonzero().tolist()]

"""Pixel-adaptive refinement (PAR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.kernels.gpu import neighbour_affinity, neighbour_average, runs_kernels


class PixelAdaptiveRefinement(nn.Module):
    """Refine maps so that they follow the edges of the image, by averaging over pixels of similar colour (PAR).

    Each pixel becomes the weighted mean of its 8 neighbours at every dilation, a fixed number of times. The weights are
    those of colour (softmax over neighbours of the channel mean of ``-(|I_n - I| / std / 0.3)^2``) plus 0.01 times
    those of distance.

    Memory: the weights take ``4 * 8 * len(dilations)`` bytes for each pixel of an image; the neighbours are never all
    in memory. At 224 x 224 (half of 448) that is 9.6 MB for an image; 21 maps take another ``2 * 21 * 4`` bytes a
    pixel, 8.4 MB.

    Args:
        dilations: Distances of the rings of neighbours, in pixels.
        num_iterations: How many times the maps are averaged.

    Source: PAR (Ru et al., AFA, CVPR 2022) as ToCo uses it; docs/method.md, step 5.
    """

    COLOUR_WIDTH = 0.3
    POSITION_WEIGHT = 0.01
    _EPSILON = 1e-8

    def __init__(self, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), num_iterations: int = 10) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        ring = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
        self._offsets = [(row * d, column * d) for d in dilations for row, column in ring]
        self._reach = max(dilations)
        distance = torch.tensor([float(row**2 + column**2) for row, column in self._offsets]).sqrt()
        by_distance = -((distance / (distance.std() + self._EPSILON) / self.COLOUR_WIDTH) ** 2)
        self.register_buffer("_position", by_distance.softmax(dim=0) * self.POSITION_WEIGHT, persistent=False)
        self.register_buffer("_places", torch.tensor(self._offsets, dtype=torch.int32), persistent=False)
        self._position: Tensor
        self._places: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """Refine maps.

        Args:
            images: RGB in [0, 1], float ``[B, 3, H, W]``.
            maps: float ``[B, K, H, W]``.

        Returns:
            float ``[B, K, H, W]``.
        """
        weights = self.affinity(images)
        for _ in range(self.num_iterations):
            maps = self._average(maps, weights)
        return maps

    def _average(self, maps: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean of each pixel's neighbours, ``[B, K, H, W]``."""
        if runs_kernels(maps):
            return neighbour_average(maps.float(), self._places, weights)
        padded = self._pad(maps)
        average = torch.zeros_like(maps)
        for index in range(len(self._offsets)):
            average.addcmul_(self._shifted(padded, index, maps), weights[:, index : index + 1])
        return average

    def affinity(self, images: Tensor) -> Tensor:
        """Return the weight of each neighbour of each pixel, float ``[B, 8 * len(dilations), H, W]``."""
        if runs_kernels(images):
            return neighbour_affinity(
                images.float(), self._places, self._position, colour_width=self.COLOUR_WIDTH, epsilon=self._EPSILON
            )
        padded = self._pad(images)
        neighbours = [self._shifted(padded, index, images) for index in range(len(self._offsets))]
        mean = sum(neighbours, torch.zeros_like(images)) / len(neighbours)
        variance = torch.zeros_like(images)
        for neighbour in neighbours:
            variance.add_((neighbour - mean).square_())
        width = ((variance / (len(neighbours) - 1)).sqrt_() + self._EPSILON) * self.COLOUR_WIDTH
        by_colour = torch.stack([-((n - images) / width).square_().mean(dim=1) for n in neighbours], dim=1)
        return by_colour.softmax(dim=1) + self._position.to(images.dtype)[None, :, None, None]

    def _pad(self, maps: Tensor) -> Tensor:
        return F.pad(maps, [self._reach] * 4, mode="replicate")

    def _shifted(self, padded: Tensor, index: int, like: Tensor) -> Tensor:
        """Return a view of a padded map in which each pixel is its neighbour of that index."""
        row, column = (self._reach + offset for offset in self._offsets[index])
        height, width = like.shape[-2:]
        return padded[..., row : row + height, column : column + width]

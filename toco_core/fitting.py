"""The size at which the network sees an image: one rule for scoring, labelling, export checks and the served model.

Sizes are ``(height, width)`` in pixels. This file imports nothing of the project: a copy of it lies beside the served
model ``toco_image``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

Size = tuple[int, int]

# Longer over shorter side: the shapes that cameras make, and a limit.
ASPECT_RATIOS = (1.0, 4 / 3, 3 / 2, 16 / 9, 2.0, 3.0, 4.0)


def network_sizes(image_size: int, patch_size: int) -> tuple[Size, ...]:
    """Return the sizes that a network sees images at: each of ``ASPECT_RATIOS``, lying and standing, without repeats.

    Args:
        image_size: The longer side, in pixels; rounded to patches.
        patch_size: All sides are multiples of it.

    Returns:
        The sizes in ascending order.
    """
    longest = round_to_patches(image_size, patch_size)
    sides = {round_to_patches(longest / ratio, patch_size) for ratio in ASPECT_RATIOS}
    return tuple(sorted({(side, longest) for side in sides} | {(longest, side) for side in sides}))


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """Return the one of ``sizes`` whose aspect ratio is nearest to that of ``size``; of equals the largest."""
    aspect = math.log(size[1] / size[0])
    return min(sizes, key=lambda other: (abs(math.log(other[1] / other[0]) - aspect), -other[0] * other[1], other))


def own_size(size: Size, patch_size: int) -> Size:
    """Return the size of an image, each side rounded to patches."""
    return round_to_patches(size[0], patch_size), round_to_patches(size[1], patch_size)


def round_to_patches(side: float, patch_size: int) -> int:
    """Return the multiple of the patch size that is nearest to a side, in pixels; at least one patch."""
    return max(1, round(side / patch_size)) * patch_size


def fit_to_network(image: Image.Image, sizes: Sequence[Size]) -> Image.Image:
    """Resize an image to the one of ``sizes`` that is nearest to its shape: bilinear, antialiased, in one step."""
    height, width = nearest_size((image.height, image.width), sizes)
    return image.resize((width, height), Image.Resampling.BILINEAR)

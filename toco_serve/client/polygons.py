"""Polygons around the regions of a mask, with NumPy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from toco_core.rle import BoolArray

Int32Array = npt.NDArray[np.int32]


def mask_to_polygons(region: BoolArray) -> list[Int32Array]:
    """Return the outlines of a region, bool ``[H, W]``, as rings along the pixel edges.

    Returns:
        Rings, each the corners int32 ``[N, 2]`` as (x, y), (0, 0) the upper left corner of the image and (W, H) its
        lower right, the first not repeated. Outer borders run clockwise on the screen, those of holes the other way,
        so that the rings filled together (nonzero or even-odd rule) are the region, and the areas by the shoelace
        formula sum to its pixels. Pixels that touch at a corner alone belong to different rings.
    """
    corners, along, across = _corners(region)
    rings = []
    unseen = np.ones(len(corners), dtype=np.bool_)
    inside = np.pad(region, 1)
    for first in range(
        len(corners)
    ):  # from top to bottom and left to right: a ring's first corner is an upper left one
        if unseen[first]:
            ring = _ring(first, along, across)
            unseen[ring] = False
            x, y = corners[first]
            points = corners[ring]
            rings.append(points if inside[y + 1, x + 1] else points[[0, *range(len(points) - 1, 0, -1)]])
    return rings


def _corners(region: BoolArray) -> tuple[Int32Array, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the corners (x, y) of all rings row by row, and each one's neighbour along its row and its column.

    On a row the first corner is joined with the second, the third with the fourth and so on, and so on a column. Where
    two pixels touch at a corner alone there are two corners, one of each pixel.
    """
    padded = np.pad(region, 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    odd = upper_left ^ upper_right ^ lower_left ^ lower_right
    touching = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    y, x = np.nonzero(odd | touching)
    repeats = np.where(touching[y, x], 2, 1)
    rising = np.repeat(touching[y, x] & upper_right[y, x], repeats)  # the left corner of the two is the lower one
    y, x = np.repeat(y, repeats), np.repeat(x, repeats)
    number = np.arange(len(x))
    by_column = np.lexsort((np.where(rising, -number, number), y, x))
    along, across = np.empty_like(number), np.empty_like(number)
    along[0::2], along[1::2] = number[1::2], number[0::2]
    across[by_column[0::2]], across[by_column[1::2]] = by_column[1::2], by_column[0::2]
    return np.stack([x, y], axis=1).astype(np.int32), along, across


def _ring(first: int, along: npt.NDArray[np.intp], across: npt.NDArray[np.intp]) -> list[int]:
    """Follow a ring from one corner until it closes, the first step along the row."""
    ring, corner = [], first
    while True:
        ring += [corner, int(along[corner])]
        corner = int(across[ring[-1]])
        if corner == first:
            return ring

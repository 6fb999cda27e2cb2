"""Tiles of an image that is larger than the network's size: where they lie, and which part of each is used."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from toco_core.errors import ConfigError
from toco_core.palette import UInt8Array

MAX_OVERLAP = 0.75


@dataclass(frozen=True)
class Tile:
    """One tile.

    Attributes:
        source: Its rows and columns in the padded image.
        kept: The part of the tile that is used, in the tile's own rows and columns.
        target: The place of that part in the image.
    """

    source: tuple[slice, slice]
    kept: tuple[slice, slice]
    target: tuple[slice, slice]


def tiles(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> list[Tile]:
    """Cover an image with overlapping tiles, row by row.

    An overlap is cut in its middle: each pixel is taken from the tile that shows most of its surroundings.

    Args:
        size: Height and width of the image.
        tile_size: Height and width of a tile; may be larger than the image (see ``padded``).
        overlap: Smallest overlap of neighbours, as a share of a tile, 0 to ``MAX_OVERLAP``.

    Raises:
        ConfigError: The overlap is out of range.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"the overlap is {overlap:g}; expected a share of a tile, 0 to {MAX_OVERLAP:g}")
    rows, columns = (list(_spans(*axis, overlap)) for axis in zip(size, tile_size, strict=True))
    return [Tile(*zip(row, column, strict=True)) for row, column in itertools.product(rows, columns)]


def padded(image: UInt8Array, tile_size: tuple[int, int]) -> UInt8Array:
    """Repeat the last row and column of an image, uint8 ``[H, W, 3]``, until it is at least as large as a tile."""
    rows, columns = (max(0, tile - length) for tile, length in zip(tile_size, image.shape, strict=False))
    return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else image


def _spans(length: int, tile: int, overlap: float) -> Iterator[tuple[slice, slice, slice]]:
    """Yield source, kept and target of each tile along one axis, evenly spaced."""
    if length <= tile:
        yield slice(0, tile), slice(0, length), slice(0, length)
        return
    shared = int(overlap * tile)
    num_tiles = math.ceil((length - shared) / (tile - shared))
    starts = [round(index * (length - tile) / (num_tiles - 1)) for index in range(num_tiles)]
    cuts = [0, *((start + tile + following) // 2 for start, following in itertools.pairwise(starts)), length]
    for start, (first, end) in zip(starts, itertools.pairwise(cuts), strict=True):
        yield slice(start, start + tile), slice(first - start, end - start), slice(first, end)

"""Tiles of an image that is larger than the network's own size: where they lie, and which part of each counts."""

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
        source: Rows and columns of the padded image that it shows.
        kept: Those of its own rows and columns that count, none nearer to its rim than to a neighbour's.
        target: Where these lie in the image.
    """

    source: tuple[slice, slice]
    kept: tuple[slice, slice]
    target: tuple[slice, slice]


def tiles(size: tuple[int, int], tile_size: tuple[int, int], overlap: float) -> list[Tile]:
    """Cover an image with tiles, row by row, that overlap by at least a share of their size.

    Neighbours share their overlap in the middle, where both see equally far beyond: a pixel is decided by the tile
    that sees most around it.

    Args:
        size: Height and width of the image.
        tile_size: Those of a tile; a side that is longer than the image's reaches beyond it (see ``padded``).
        overlap: Share of a tile, 0 to ``MAX_OVERLAP``.

    Raises:
        ConfigError: The overlap is another number.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"the overlap is {overlap:g}; expected a share of a tile, 0 to {MAX_OVERLAP:g}")
    rows, columns = (list(_spans(*axis, overlap)) for axis in zip(size, tile_size, strict=True))
    return [Tile(*zip(row, column, strict=True)) for row, column in itertools.product(rows, columns)]


def padded(image: UInt8Array, tile_size: tuple[int, int]) -> UInt8Array:
    """Continue the last row and column of an image, uint8 ``[H, W, 3]``, until it is as large as a tile at least."""
    rows, columns = (max(0, tile - length) for tile, length in zip(tile_size, image.shape, strict=False))
    return np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else image


def _spans(length: int, tile: int, overlap: float) -> Iterator[tuple[slice, slice, slice]]:
    """Give source, kept and target of each tile along one axis, evenly spread."""
    if length <= tile:
        yield slice(0, tile), slice(0, length), slice(0, length)
        return
    shared = int(overlap * tile)
    num_tiles = math.ceil((length - shared) / (tile - shared))
    starts = [round(index * (length - tile) / (num_tiles - 1)) for index in range(num_tiles)]
    cuts = [0, *((start + tile + following) // 2 for start, following in itertools.pairwise(starts)), length]
    for start, (first, end) in zip(starts, itertools.pairwise(cuts), strict=True):
        yield slice(start, start + tile), slice(first - start, end - start), slice(first, end)

"""COCO run lengths of regions, by numpy alone: the client and the served model ``toco_image`` share this file."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
Int64Array = npt.NDArray[np.int64]

# A number is written in groups of five bits, lowest first; a sixth bit says that more follow; 48 makes it a character.
GROUP_BITS, GROUP, SIGN, MORE, FIRST_CHARACTER = 5, 0x1F, 0x10, 0x20, 48
_MOST_GROUPS = 7  # of a number: 35 bits


class Rle(TypedDict):
    """COCO's compressed run lengths, as ``pycocotools.mask.decode`` takes them.

    Attributes:
        size: ``[height, width]`` in pixels.
        counts: Lengths of alternating runs outside and inside, column by column, five bits a character.
    """

    size: list[int]
    counts: str


def encode_rle(region: BoolArray) -> Rle:
    """Encode a region, bool ``[H, W]``, as COCO's compressed run lengths.

    Source: ``rleEncode`` and ``rleToString`` of the COCO API (``maskApi.c``): the first run lies outside the region and
    may be empty; from the fourth on a run is stated as its difference from the run two before.
    """
    pixels = region.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))  # where a run begins, but for the first
    runs = np.diff(starts, prepend=0, append=pixels.size)
    stated = runs.copy()
    stated[3:] -= runs[1:-2]
    return {"size": [region.shape[0], region.shape[1]], "counts": _characters(stated)}


def decode_rle(rle: Rle) -> BoolArray:
    """Return the region, bool ``[H, W]``, that ``encode_rle`` or pycocotools encoded.

    Raises:
        ValueError: The runs do not fill the size.
    """
    runs = decode_counts(rle["counts"])
    height, width = rle["size"]
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_counts(counts: str) -> Int64Array:
    """Return the lengths of alternating runs outside and inside, int64 ``[R]``, of COCO's compressed counts.

    Raises:
        ValueError: They are no compressed run lengths.
    """
    groups = np.frombuffer(counts.encode("ascii", "ignore"), np.uint8).astype(np.int64) - FIRST_CHARACTER
    known = counts.isascii() and groups.size > 0 and groups.min() >= 0 and groups.max() <= MORE | GROUP
    if not known or groups[-1] & MORE:
        raise ValueError("the text is no run of COCO's characters, or is cut off")
    last = np.flatnonzero(groups & MORE == 0)
    if np.diff(last, prepend=-1).max() > _MOST_GROUPS:
        raise ValueError("a run is longer than any image")
    stated = _numbers(groups)
    runs = stated.copy()
    for first in (1, 2):
        runs[first::2] = np.cumsum(stated[first::2])
    if runs.min() < 0:
        raise ValueError("a run is shorter than nothing")
    return runs


def _characters(numbers: Int64Array) -> str:
    """Write numbers one after another."""
    columns: list[Int64Array] = []
    written: list[BoolArray] = []
    unfinished = np.ones(len(numbers), np.bool_)
    while unfinished.any():
        group, numbers = numbers & GROUP, numbers >> GROUP_BITS
        more = numbers != np.where(group & SIGN, -1, 0)
        columns.append(group + np.where(more, MORE, 0) + FIRST_CHARACTER)
        written.append(unfinished)
        unfinished = unfinished & more
    characters = np.stack(columns, 1)[np.stack(written, 1)].astype(np.uint8)
    return characters.tobytes().decode("ascii")


def _numbers(groups: Int64Array) -> Int64Array:
    """Join the groups that ``_characters`` wrote."""
    last = groups & MORE == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    shifts = GROUP_BITS * (np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups))))
    numbers: Int64Array = np.add.reduceat((groups & GROUP) << shifts, starts)
    negative = (groups[last] & SIGN) // SIGN
    numbers -= negative << (shifts[last] + GROUP_BITS)
    return numbers

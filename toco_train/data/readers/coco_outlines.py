"""Outlines of COCO annotations, checked before anything is drawn: pycocotools trusts what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toco_core.rle import decode_counts

_MIN_POLYGON = 6  # numbers: three points
_MARGIN = 1  # image sides that a point may lie outside
_MAX_LENGTH_PX = 1_000_000  # of all edges: pycocotools takes about 80 bytes a pixel of them
_POINTS = "its polygon is a list of points, expected their numbers in one list: x, y, x, y and so on"


def checked_outline(segmentation: Any, height: int, width: int) -> Any | None:
    """Return a segmentation that can be drawn, None where the annotation has none, as one with a box alone.

    Polygons of fewer than three points are dropped if others are left.

    Args:
        segmentation: A list of polygons, or run lengths, as read from JSON.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: It cannot be drawn; the message says what is wrong and what is expected.
    """
    if segmentation is None or segmentation in ([], {}):
        return None
    if isinstance(segmentation, dict):
        return _checked_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError(f"its segmentation is {_shown(segmentation)}, expected polygons or run lengths")
    if all(_is_number(one) for one in segmentation):
        raise ValueError("its segmentation is a flat list of numbers, expected a list of polygons: put it in a list")
    if all(isinstance(one, list) and len(one) == 2 for one in segmentation):
        raise ValueError(_POINTS)
    polygons = [_checked_polygon(polygon, height, width) for polygon in segmentation]
    whole = [polygon for polygon in polygons if len(polygon) >= _MIN_POLYGON]
    if not whole:
        raise ValueError("its polygons have fewer than three points, expected at least three")
    return whole


def _checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    if not isinstance(polygon, list):
        raise ValueError(f"its segmentation holds {_shown(polygon)}, expected polygons: lists of x, y, x, y and so on")
    if polygon and all(isinstance(point, (list, dict)) for point in polygon):
        raise ValueError(_POINTS)
    if len(polygon) % 2:
        raise ValueError(f"its polygon has {len(polygon)} numbers, expected an x and a y for each point")
    for place, number in enumerate(polygon):
        side = height if place % 2 else width
        if not _is_number(number):
            raise ValueError(f"its polygon holds {_shown(number)}, expected numbers")
        if not -_MARGIN * side <= number <= (1 + _MARGIN) * side:  # false for NaN, too
            raise ValueError(f"its polygon has the coordinate {_shown(number)}, expected 0 to {side}")
    if _length(polygon) > _MAX_LENGTH_PX:
        raise ValueError(f"its polygon is more than {_MAX_LENGTH_PX:,} px long, expected an outline")
    return [float(number) for number in polygon]


def _length(polygon: Sequence[float]) -> float:
    """Return the length of a closed polygon as pycocotools walks it: the longer of both steps of each edge."""
    xs, ys = polygon[::2], polygon[1::2]
    return sum(
        max(abs(x - before_x), abs(y - before_y))
        for x, y, before_x, before_y in zip(xs, ys, [*xs[-1:], *xs[:-1]], [*ys[-1:], *ys[:-1]], strict=True)
    )


def _checked_runs(segmentation: dict[Any, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"its run lengths are of the size {_shown(size)}, expected [{height}, {width}] as the image")
    if isinstance(counts, str):
        try:
            total = int(decode_counts(counts).sum())
        except ValueError as error:
            raise ValueError(f"its run lengths cannot be read: {error}") from error
    elif isinstance(counts, list) and all(_is_number(run) and run >= 0 and run == run // 1 for run in counts):
        counts = [int(run) for run in counts]
        total = sum(counts)
    else:
        raise ValueError(f"its run lengths are {_shown(counts)}, expected a text or a list of whole numbers")
    if total != height * width:
        raise ValueError(f"its run lengths cover {total} pixels, expected {height * width}")
    return {"size": [height, width], "counts": counts}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """Return a value, cut short."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."

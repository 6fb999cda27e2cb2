"""COCO's ground truth: masks drawn from the annotations of an image when they are needed, and kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from toco_core.palette import IGNORE_INDEX, UInt8Array, save_mask
from toco_train.data.masks import LabelMask
from toco_train.data.readers.coco_index import CocoIndex

log = logging.getLogger(__name__)

_MIN_POLYGON = 6  # numbers, three corners; pycocotools takes four numbers for a box


@dataclass(frozen=True)
class CocoMask:
    """Ground truth drawn from the annotations of an image, and kept as a palette PNG in the user's cache.

    Crowd regions are 255 (ignore): they hold objects and what is between them. Above them lie the single objects, the
    smaller of two that overlap on top, since it is the one that would vanish.

    Attributes:
        instances: The instances file.
        image_id: Id of the image there.
    """

    instances: Path
    image_id: int

    def __str__(self) -> str:
        return f"{self.instances} image {self.image_id}"

    def exists(self) -> bool:
        """Tell whether the instances file is there."""
        return self.instances.is_file()

    def read(self) -> UInt8Array:
        """Return the labels, uint8 ``[H, W]``: 0 background, 1..C, 255 crowd.

        Raises:
            DataError: The annotations cannot be read.
        """
        index = CocoIndex.of(self.instances)
        drawn = LabelMask(index.folder / "masks" / f"{self.image_id}.png")
        if drawn.exists():
            return drawn.read()
        labels = draw(*index.outlines(self.image_id))
        try:
            save_mask(drawn.path, labels)
        except OSError as error:
            log.warning("cannot keep the mask %s (%s); it will be drawn again", drawn, error.strerror)
        return labels


def draw(height: int, width: int, objects: list[tuple[int, bool, Any]]) -> UInt8Array:
    """Draw objects, crowds first, then from the largest to the smallest.

    Args:
        height: Height of the image.
        width: Width of the image.
        objects: For each its label, whether it is a crowd, and its COCO segmentation: polygons or run lengths.

    Returns:
        uint8 ``[height, width]``: 0 background, 1..C, 255 crowd.
    """
    labels = np.zeros((height, width), dtype=np.uint8)
    shapes = [(not crowd, label, run_lengths(outline, height, width)) for label, crowd, outline in objects]
    for single, label, shape in sorted(shapes, key=lambda s: (s[0], -int(coco_mask.area(s[2])))):
        labels[coco_mask.decode(shape) > 0] = label if single else IGNORE_INDEX
    return labels


def run_lengths(segmentation: Any, height: int, width: int) -> Any:
    """Return a COCO segmentation (polygons, run lengths as numbers or compressed) as compressed run lengths."""
    if isinstance(segmentation, dict):
        compressed = isinstance(segmentation["counts"], str)
        return segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    polygons = [polygon for polygon in segmentation if len(polygon) >= _MIN_POLYGON]
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width) if polygons else _nothing(height, width))


def _nothing(height: int, width: int) -> Any:
    return [coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))]

"""A segmented image: mask, confidence, class names and colours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from toco_core.errors import DataError, TocoError
from toco_core.palette import UInt8Array, overlay, save_mask
from toco_core.rle import Rle, encode_rle
from toco_serve.client.images import ImageInput, rgb_pixels
from toco_serve.client.polygons import Int32Array, mask_to_polygons

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segmentation of one image.

    Attributes:
        mask: Labels, uint8 ``[H, W]``: 0 background, 1..C the classes.
        confidence: 255 times the softmax of the predicted label, uint8 ``[H, W]``.
        classes: Names of the labels 1..C.
        palette: Colours of the labels 0..C, uint8 ``[C + 1, 3]`` RGB, as ``save`` and ``overlay`` use them.
    """

    mask: UInt8Array
    confidence: UInt8Array
    classes: tuple[str, ...]
    palette: UInt8Array

    def class_shares(self) -> dict[str, float]:
        """Return the share of the pixels of each label that occurs, the largest first, ``"background"`` included."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes) + 1)
        shares = {name: count / self.mask.size for name, count in zip((BACKGROUND, *self.classes), counts, strict=True)}
        return {name: float(shares[name]) for name in sorted(shares, key=lambda n: -shares[n]) if shares[name] > 0}

    def rles(self) -> dict[str, Rle]:
        """Return the region of each class that occurs as COCO run lengths (compressed), in the order of the labels."""
        return {name: encode_rle(self.mask == label) for label, name in self._present()}

    def polygons(self) -> dict[str, list[Int32Array]]:
        """Return the outlines of each class that occurs, in the order of the labels.

        Each is a list of rings, int32 ``[N, 2]`` of (x, y) along the pixel edges: outer rings clockwise, holes
        counter-clockwise; see ``mask_to_polygons``. COCO polygons have no holes: use ``rles`` where they matter.
        """
        return {name: mask_to_polygons(self.mask == label) for label, name in self._present()}

    def _present(self) -> list[tuple[int, str]]:
        """Return label and name of each class that occurs."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes) + 1)
        return [(label, name) for label, name in enumerate(self.classes, start=1) if counts[label]]

    def save(self, path: str | Path) -> None:
        """Write the mask as a palette PNG, whole or not at all."""
        save_mask(Path(path), self.mask, self.palette)

    def overlay(self, image: ImageInput, opacity: float = 0.55) -> Image.Image:
        """Return the image with the mask's colours over it.

        Raises:
            DataError: The image cannot be read, or has another size than the mask.
        """
        pixels = rgb_pixels(image)
        if pixels.shape[:2] != self.mask.shape:
            sizes = [f"{height}x{width} px" for height, width in (pixels.shape[:2], self.mask.shape)]
            raise DataError(f"the image is {sizes[0]}, but its mask {sizes[1]}; give the image that was segmented")
        return Image.fromarray(overlay(pixels, self.mask, opacity, self.palette))


@dataclass(frozen=True)
class Outcome:
    """The result for one image of ``segment_many``.

    Attributes:
        image: The image as given.
        segmentation: Its segmentation; None after an error.
        error: The error; None if there is a segmentation.
    """

    image: ImageInput
    segmentation: Segmentation | None
    error: TocoError | None

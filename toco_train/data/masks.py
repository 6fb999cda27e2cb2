"""Ground truth for evaluation: where a mask comes from and how it is read. Training reads no mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from toco_core.errors import DataError
from toco_core.images import opened
from toco_core.palette import IGNORE_INDEX, UInt8Array
from toco_core.rgb import RefusedImageError, to_rgb

_BINARY_THRESHOLD = 127
_SILHOUETTES = ({IGNORE_INDEX}, {0, IGNORE_INDEX})
_GREY_TOLERANCE, _DARK = 40, 48  # of 255: JPEG colours black and white a little
_FEW, _MANY = 0.02, 0.3  # shares of the pixels
_MAX_COLOURS = 256
_COLOUR_MODES = ("RGB", "RGBA", "CMYK", "YCbCr")
_LABEL_MODES = ("P", "L", "1")  # palette, grey, one bit: the images whose numbers are labels


class Mask(Protocol):
    """The ground truth of one image; ``str`` names where it comes from."""

    def exists(self) -> bool:
        """Tell whether its file is on disk."""

    def read(self) -> UInt8Array:
        """Return it, uint8 ``[H, W]``: 0 background, 1..C, 255 ignore.

        Raises:
            DataError: It cannot be read.
        """


@dataclass(frozen=True)
class LabelMask:
    """A palette or grey image whose numbers are labels.

    Attributes:
        path: The image.
        refuse_binary: Refuse a grey image that holds only 0 and 255: it is the silhouette of an object in the wrong
            place. Its 255 would be read as ignored, and the score would mean nothing.
    """

    path: Path
    refuse_binary: bool = False

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Tell whether the image is there."""
        return self.path.is_file()

    def read(self) -> UInt8Array:
        """Return the labels, uint8 ``[H, W]``: 0 background, 1..C, 255 ignore.

        Raises:
            DataError: The image cannot be read, holds colours, or is a silhouette that is refused.
        """
        return read_labels(self.path, refuse_binary=self.refuse_binary)


@dataclass(frozen=True)
class BinaryMask:
    """A grey image that is above 127 on the object.

    Attributes:
        path: The image.
        label: The label of the object; 0 where the image shows nothing, whatever the image says.
    """

    path: Path
    label: int

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Tell whether the image is there."""
        return self.path.is_file()

    def read(self) -> UInt8Array:
        """Return the labels, uint8 ``[H, W]``: 0 or ``label``.

        Raises:
            DataError: The image cannot be read, or is no silhouette.
        """
        with opened(self.path, what="mask") as image:
            colours = np.asarray(to_rgb(image))
            _refuse_what_is_no_silhouette(colours)
        grey = colours.max(axis=2)
        return np.where(grey > _BINARY_THRESHOLD, self.label, 0).astype(np.uint8)


def _what_it_looks_like(image: Image.Image) -> str:
    """Say what an image of another mode than a mask's may be, and what to do."""
    if image.mode not in _COLOUR_MODES:
        return "convert it"
    if image.convert("RGB").getcolors(_MAX_COLOURS) is None:
        return "it looks like a photograph: put the mask there"
    return "it looks like a mask with a colour for each class: write the label of the class instead of its colour"


def _refuse_what_is_no_silhouette(colours: UInt8Array) -> None:
    """Refuse an image, uint8 ``[H, W, 3]``, that holds colours, many greys, or numbers of labels."""
    low, high = colours.min(axis=2), colours.max(axis=2)
    if (high - low > _GREY_TOLERANCE).mean() > _FEW:
        raise RefusedImageError(
            "it holds colours, expected white on the object and black elsewhere; it looks like a photograph or a mask "
            "with a colour for each class: put the silhouette there, or the label numbers in masks/"
        )
    if ((low > _DARK) & (high < 255 - _DARK)).mean() > _MANY:
        raise RefusedImageError(
            "it is a grey photograph, expected white on the object and black elsewhere; put the silhouette there"
        )
    if 0 < high.max() <= _DARK:
        raise RefusedImageError(
            f"its levels go from 0 to {high.max()}, expected white (255) on the object and black elsewhere; convert it"
        )


def read_labels(path: Path, *, refuse_binary: bool = False) -> UInt8Array:
    """Read an image whose numbers are labels, as they are stored: uint8 ``[H, W]``.

    Args:
        path: A palette, 8-bit grey or 1-bit image.
        refuse_binary: See ``LabelMask``.

    Raises:
        DataError: The image cannot be read, holds colours, or is a silhouette that is refused.
    """
    with opened(path, what="mask") as image:
        image.load()
        if image.mode not in _LABEL_MODES:
            raise RefusedImageError(
                f"its mode is {image.mode}, expected a palette or 8-bit grey PNG whose numbers are labels; "
                f"{_what_it_looks_like(image)}"
            )
        labels = np.array(image, dtype=np.uint8)
    if refuse_binary and image.mode == "L" and set(np.unique(labels).tolist()) in _SILHOUETTES:
        raise DataError(
            f"mask {path} holds only 0 and 255, and 255 means ignore here; write the label of the class (1 for the "
            "first) instead of 255, or put a mask of one object beside its image, same stem"
        )
    return labels

"""Ground truth for evaluation: where a mask comes from and how it is read. Training opens none of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from toco_core.errors import DataError
from toco_core.palette import IGNORE_INDEX, UInt8Array

_BINARY_THRESHOLD = 127
_SILHOUETTES = ({IGNORE_INDEX}, {0, IGNORE_INDEX})
_LABEL_MODES = ("P", "L", "1")  # palette, grey, one bit: the images whose numbers are labels


class Mask(Protocol):
    """The ground truth of one image; as text, where it comes from."""

    def exists(self) -> bool:
        """Tell whether what it is made from is on disk."""

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
        refuse_binary: Take a grey image of nothing but 0 and 255 for an object's silhouette in the wrong place, and
            refuse it; else its 255 is read as ignore, and a score over it means nothing.
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
            DataError: The image cannot be decoded, holds colours, or is a silhouette that is refused.
        """
        image = _decoded(self.path)
        if image.mode not in _LABEL_MODES:
            raise DataError(
                f"mask {self.path} is an image of mode {image.mode}, expected a palette or 8-bit grey PNG whose "
                "numbers are labels; convert it"
            )
        labels = np.array(image, dtype=np.uint8)
        if self.refuse_binary and image.mode == "L" and set(np.unique(labels).tolist()) in _SILHOUETTES:
            raise DataError(
                f"mask {self.path} holds only 0 and 255, and 255 means ignore here; write the label of the class "
                "(1 for the first) instead of 255, or put a mask of one object beside its image, same stem"
            )
        return labels


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
            DataError: The image cannot be decoded.
        """
        grey = np.array(_decoded(self.path).convert("L"))
        return np.where(grey > _BINARY_THRESHOLD, self.label, 0).astype(np.uint8)


def _decoded(path: Path) -> Image.Image:
    """Decode an image whole."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"mask {path} is missing; restore it") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"mask {path} cannot be decoded ({error}); replace it") from error

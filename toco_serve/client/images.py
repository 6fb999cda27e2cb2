"""The kinds of image that the client takes, and how they are sent: files as they are, pixels as lossless PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from toco_core.errors import DataError
from toco_core.images import convert_image, decode_image
from toco_core.palette import UInt8Array

ImageInput: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[Any]


def encoded(image: ImageInput) -> bytes:
    """Return an image as the bytes that the model ``toco_image`` takes.

    Raises:
        DataError: A file cannot be read, an array is not uint8 ``[H, W, 3]``, or an image of Pillow's cannot be
            converted to RGB.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return _file_content(Path(image))
    buffer = io.BytesIO()
    Image.fromarray(rgb_pixels(image)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def rgb_pixels(image: ImageInput) -> UInt8Array:
    """Return an image's pixels, uint8 ``[H, W, 3]`` RGB.

    A file and the content of one are turned upright by their EXIF orientation, as the server does; the pixels of
    Pillow's images and of arrays stay where they are.

    Raises:
        DataError: It cannot be read, decoded or converted.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    return np.asarray(convert_image(image) if isinstance(image, Image.Image) else decode_image(encoded(image)))


def _file_content(path: Path) -> bytes:
    """Read a file whole."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; give the path of an image"
        ) from error


def _checked(array: npt.NDArray[Any]) -> UInt8Array:
    """Refuse an array that is not an RGB image."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise DataError(f"the array is {array.dtype} {list(array.shape)}; expected an RGB image, uint8 [H, W, 3]")
    return array

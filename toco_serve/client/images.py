"""What the client takes as an image, and how it travels: files as they are, pixels as PNG, which loses nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from toco_core.errors import DataError
from toco_core.images import open_image, to_rgb, upright
from toco_core.palette import UInt8Array

ImageInput: TypeAlias = str | Path | bytes | Image.Image | npt.NDArray[Any]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def encoded(image: ImageInput) -> bytes:
    """Return an image as the bytes that the model ``toco_image`` takes.

    Raises:
        DataError: A file cannot be read, or an array is not uint8 ``[H, W, 3]``.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, Path)):
        return _file_content(Path(image))
    pil_image = image if isinstance(image, Image.Image) else Image.fromarray(_checked(image))
    buffer = io.BytesIO()
    _png_mode(pil_image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def rgb_pixels(image: ImageInput) -> UInt8Array:
    """Return an image's pixels, uint8 ``[H, W, 3]`` RGB; a file is turned upright, as the server does.

    Raises:
        DataError: It cannot be read, decoded or converted.
    """
    if isinstance(image, np.ndarray):
        return _checked(image)
    if isinstance(image, Image.Image):
        return _rgb(image)
    data = io.BytesIO(encoded(image))
    try:
        with open_image(data) as opened:
            return _rgb(upright(opened))
    except (OSError, DataError) as error:
        raise DataError(f"the image cannot be decoded: {error}") from error


def _rgb(image: Image.Image) -> UInt8Array:
    """Convert any mode, as the server does."""
    return np.asarray(to_rgb(image))


def _png_mode(image: Image.Image) -> Image.Image:
    """Convert what PNG cannot hold."""
    return image if image.mode in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"} else Image.fromarray(_rgb(image))


def _file_content(path: Path) -> bytes:
    """Read a file whole."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {(error.strerror or str(error)).lower()}; give the path of an image"
        ) from error


def _checked(array: npt.NDArray[Any]) -> UInt8Array:
    """Refuse an array that is no RGB image."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise DataError(f"the array is {array.dtype} {list(array.shape)}; expected an RGB image, uint8 [H, W, 3]")
    return array

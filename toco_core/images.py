"""Images of every kind as upright RGB: one conversion for training, for scoring and for the client.

The served model ``toco_image`` converts alike, in code of its own that runs inside Triton.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from toco_core.errors import DataError
from toco_core.text import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_IMAGE_PIXELS = 89_478_485  # where Pillow begins to warn; 256 MiB as RGB

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_THROUGH = {"La": "LA", "P": "RGBA"}  # from La Pillow knows no other way, and from P it would warn of transparency


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open a JPEG, PNG, WebP, BMP or TIFF by its header: no pixel is decoded yet.

    Raises:
        DataError: It says that it has more than ``MAX_IMAGE_PIXELS``.
        OSError: It cannot be read, or (``PIL.UnidentifiedImageError``) it is of another kind. Pillow raises other
            errors as well for a damaged header.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below says more
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"it has far more than {MAX_IMAGE_PIXELS:,} pixels, the most that is read") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise DataError(f"it is {size} px, and {MAX_IMAGE_PIXELS:,} pixels are the most that is read")
    return image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse pixels that are whole
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; of an animated one this is the first frame."""
    image.load()  # first: it turns a TIFF by itself and takes the mark away
    turn = _UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB.

    Transparency is ignored: the colours below it count. Of 16-bit levels the high byte is kept.

    Raises:
        DataError: Its levels have no known range, or (in Pillow's words) its colours cannot be converted.
    """
    if image.mode == "F":
        raise DataError("its levels are floating-point numbers, expected whole ones of 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 0xFFFF:
            raise DataError(f"its levels go from {low} to {high}, expected 0 to 65535")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    try:
        return image.convert(_THROUGH.get(image.mode, "RGB")).convert("RGB")
    except ValueError as error:
        raise DataError(str(error)) from error


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in order, without those that are the mask of another (same stem, PNG)."""
    images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    photographs = {p.stem for p in images if p.suffix.lower() != ".png"}
    return [p for p in images if p.suffix.lower() != ".png" or p.stem not in photographs]


def read_image(path: Path) -> Image.Image:
    """Decode an image whole, upright, as RGB.

    JPEG, PNG, WebP, BMP and TIFF are read, whatever the file's suffix says; of an animated one, the first frame. The
    EXIF orientation is followed. Grey, palette, CMYK and 1-bit images become RGB, 16-bit ones keep their high byte,
    and transparency is ignored: the colours below it count.

    Raises:
        DataError: It is missing, truncated, damaged or of another kind, has more than
            ``toco_core.images.MAX_IMAGE_PIXELS`` (told by its header: nothing is decoded), or levels of no known range.
    """
    with opened(path) as image:
        return to_rgb(upright(image))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Give an image whose header was read; all that goes wrong with it in the block becomes one sentence.

    Raises:
        DataError: See ``read_image``.
    """
    try:
        with open_image(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"image {path} is missing; restore it or take it out of the list of images") from error
    except UnidentifiedImageError as error:
        reason = "it is no JPEG, PNG, WebP, BMP or TIFF, or damaged at its start"
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it or take it out of the data") from error
    except DataError as error:
        raise DataError(f"image {path} cannot be used: {error}; convert it or take it out of the data") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data, and each is this image's fault
        reason = one_line(error)
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it or take it out of the data") from error

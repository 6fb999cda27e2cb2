"""Images of every kind as upright RGB, by numpy and Pillow alone: every reader shares this file.

``toco_core.images`` wraps it for files. The served model ``toco_image`` has a copy of it beside its own code, so it
imports nothing of this project.
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
EXPECTED = "expected JPEG, PNG, WebP, BMP or TIFF"

# (offset, first bytes there, name) of what is often sent in place of an image.
_OTHER_KINDS = (
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\3\4", "a ZIP archive"),
    (4, b"ftyp", "a HEIC, AVIF or video file"),
)

_ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second
_THROUGH = {"La": "LA", "P": "RGBA"}  # Pillow converts La to nothing else, and warns of transparency from P to RGB


class RefusedImageError(ValueError):
    """An image that is not read. The message says why, what is expected and what to do; "it" is the image."""


@contextmanager
def open_image(file: BinaryIO, max_pixels: int) -> Iterator[Image.Image]:
    """Open a JPEG, PNG, WebP, BMP or TIFF by its header; no pixel is decoded yet.

    Every error in the block counts as the image's.

    Args:
        file: Encoded image, seekable.
        max_pixels: An image with more is refused by its header.

    Raises:
        RefusedImageError: It is of another kind, too large or damaged.
    """
    with refusing_damage(), _identified(file, max_pixels) as image:
        if image.width * image.height > max_pixels:
            raise _too_large(f"it is {image.width} x {image.height} px", max_pixels)
        yield image


@contextmanager
def refusing_damage() -> Iterator[None]:
    """Turn every error of Pillow in the block into a ``RefusedImageError``: its decoders raise many kinds."""
    try:
        yield
    except RefusedImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RefusedImageError(f"it is damaged ({reason}); replace it") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Decode an opened image: upright, RGB; the first frame of an animation, the first page of a TIFF.

    Raises:
        RefusedImageError: See ``to_rgb``. Pillow raises other errors for a damaged image.
    """
    rgb = to_rgb(image)  # decodes the pixels before all else: the first error of a file is the one that is reported
    turn = UPRIGHT.get(orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it cannot be read.

    A TIFF has none once it is loaded: loading turns it upright.
    """
    if image.format == "PNG":
        image.load()  # ``getexif`` would do it below, where the error of a damaged image would be lost
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse whole pixels
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, without turning it.

    Transparency is ignored: the stored colours are used. Of 16-bit levels the high byte is kept.

    Raises:
        RefusedImageError: Its levels have no known range.
    """
    if image.mode == "F":
        raise RefusedImageError("its levels are floating-point numbers, expected integers of 8 or 16 bits; convert it")
    if image.mode.startswith("I"):
        image = Image.fromarray(_high_byte(image))
    return (image.convert(_THROUGH[image.mode]) if image.mode in _THROUGH else image).convert("RGB")


def _high_byte(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the upper 8 of 16 bits, uint8 ``[H, W]``; of a 12-bit TIFF the upper 8 of 12."""
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 0xFFFF:
        raise RefusedImageError(f"its levels go from {low} to {high}, expected 0 to 65535; convert it")
    tags = getattr(image, "tag_v2", {})
    twelve_bits = tags.get(_BITS_PER_SAMPLE) == (12,)
    grey = (levels >> (4 if twelve_bits else 8)).astype(np.uint8)
    # Pillow inverts white-is-zero images of up to 8 bits by itself.
    return np.invert(grey) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _identified(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Read the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit says more
            return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large("it has far more pixels", max_pixels) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        raise RefusedImageError(f"it is {_kind_of(file.read(512))}, {EXPECTED}; replace it") from error


def _too_large(size: str, max_pixels: int) -> RefusedImageError:
    return RefusedImageError(f"{size}, expected at most {max_pixels:,} pixels; resize it")


def _kind_of(start: bytes) -> str:
    """Name what is not an image, as far as its first bytes tell."""
    for offset, magic, kind in _OTHER_KINDS:
        if start[offset:].startswith(magic):
            return kind
    if not start:
        return "empty"
    return "text" if _is_text(start) else "of an unknown kind or damaged at its start"


def _is_text(start: bytes) -> bool:
    """Tell whether bytes are the start of a text in UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\n\r" for letter in text)

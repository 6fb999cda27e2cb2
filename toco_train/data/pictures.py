"""Picture files: which are found in a folder, and their pixels as training sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from toco.errors import DataError
from toco.pictures import open_picture, to_rgb, upright

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def list_images(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order, without those that are the mask of another (same stem, PNG)."""
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    photographs = {p.stem for p in pictures if p.suffix.lower() != ".png"}
    return [p for p in pictures if p.suffix.lower() != ".png" or p.stem not in photographs]


def read_image(path: Path) -> Image.Image:
    """Decode a picture whole, upright, as RGB.

    JPEG, PNG, WebP, BMP and TIFF are read, whatever the file's suffix says; of an animated one, the first frame. The
    EXIF orientation is followed. Grey, palette, CMYK and 1-bit pictures become RGB, 16-bit ones keep their high byte,
    and transparency is ignored: the colours below it count.

    Raises:
        DataError: It is missing, truncated, damaged or of another kind, has more than
            ``toco.pictures.MAX_IMAGE_PIXELS`` (told by its header: nothing is decoded), or levels of no known range.
    """
    with opened(path) as picture:
        return to_rgb(upright(picture))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Give a picture whose header was read; all that goes wrong with it in the block becomes one sentence.

    Raises:
        DataError: See ``read_image``.
    """
    try:
        with open_picture(path) as picture:
            yield picture
    except FileNotFoundError as error:
        raise DataError(f"image {path} is missing; restore it or take it out of the list of images") from error
    except UnidentifiedImageError as error:
        reason = "it is no JPEG, PNG, WebP, BMP or TIFF, or damaged at its start"
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it or take it out of the data") from error
    except DataError as error:
        raise DataError(f"image {path} cannot be used: {error}; convert it or take it out of the data") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data, and each is this picture's fault
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {path} cannot be decoded ({reason}); replace it or take it out of the data") from error

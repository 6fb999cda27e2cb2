"""Image files: which files of a folder are images, and each as upright RGB. Training, checks and the client use it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from toco_core.errors import DataError
from toco_core.rgb import RefusedImageError, open_image, refusing_damage, to_rgb, upright_rgb

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_IMAGE_PIXELS = 89_478_485  # where Pillow begins to warn; 256 MiB as RGB


def list_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Return the images of a folder in order, without hidden files and without masks (see ``without_masks``).

    Args:
        folder: The folder.
        recursive: Search its sub-folders, too, but for hidden ones.

    Raises:
        DataError: The folder or one of its sub-folders cannot be read.
    """
    images: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        images += (Path(parent, name) for name in names if is_image_name(name))
    return without_masks(sorted(images))


def is_image_name(name: str) -> bool:
    """Tell whether a file name has the suffix of an image and is not hidden."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")  # noqa: PTH122


def without_masks(images: Iterable[Path], *, anywhere: bool = False) -> list[Path]:
    """Leave out masks: a PNG beside a photograph (an image of another kind) of the same stem is its mask.

    Args:
        images: Image files.
        anywhere: The photograph of a mask may lie in another folder, as in the layout of PASCAL VOC.
    """
    images = list(images)
    photographs = {_key(path, anywhere) for path in images if path.suffix.lower() != ".png"}
    return [path for path in images if path.suffix.lower() != ".png" or _key(path, anywhere) not in photographs]


def read_image(path: Path) -> Image.Image:
    """Decode an image whole, upright, as RGB.

    JPEG, PNG, WebP, BMP and TIFF are read, whatever the file's suffix; of several frames or pages, the first. The
    EXIF orientation is applied. Grey, palette, CMYK and 1-bit images become RGB, 16-bit levels keep their high byte,
    and transparency is ignored: the stored colours are used.

    Raises:
        DataError: It is missing, truncated, damaged or of another kind, has more than ``MAX_IMAGE_PIXELS`` (by its
            header: nothing is decoded), or its levels or colours cannot be converted.
    """
    with opened(path) as image:
        return upright_rgb(image)


def decode_image(content: bytes) -> Image.Image:
    """Decode the content of an image file as ``read_image`` does.

    Raises:
        DataError: See ``read_image``.
    """
    with _refusals("the image"), open_image(io.BytesIO(content), MAX_IMAGE_PIXELS) as image:
        return upright_rgb(image)


def convert_image(image: Image.Image) -> Image.Image:
    """Convert an image of Pillow's to RGB; its pixels stay where they are.

    Raises:
        DataError: Its levels or colours cannot be converted, or it is read from a file only now and that is damaged.
    """
    with _refusals("the image"), refusing_damage():
        return to_rgb(image)


@contextmanager
def opened(path: Path, *, what: str = "image") -> Iterator[Image.Image]:
    """Open an image file by its header; every error of it in the block becomes one sentence.

    Args:
        path: The file.
        what: What to call it in a message.

    Raises:
        DataError: See ``read_image``.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{what} {path} is missing; restore it or remove it from the data") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{what} {path} cannot be read: {reason}; replace it or remove it from the data") from error
    with file, _refusals(f"{what} {path}", " or remove it from the data"), open_image(file, MAX_IMAGE_PIXELS) as image:
        yield image


@contextmanager
def _refusals(name: str, remedy: str = "") -> Iterator[None]:
    """Say which image was refused, and what else can be done."""
    try:
        yield
    except RefusedImageError as error:
        raise DataError(f"{name} cannot be read: {error}{remedy}") from error


def _key(path: Path, anywhere: bool) -> Path | str:
    return path.stem if anywhere else path.with_suffix("")


def _raise_unreadable(error: OSError) -> None:
    reason = (error.strerror or str(error)).lower()
    raise DataError(f"folder {error.filename} cannot be read: {reason}; give another folder") from error

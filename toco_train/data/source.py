"""What a data set is to training: images, the classes in each, and masks that only evaluation opens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from toco.errors import DataError
from toco.palette import UInt8Array

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_BINARY_THRESHOLD = 127


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        name: Name that tells it from the others of its data set.
        image: The picture.
        labels: Foreground labels present (1..C), possibly none.
        mask: Ground-truth mask, for evaluation only: a palette picture of labels (0 background, 255 ignore), or
            where ``mask_label`` is given a grey picture that is above 127 on the object.
        mask_label: The label that a binary mask stands for; None for a palette mask.
    """

    name: str
    image: Path
    labels: tuple[int, ...]
    mask: Path | None = None
    mask_label: int | None = None


@dataclass(frozen=True)
class DataSource:
    """A data set: class names (label i is ``classes[i - 1]``) and the samples of its two splits."""

    kind: str
    path: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]


def image_labels(sample: Sample, num_classes: int) -> npt.NDArray[np.float32]:
    """Return the multi-hot image label of a sample, float32 ``[C]``."""
    labels = np.zeros(num_classes, dtype=np.float32)
    labels[[label - 1 for label in sample.labels]] = 1
    return labels


def read_image(path: Path) -> Image.Image:
    """Decode a picture whole, upright, as RGB.

    Raises:
        DataError: It is missing, truncated, or no picture.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {path} is missing; restore it or take it out of the list of images") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be decoded ({error}); replace it or take it out of the data") from error


def read_mask(sample: Sample) -> UInt8Array:
    """Return the ground truth of a sample, uint8 ``[H, W]``: 0 background, 1..C, 255 ignore.

    Raises:
        DataError: It has none, or it cannot be read.
    """
    if sample.mask is None:
        raise DataError(f"image {sample.image} has no mask to evaluate with")
    try:
        with Image.open(sample.mask) as picture:
            if sample.mask_label is None:
                return np.array(picture, dtype=np.uint8)
            grey = np.array(picture.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"mask {sample.mask} cannot be decoded ({error}); replace it") from error
    return np.where(grey > _BINARY_THRESHOLD, sample.mask_label, 0).astype(np.uint8)


def list_images(folder: Path) -> list[Path]:
    """Return the pictures of a folder in order, without those that are the mask of another (same stem, PNG)."""
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    photographs = {p.stem for p in pictures if p.suffix.lower() != ".png"}
    return [p for p in pictures if p.suffix.lower() != ".png" or p.stem not in photographs]


def with_masks(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples that have a mask on disk."""
    return tuple(sample for sample in samples if sample.mask is not None and sample.mask.is_file())

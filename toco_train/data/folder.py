"""A folder with one sub-folder per class: photographs sorted by what is in them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from toco.config import nearest
from toco.errors import DataError
from toco_train.data.source import DataSource, Sample, list_images


def open_class_folders(
    path: Path, *, no_class: str | None, group_by: str | None, val_fraction: float, seed: int
) -> DataSource:
    """Open a folder with one sub-folder per class and split it by itself.

    The picture of a class may have a mask beside it: a PNG of the same stem, above 127 on the object.

    Args:
        path: The folder.
        no_class: Name of the sub-folder whose images have nothing in them.
        group_by: Regular expression on the file name; images for which its first group (or the whole match) is the
            same stay in one split. None: every image stands alone.
        val_fraction: Share of each class that is held back for validation.
        seed: Seed of the split.

    Raises:
        DataError: No images, ``no_class`` names no sub-folder, or ``group_by`` is no regular expression.
    """
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    images = {folder.name: found for folder in folders if (found := list_images(folder))}
    if no_class is not None and no_class not in images:
        raise DataError(f"{path} has no sub-folder {no_class!r} with images{nearest(no_class, images)}")
    classes = tuple(name for name in images if name != no_class)
    if not classes:
        raise DataError(f"{path} has no sub-folder with images of a class; put the images of each class in one folder")
    samples = {
        name: [_sample(image, 0 if name == no_class else classes.index(name) + 1) for image in found]
        for name, found in images.items()
    }
    train, val = _split(list(samples.values()), _group_key(group_by), val_fraction, seed)
    return DataSource("folder", path, classes, tuple(train), tuple(val))


def _sample(image: Path, label: int) -> Sample:
    """Return the sample of a picture in the folder of a class (0: nothing in it)."""
    mask = image.with_suffix(".png")
    has_mask = mask != image and mask.is_file()
    return Sample(
        name=f"{image.parent.name}/{image.stem}",
        image=image,
        labels=(label,) if label else (),
        mask=mask if has_mask else None,
        mask_label=label if has_mask else None,
    )


def _group_key(group_by: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(group_by) if group_by else None
    except re.error as error:
        raise DataError(f"--group-by {group_by!r} is not a regular expression: {error}") from error


def _split(
    classes: Sequence[Sequence[Sample]], pattern: re.Pattern[str] | None, val_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Hold back a share of each class's groups; a group belongs to the class in which it is first seen."""

    def group_of(sample: Sample) -> str:
        match = pattern.search(sample.image.name) if pattern else None
        return match.group(match.re.groups and 1) if match else sample.name

    draw = random.Random(seed)
    seen: set[str] = set()
    held_back: set[str] = set()
    for samples in classes:
        groups = sorted({group_of(sample) for sample in samples} - seen)
        seen.update(groups)
        draw.shuffle(groups)
        held_back.update(groups[: max(1, round(len(groups) * val_fraction)) if len(groups) > 1 else 0])
    everything = [sample for samples in classes for sample in samples]
    return (
        [sample for sample in everything if group_of(sample) not in held_back],
        [sample for sample in everything if group_of(sample) in held_back],
    )

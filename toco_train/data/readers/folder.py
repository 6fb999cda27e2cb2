"""A user's own photographs: ``images/`` with a table of labels, or one sub-folder per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from toco_core.errors import DataError
from toco_core.images import list_images
from toco_core.text import nearest
from toco_train.data.classes import CLASSES_FILE, ClassList, found_classes, read_classes, tidy
from toco_train.data.masks import BinaryMask, LabelMask, Mask
from toco_train.data.readers.label_table import LABELS_FILE, LabelRow, read_label_table
from toco_train.data.source import DataSource, Sample
from toco_train.data.splitting import SplitRule, split

IMAGES_FOLDER = "images"
MASKS_FOLDER = "masks"


def class_folders(path: Path) -> dict[str, list[Path]]:
    """Return the images of each sub-folder that has any, by name in order; ``masks`` is no class."""
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != MASKS_FOLDER)
    return {folder.name: found for folder in folders if (found := list_images(folder))}


def open_class_folders(path: Path, *, no_class: str | None, rule: SplitRule) -> DataSource:
    """Open a folder with one sub-folder per class and split it by itself.

    Masks, for evaluation, are label images ``masks/CLASS/STEM.png``, or beside their image: a PNG of the same stem
    that is above 127 on the object.

    Args:
        path: The folder.
        no_class: Name of the sub-folder whose images have nothing in them.
        rule: How to hold back a part for validation.

    Raises:
        DataError: No images, ``no_class`` names no sub-folder, or a sub-folder is no class of ``classes.yaml``.
        ConfigError: The names of the sub-folders or ``classes.yaml`` cannot be used.
    """
    images = class_folders(path)
    if no_class is not None and no_class not in images:
        raise DataError(f"{path} has no sub-folder {no_class!r} with images{nearest(no_class, images)}")
    names = [name for name in images if name != no_class]
    if not names:
        raise DataError(f"{path} has no sub-folder with images of a class; put the images of each class in one folder")
    class_list = read_classes(path) or found_classes([tidy(name) for name in names], path)
    labels = {name: (_label(tidy(name), class_list, path / name),) for name in names}
    samples = [
        Sample(
            name=f"{name}/{image.stem}",
            image=image,
            labels=labels.get(name, ()),
            mask=_mask(image, path / MASKS_FOLDER / name, labels.get(name, ())),
        )
        for name, found in images.items()
        for image in found
    ]
    return _source(path, class_list, samples, rule, "one sub-folder per class", unlisted=tuple(list_images(path)))


def open_labelled_folder(path: Path, *, no_class: str | None, rule: SplitRule) -> DataSource:
    """Open ``images/`` with ``labels.csv`` (file name, then class names) and split it by itself.

    File names are relative to ``images/``. A file on several rows has the classes of all of them. Masks, for
    evaluation, are label images ``masks/STEM.png``, or beside the image of at most one class: a PNG of the same
    stem that is above 127 on the object.

    Args:
        path: The folder.
        no_class: Class that stands for an image with nothing in it.
        rule: How to hold back a part for validation.

    Raises:
        DataError: ``labels.csv`` or ``images/`` cannot be used, or a class is not in ``classes.yaml``.
        ConfigError: The class names or ``classes.yaml`` cannot be used.
    """
    table, folder = path / LABELS_FILE, path / IMAGES_FOLDER
    if not folder.is_dir():
        raise DataError(f"{path} has {LABELS_FILE} but no folder {IMAGES_FOLDER}; put the images there")
    rows = read_label_table(table)
    if not rows:
        raise DataError(f"{table} names no image; write a file name and its classes on each row")
    names = sorted({name for row in rows for name in row.classes})
    if not names:
        raise DataError(f"no row of {table} names a class; write the classes after the file name")
    if no_class is not None and no_class not in names:
        raise DataError(f"no row of {table} has the class {no_class!r}{nearest(no_class, names)}")
    class_list = read_classes(path) or found_classes([name for name in names if name != no_class], table)
    labels_of = _labels_by_file(table, rows, class_list, no_class)
    on_disk = _images_below(folder)
    samples = [
        Sample(
            name=Path(file).with_suffix("").as_posix(),
            image=on_disk[file],
            labels=labels,
            mask=_mask(on_disk[file], (path / MASKS_FOLDER / file).parent, labels),
        )
        for file, labels in labels_of.items()
        if file in on_disk
    ]
    missing = tuple(folder / file for file in labels_of if file not in on_disk)
    unlisted = tuple(image for file, image in on_disk.items() if file not in labels_of)
    return _source(path, class_list, samples, rule, f"labels from {LABELS_FILE}", missing=missing, unlisted=unlisted)


def _source(
    path: Path,
    class_list: ClassList,
    samples: Sequence[Sample],
    rule: SplitRule,
    origin: str,
    *,
    missing: tuple[Path, ...] = (),
    unlisted: tuple[Path, ...] = (),
) -> DataSource:
    """Split samples and say how."""
    by_name: dict[str, Sample] = {}
    for sample in samples:
        if (other := by_name.setdefault(sample.name, sample)) is not sample:
            raise DataError(f"images {other.image} and {sample.image} differ by their suffix alone; rename one")
    train, val = split(samples, rule)
    kept = f", groups by {rule.group_by} kept together" if rule.group_by else ""
    left_out = f"; images left out for want of a label: {len(unlisted)}" if unlisted else ""
    return DataSource(
        kind="folder",
        path=path,
        class_list=class_list,
        train=train,
        val=val,
        description=f"{origin}; {rule.val_fraction:.0%} of each class held back by seed {rule.seed}{kept}{left_out}",
        missing=missing,
        unlisted=unlisted,
    )


def _labels_by_file(
    table: Path, rows: Sequence[LabelRow], class_list: ClassList, no_class: str | None
) -> dict[str, tuple[int, ...]]:
    """Return the labels of each file, files and labels in order."""
    found: dict[str, set[int]] = {}
    for row in rows:
        names = [name for name in row.classes if name != no_class]
        found.setdefault(row.file, set()).update(_label(n, class_list, f"{table} line {row.line}") for n in names)
    return {file: tuple(sorted(found[file])) for file in sorted(found)}


def _label(name: str, class_list: ClassList, where: object) -> int:
    """Return the label of a class."""
    if name not in class_list.classes:
        raise DataError(
            f"{where} has the class {name!r}, which {CLASSES_FILE} does not list{nearest(name, class_list.classes)}"
        )
    return class_list.classes.index(name) + 1


def _images_below(folder: Path) -> Mapping[str, Path]:
    """Return the images in a folder and its sub-folders by their relative name, letters composed."""
    images = list_images(folder, recursive=True)
    return {unicodedata.normalize("NFC", p.relative_to(folder).as_posix()): p for p in images}


def _mask(image: Path, folder: Path, labels: tuple[int, ...]) -> Mask | None:
    """Return the ground truth of an image: from its folder of masks, else from beside it."""
    in_folder, beside = folder / f"{image.stem}.png", image.with_suffix(".png")
    if in_folder.is_file():
        return LabelMask(in_folder, refuse_binary=True)
    if len(labels) <= 1 and beside != image and beside.is_file():
        return BinaryMask(beside, labels[0] if labels else 0)
    return None

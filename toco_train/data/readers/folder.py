"""A user's own photographs: images with a table of labels, or one sub-folder per class; with splits or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.images import list_images
from toco_core.text import nearest
from toco_train.data.classes import CLASSES_FILE, ClassList, found_classes, read_classes, tidy
from toco_train.data.masks import BinaryMask, LabelMask
from toco_train.data.readers.image_names import ImageNames, refuse_confusion
from toco_train.data.readers.label_table import LabelTable, read_label_table
from toco_train.data.readers.left_out import MASKS_FOLDER, UNREAD_SUFFIXES, is_mask_folder, left_out, masks_among
from toco_train.data.source import DataSource, Sample
from toco_train.data.splitting import SplitRule, split

IMAGES_FOLDER = "images"


class LabelledFolder(NamedTuple):
    """Images with a table of labels: the table, the folder of the images, and that of the masks."""

    table: Path
    images: Path
    masks: Path


@dataclass
class _Found:
    """What was found of a data set: its samples by split, and the images that are none."""

    samples: dict[str | None, list[Sample]] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)
    unlisted: list[Path] = field(default_factory=list)


def class_folders(path: Path) -> dict[str, list[Path]]:
    """Return the images of each sub-folder that has any, by name in order.

    A folder that is called like masks is no class unless ``classes.yaml`` lists it.
    """
    classes = read_classes(path)
    listed = set(classes.labels) if classes else set()
    found: dict[str, list[Path]] = {}
    for folder in sorted(path.iterdir()):
        name = folder.name
        if not folder.is_dir() or (_is_left_out(name) and tidy(name) not in listed):
            continue
        images = list_images(folder)
        masks = masks_among(images)
        if photographs := [image for image in images if image not in masks]:
            found[name] = photographs
    return found


def open_class_folders(
    path: Path, *, no_class: str | None, rule: SplitRule, splits: Mapping[str, Path] | None = None
) -> DataSource:
    """Open a folder with one sub-folder per class, and split it by itself unless it has splits of its own.

    Masks, for evaluation, are label images ``masks/CLASS/STEM.png``, or beside their image: a PNG of the same stem
    that is above 127 on the object.

    Args:
        path: The folder.
        no_class: Name of the sub-folder whose images have nothing in them.
        rule: How to hold back a part for validation.
        splits: The folders with the sub-folders of each split (train, val, test), where there are several.

    Raises:
        DataError: No images, ``no_class`` names no sub-folder, or a sub-folder is no class of ``classes.yaml``.
        ConfigError: The names of the sub-folders or ``classes.yaml`` cannot be used.
    """
    parts: dict[str | None, Path] = dict(splits.items()) if splits else {None: path}
    images = {part: class_folders(folder) for part, folder in parts.items()}
    known = sorted({name for folders in images.values() for name in folders})
    if no_class is not None and no_class not in known:
        raise DataError(f"{path} has no sub-folder {no_class!r} with images{nearest(no_class, known)}")
    names = [name for name in known if name != no_class]
    if not names:
        raise DataError(f"{path} has no sub-folder with images of a class; put the images of each class in one folder")
    class_list = read_classes(path) or found_classes([tidy(name) for name in names], path)
    labels = {name: (_label(tidy(name), class_list, path / name),) for name in names}
    roots = dict.fromkeys((path, *parts.values()))
    found = _Found(unlisted=[image for folder in roots for image in list_images(folder)])
    for part, folders in images.items():
        root = parts[part]
        found.samples[part] = [
            Sample(
                name=(root / name / image.stem).relative_to(path).as_posix(),
                image=image,
                labels=labels.get(name, ()),
                mask=_mask(image, root / MASKS_FOLDER / name, labels.get(name, ())),
            )
            for name, listed in folders.items()
            for image in listed
        ]
    return _source(path, class_list, found, rule, origin="one sub-folder per class", splits=splits)


def open_labelled_folder(
    path: Path,
    *,
    no_class: str | None,
    rule: SplitRule,
    parts: Mapping[str | None, LabelledFolder],
) -> DataSource:
    """Open images with a table of labels (see ``read_label_table``), and split them unless the table or folders do.

    A file on several rows has the classes of all of them. Masks, for evaluation, are label images ``masks/STEM.png``,
    or beside the image of at most one class: a PNG of the same stem that is above 127 on the object.

    Args:
        path: The folder.
        no_class: Class that stands for an image with nothing in it.
        rule: How to hold back a part for validation.
        parts: The table and folders of each split (train, val, test), or of None for all.

    Raises:
        DataError: A table or folder of images cannot be used, or a class is not in ``classes.yaml``.
        ConfigError: The class names or ``classes.yaml`` cannot be used.
    """
    listed = read_classes(path)
    known = listed.labels if listed else {}
    read: dict[str | None, tuple[LabelTable, ImageNames]] = {}
    for part, (table, folder, _) in parts.items():
        if not folder.is_dir():
            raise DataError(f"{table.parent} has {table.name} but no folder {folder.name}; put the images there")
        on_disk = ImageNames(folder, _images_below(folder))
        labels = read_label_table(table, known, no_class=no_class, on_disk=on_disk.__contains__)
        if not labels.rows:
            raise DataError(f"{table} names no image; write a file name and its classes on each row")
        read[part] = labels, on_disk
    names = _class_names([labels for labels, _ in read.values()])
    first = next(iter(parts.values())).table
    if not names:
        raise DataError(f"no row of {first} names a class; write the classes after the file name")
    if no_class is not None and no_class not in names:
        raise DataError(f"no row of {first} has the class {no_class!r}{nearest(no_class, names)}")
    class_list = listed or found_classes([name for name in names if name != no_class], first)
    found = _Found()
    for part, (labels, on_disk) in read.items():
        prefix = "" if part is None else f"{parts[part].table.parent.name}/"
        _add_labelled(found, labels, on_disk, parts[part], part=part, prefix=prefix, class_list=class_list,
                      no_class=no_class)  # fmt: skip
    origin = f"labels from {first.relative_to(path)} ({next(iter(read.values()))[0].understood})"
    folders = {str(part): where.table.parent for part, where in parts.items() if part is not None}
    return _source(path, class_list, found, rule, origin=origin, splits=folders)


def _class_names(tables: Sequence[LabelTable]) -> list[str]:
    """Return the class names of tables: in the order of their columns, if all have the same."""
    if all(table.classes == tables[0].classes for table in tables):
        return list(tables[0].classes)
    return sorted({name for table in tables for name in table.classes})


def _add_labelled(
    found: _Found,
    table: LabelTable,
    on_disk: ImageNames,
    where: LabelledFolder,
    *,
    part: str | None,
    prefix: str,
    class_list: ClassList,
    no_class: str | None,
) -> None:
    """Add the images of a table to what was found."""
    labels: dict[str, set[int]] = {}
    splits: dict[str, str | None] = {}
    found_by: dict[str, tuple[str, int]] = {}
    for row in table.rows:
        key = on_disk.find(row.file)
        if key is not None:
            refuse_confusion(found_by, key, row.file, row.line, where.table)
            found_by.setdefault(key, (row.file, row.line))
        key = key or row.file
        names = [name for name in row.classes if name != no_class]
        labels.setdefault(key, set()).update(_label(n, class_list, f"{where.table} line {row.line}") for n in names)
        if splits.setdefault(key, row.split or part) != (row.split or part):
            raise DataError(f"{where.table} line {row.line} puts {row.file} in another split than a line before")
    for key in sorted(labels):
        if key not in on_disk.images:
            inside = [part for part in key.split("/") if part not in ("", ".", "..")]
            found.missing.append(where.images.joinpath(*inside))
            continue
        image, own = on_disk.images[key], tuple(sorted(labels[key]))
        mask = _mask(image, (where.masks / key).parent, own)
        name = f"{prefix}{Path(key).with_suffix('').as_posix()}"
        found.samples.setdefault(splits[key], []).append(Sample(name=name, image=image, labels=own, mask=mask))
    others = [image for key, image in on_disk.images.items() if key not in labels]
    masks = masks_among(on_disk.images.values())
    found.unlisted += [image for image in others if image not in masks]


def _source(
    path: Path,
    class_list: ClassList,
    found: _Found,
    rule: SplitRule,
    *,
    origin: str,
    splits: Mapping[str, Path] | None,
) -> DataSource:
    """Split samples where they are in no splits yet, and say how."""
    samples = [sample for part in found.samples.values() for sample in part]
    by_name: dict[str, Sample] = {}
    for sample in samples:
        if (other := by_name.setdefault(sample.name, sample)) is not sample:
            raise DataError(f"images {other.image} and {sample.image} differ by their suffix alone; rename one")
    train, val, how = _arranged(found, rule, {part: f"{folder.name}/" for part, folder in (splits or {}).items()})
    masks = {sample.mask.path for sample in samples if isinstance(sample.mask, (LabelMask, BinaryMask))}
    used = {*(sample.image for sample in samples), *masks, *found.unlisted}
    notices = left_out(path, used)
    unread = {path / name for notice in notices for name in notice.examples if _is_unread(name)}
    left = f"; images left out for want of a label: {len(found.unlisted)}" if found.unlisted else ""
    return DataSource(
        kind="folder",
        path=path,
        class_list=class_list,
        train=train,
        val=val,
        description=f"{origin}; {how}{left}",
        missing=tuple(image for image in found.missing if image not in unread),
        unlisted=tuple(found.unlisted),
        notices=notices,
    )


def _arranged(
    found: _Found, rule: SplitRule, folders: Mapping[str, str]
) -> tuple[tuple[Sample, ...], tuple[Sample, ...], str]:
    """Return the samples to train on and those held back, and how that was decided."""
    by_split = found.samples
    held_back = "val" if by_split.get("val") else "test"
    if not by_split.get(held_back):
        train, val = split([sample for part in by_split.values() for sample in part], rule)
        kept = f", groups by {rule.group_by} kept together" if rule.group_by else ""
        return train, val, f"{rule.val_fraction:.0%} of each class held back by seed {rule.seed}{kept}"
    if rule.group_by:
        raise DataError("the data has splits of its own; leave out --group-by")
    others = {part or "no split": len(s) for part, s in by_split.items() if s and part not in ("train", held_back)}
    left = "".join(f", {folders.get(part, part)} left out (images: {number})" for part, number in others.items())
    how = f"train from {folders.get('train', 'train')}, val from {folders.get(held_back, held_back)}{left}"
    return tuple(by_split.get("train", ())), tuple(by_split[held_back]), how


def _label(name: str, class_list: ClassList, where: object) -> int:
    """Return the label of a class."""
    labels = class_list.labels
    if name not in labels:
        raise DataError(
            f"{where} has the class {name!r}, which {CLASSES_FILE} does not list{nearest(name, class_list.classes)}"
        )
    return labels[name]


def _images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and its sub-folders, but for folders of masks."""
    inside = (p for p in sorted(folder.rglob("*")) if p.is_dir())
    folders = [p for p in inside if not any(_is_left_out(part) for part in p.relative_to(folder).parts)]
    return [image for one in (folder, *folders) for image in list_images(one)]


def _is_left_out(folder_name: str) -> bool:
    return folder_name.startswith((".", "__")) or is_mask_folder(folder_name)


def _is_unread(name: str) -> bool:
    return Path(name).suffix.lower() in UNREAD_SUFFIXES


def _mask(image: Path, folder: Path, labels: tuple[int, ...]) -> LabelMask | BinaryMask | None:
    """Return the ground truth of an image: from its folder of masks, else from beside it."""
    in_folder, beside = folder / f"{image.stem}.png", image.with_suffix(".png")
    if in_folder.is_file():
        return LabelMask(in_folder, refuse_binary=True)
    if len(labels) <= 1 and beside != image and beside.is_file():
        return BinaryMask(beside, labels[0] if labels else 0)
    return None

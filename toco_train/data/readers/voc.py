"""PASCAL VOC devkit, or any data set in its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from toco_core.errors import DataError
from toco_core.images import list_images
from toco_train.data.classes import CLASSES_FILE, ClassList, read_classes
from toco_train.data.masks import LabelMask
from toco_train.data.readers.left_out import left_out
from toco_train.data.readers.voc_files import read_annotation, read_list
from toco_train.data.source import DataSource, Notice, Sample

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

_FOLDERS = ("JPEGImages", "Annotations", "ImageSets")
_VAL, _NONE = "ImageSets/Segmentation/val.txt", "no list"
_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the devkit's own first
_WITHOUT_MASKS = (
    "ImageSets/Segmentation/train.txt with Main/trainval.txt, without val, for want of a train_aug.txt or the masks in "
    "SegmentationClassAug to work it out from"
)
_TRAIN_LISTS = ("Segmentation/train_aug", "Segmentation/trainaug")  # both names are in use
_LISTS = (*_TRAIN_LISTS, "Segmentation/train", "Segmentation/val", "Main/trainval")


def is_voc(path: Path) -> bool:
    """Tell whether a folder has the layout of a VOC devkit, if perhaps not all of it."""
    return sum((path / name).is_dir() for name in _FOLDERS) >= 2


def open_voc(path: Path) -> DataSource:
    """Open a VOC devkit (the folder with ``JPEGImages``): labels from ``Annotations``, splits from ``ImageSets``.

    Class names come from ``classes.yaml`` (``classes: [...]`` in label order) where there is one, else they are VOC's.
    Every object of an annotation counts, difficult and truncated ones too, as in the label file of the published
    recipe. ``val`` is ``ImageSets/Segmentation/val.txt``; what is trained on, always without ``val``, is the first of:

    1. ``ImageSets/Segmentation/train_aug.txt`` (or ``trainaug.txt``);
    2. every image with a mask in ``SegmentationClassAug``: VOC's ``train_aug``, 12,031 - 1,449 = 10,582 images;
    3. ``Segmentation/train.txt`` with ``Main/trainval.txt``: with no mask on disk ``train_aug`` cannot be known, and
       these lists hold the images that it was drawn from; ``train.txt`` alone where ``Main`` or ``val`` is missing.

    No mask is opened.

    Raises:
        DataError: A folder, all lists or an annotation is missing, a line of a list is no image, or an annotation
            names an unknown class.
        ConfigError: ``classes.yaml`` cannot be used.
    """
    for name in _FOLDERS:
        if not (path / name).is_dir():
            raise DataError(f"{path} looks like a VOC devkit but has no folder {name}; restore it")
    class_list = read_classes(path) or ClassList(classes=VOC_CLASSES)
    images = {image.stem: image for image in list_images(path / "JPEGImages")}
    lists = {name: read_list(path / "ImageSets" / f"{name}.txt", images) for name in _LISTS}
    val = lists["Segmentation/val"]
    train, origin = _train_ids(path, lists)
    if not train and not val:
        raise DataError(f"{path} has no ImageSets/Segmentation/train.txt or val.txt that names an image; add one")
    in_both = [name for name in train if name in set(val)]
    train = [name for name in train if name not in set(val)]
    masks = _masks(path)
    sample = partial(_sample, path, images, masks, class_list)
    used = {*images.values(), *masks.values(), *(m for f in _MASK_FOLDERS for m in (path / f).glob("*.png"))}
    return DataSource(
        kind="VOC",
        path=path,
        class_list=class_list,
        train=tuple(sample(name) for name in train if name in images),
        val=tuple(sample(name) for name in val if name in images),
        description=f"labels from Annotations; train: {origin if train else _NONE}; val: {_VAL if val else _NONE}",
        missing=tuple(path / "JPEGImages" / f"{name}.jpg" for name in (*train, *val) if name not in images),
        notices=(*_held_back(in_both, origin), *left_out(path, used, folders=("JPEGImages", *_MASK_FOLDERS))),
    )


def _held_back(names: Sequence[str], origin: str) -> tuple[Notice, ...]:
    """Tell of the images that two lists name."""
    title = f"images of {_VAL} that {origin} names, too"
    return (Notice("in_both_lists", title, "not trained on", tuple(names)),) if names else ()


def _train_ids(path: Path, lists: Mapping[str, list[str]]) -> tuple[list[str], str]:
    """Return the ids to train on, and where they come from."""
    for name in _TRAIN_LISTS:
        if ids := lists[name]:
            return ids, f"ImageSets/{name}.txt"
    val = set(lists["Segmentation/val"])
    if augmented := {mask.stem for mask in (path / "SegmentationClassAug").glob("*.png")} - val:
        return sorted(augmented), "train_aug, worked out as every mask in SegmentationClassAug that is not in val"
    train, everything = lists["Segmentation/train"], set(lists["Main/trainval"])
    if val and (more := everything.difference(val, train)):
        return sorted(more.union(train)), _WITHOUT_MASKS
    return train, "ImageSets/Segmentation/train.txt"


def _masks(path: Path) -> Mapping[str, Path]:
    """Return the mask of each image id that has one; none is opened."""
    return {mask.stem: mask for folder in reversed(_MASK_FOLDERS) for mask in (path / folder).glob("*.png")}


def _sample(
    path: Path, images: Mapping[str, Path], masks: Mapping[str, Path], class_list: ClassList, name: str
) -> Sample:
    """Return the sample of an image id."""
    return Sample(
        name=name,
        image=images[name],
        labels=_labels(path / "Annotations" / f"{name}.xml", class_list),
        mask=LabelMask(masks[name]) if name in masks else None,
    )


def _labels(annotation: Path, class_list: ClassList) -> tuple[int, ...]:
    """Return the labels that an annotation names."""
    names, labels = read_annotation(annotation), class_list.labels
    if unknown := sorted(names.difference(labels)):
        raise DataError(
            f"annotation {annotation} names the class {unknown[0]!r}, which is none of the {len(labels)} known"
            f"; list the classes in label order in {annotation.parent.parent / CLASSES_FILE}"
        )
    return tuple(sorted(labels[name] for name in names))

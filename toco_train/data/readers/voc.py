"""PASCAL VOC devkit, or any data set in its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from toco_core.errors import DataError
from toco_core.images import list_images
from toco_train.data.classes import CLASSES_FILE, ClassList, read_classes
from toco_train.data.masks import LabelMask
from toco_train.data.source import DataSource, Sample

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
_TRAIN_LISTS = ("train_aug", "trainaug")  # both names go about


def is_voc(path: Path) -> bool:
    """Tell whether a folder has the layout of a VOC devkit, if perhaps not all of it."""
    return sum((path / name).is_dir() for name in _FOLDERS) >= 2


def open_voc(path: Path) -> DataSource:
    """Open a VOC devkit (the folder with ``JPEGImages``): labels from ``Annotations``, splits from ``ImageSets``.

    Class names come from ``classes.yaml`` (``classes: [...]`` in label order) where there is one, else they are VOC's.
    Every object of an annotation counts, difficult and truncated ones too, as in the label file of the published
    recipe. ``val`` is ``ImageSets/Segmentation/val.txt``; what is trained on, without ``val``, is the first of:

    1. ``ImageSets/Segmentation/train_aug.txt`` (or ``trainaug.txt``);
    2. every image with a mask in ``SegmentationClassAug``: VOC's ``train_aug``, 12,031 - 1,449 = 10,582 images;
    3. ``Segmentation/train.txt`` with ``Main/trainval.txt``: with no mask on disk ``train_aug`` cannot be known, and
       these lists hold the images that it was drawn from; ``train.txt`` alone where ``Main`` or ``val`` is missing.

    No mask is opened.

    Raises:
        DataError: A folder, all lists or an annotation is missing, or an annotation names an unknown class.
        ConfigError: ``classes.yaml`` cannot be used.
    """
    for name in _FOLDERS:
        if not (path / name).is_dir():
            raise DataError(f"{path} looks like a VOC devkit but has no folder {name}; restore it")
    class_list = read_classes(path) or ClassList(classes=VOC_CLASSES)
    val = _read_list(path, "Segmentation/val")
    train, origin = _train_ids(path, set(val))
    if not train and not val:
        raise DataError(f"{path} has no ImageSets/Segmentation/train.txt or val.txt that names an image; add one")
    images = {image.stem: image for image in list_images(path / "JPEGImages")}
    sample = partial(_sample, path, images, _masks(path), class_list.classes)
    return DataSource(
        kind="VOC",
        path=path,
        class_list=class_list,
        train=tuple(sample(name) for name in train if name in images),
        val=tuple(sample(name) for name in val if name in images),
        description=f"labels from Annotations; train: {origin if train else _NONE}; val: {_VAL if val else _NONE}",
        missing=tuple(path / "JPEGImages" / f"{name}.jpg" for name in (*train, *val) if name not in images),
    )


def _read_list(path: Path, name: str) -> list[str]:
    """Return the image ids of a list, in order; none where the list does not exist."""
    listing = path / "ImageSets" / f"{name}.txt"
    if not listing.is_file():
        return []
    return list(dict.fromkeys(listing.read_text(encoding="utf-8-sig", errors="replace").split()))


def _train_ids(path: Path, val: set[str]) -> tuple[list[str], str]:
    """Return the ids to train on, and where they come from."""
    for name in _TRAIN_LISTS:
        if ids := _read_list(path, f"Segmentation/{name}"):
            return ids, f"ImageSets/Segmentation/{name}.txt"
    if augmented := {mask.stem for mask in (path / "SegmentationClassAug").glob("*.png")} - val:
        return sorted(augmented), "train_aug, worked out as every mask in SegmentationClassAug that is not in val"
    train, everything = _read_list(path, "Segmentation/train"), set(_read_list(path, "Main/trainval"))
    if val and (more := everything.difference(val, train)):
        return sorted(more.union(train)), _WITHOUT_MASKS
    return train, "ImageSets/Segmentation/train.txt"


def _masks(path: Path) -> Mapping[str, Path]:
    """Return the mask of each image id that has one; none is opened."""
    return {mask.stem: mask for folder in reversed(_MASK_FOLDERS) for mask in (path / folder).glob("*.png")}


def _sample(
    path: Path, images: Mapping[str, Path], masks: Mapping[str, Path], classes: Sequence[str], name: str
) -> Sample:
    """Return the sample of an image id."""
    return Sample(
        name=name,
        image=images[name],
        labels=_labels(path / "Annotations" / f"{name}.xml", classes),
        mask=LabelMask(masks[name]) if name in masks else None,
    )


def _labels(annotation: Path, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the labels that an annotation names."""
    try:
        names = {(element.text or "").strip() for element in ElementTree.parse(annotation).iterfind("object/name")}
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"annotation {annotation} cannot be read ({error}); restore it") from error
    if unknown := sorted(names.difference(classes)):
        raise DataError(
            f"annotation {annotation} names the class {unknown[0]!r}, which is none of the {len(classes)} known"
            f"; list the classes in label order in {annotation.parent.parent / CLASSES_FILE}"
        )
    return tuple(sorted(classes.index(name) + 1 for name in names))

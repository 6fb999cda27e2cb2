"""PASCAL VOC devkit, or any data set in its layout."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from toco.config import read_yaml
from toco.errors import DataError
from toco_train.data.source import DataSource, Sample

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CLASSES_FILE = "classes.yaml"


_FOLDERS = ("JPEGImages", "Annotations", "ImageSets")


def is_voc(path: Path) -> bool:
    """Tell whether a folder has the layout of a VOC devkit, if perhaps not all of it."""
    return sum((path / name).is_dir() for name in _FOLDERS) >= 2


def open_voc(path: Path) -> DataSource:
    """Open a VOC devkit (the folder with ``JPEGImages``): labels from ``Annotations``, splits from ``ImageSets``.

    Class names come from ``classes.yaml`` (``classes: [...]`` in label order) where there is one, else they are VOC's.

    Raises:
        DataError: A list, an annotation or an image is missing, or an annotation names an unknown class.
    """
    for name in _FOLDERS:
        if not (path / name).is_dir():
            raise DataError(f"{path} looks like a VOC devkit but has no folder {name}; restore it")
    classes: tuple[str, ...] = VOC_CLASSES
    if (path / CLASSES_FILE).is_file():
        classes = tuple(str(name) for name in read_yaml(path / CLASSES_FILE).get("classes", ()))
    train = _read_split(path, "train_aug") or _read_split(path, "train")
    val = _read_split(path, "val")
    if not train and not val:
        raise DataError(f"{path} has no ImageSets/Segmentation/train.txt or val.txt that names an image; add one")
    return DataSource(
        kind="VOC",
        path=path,
        classes=classes,
        train=tuple(_sample(path, name, classes) for name in train),
        val=tuple(_sample(path, name, classes) for name in val),
    )


def _read_split(path: Path, split: str) -> list[str]:
    """Return the image ids of a split, in order; none where the list does not exist."""
    listing = path / "ImageSets" / "Segmentation" / f"{split}.txt"
    return listing.read_text(encoding="utf-8").split() if listing.is_file() else []


def _sample(path: Path, name: str, classes: tuple[str, ...]) -> Sample:
    """Return the sample of an image id; masks are named, never opened."""
    image = path / "JPEGImages" / f"{name}.jpg"
    if not image.is_file():
        raise DataError(f"image {image} is missing, yet ImageSets names {name!r}; restore it or take it off the list")
    masks = (path / folder / f"{name}.png" for folder in ("SegmentationClassAug", "SegmentationClass"))
    return Sample(
        name=name,
        image=image,
        labels=_labels(path / "Annotations" / f"{name}.xml", classes),
        mask=next((mask for mask in masks if mask.is_file()), None),
    )


def _labels(annotation: Path, classes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the labels that an annotation names."""
    try:
        names = {element.text or "" for element in ElementTree.parse(annotation).iterfind("object/name")}
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"annotation {annotation} cannot be read ({error}); restore it") from error
    if unknown := sorted(names - set(classes)):
        raise DataError(
            f"annotation {annotation} names the class {unknown[0]!r}, which is none of the {len(classes)} known; "
            f"list the classes in label order in {annotation.parent.parent / CLASSES_FILE}"
        )
    return tuple(sorted(classes.index(name) + 1 for name in names))

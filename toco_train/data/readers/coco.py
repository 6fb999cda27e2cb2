"""MS COCO 2014 and 2017, or any data set in its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES
from toco_train.data.classes import found_classes
from toco_train.data.readers.coco_index import CocoIndex
from toco_train.data.readers.coco_masks import CocoMask
from toco_train.data.source import DataSource, Sample

_INSTANCES = re.compile(r"instances_(train|val)(\d*)\.json")
_IMAGE_FOLDER = re.compile(r"(train|val)20\d\d")


def is_coco(path: Path) -> bool:
    """Tell whether a folder has the layout of COCO, if perhaps not all of it."""
    return bool(_years(path)) or any(_IMAGE_FOLDER.fullmatch(name) for name in _names(path))


def open_coco(path: Path, year: int | None) -> DataSource:
    """Open COCO as downloaded: ``annotations/instances_train2017.json``, ``train2017/``, and the same for ``val``.

    The image folders may also lie in ``images/``, and data of one's own may go without the year. Labels are the
    categories in the order of their ids; every annotation of an image counts, crowds too, and an image without any
    has no label. Masks, for evaluation, are drawn from the same annotations when they are asked for.

    Args:
        path: The folder with ``annotations``.
        year: Which COCO, where the folder holds several; None: the only one.

    Raises:
        DataError: Annotations or images are missing or cannot be read, or several years are there and none is named.
        ConfigError: The category names cannot be used.
    """
    splits = _splits(path, _year(path, year))
    if not any(split.images for split in splits):
        wanted = " or ".join(split.name for split in splits)
        raise DataError(f"{path} has COCO annotations but no folder {wanted} with images; unpack the images there")
    opened = {split: CocoIndex.of(split.instances) for split in splits if split.images}
    class_lists = {index.classes for index in opened.values()}
    if len(class_lists) > 1:
        raise DataError(
            f"the categories of {' and '.join(str(s.instances) for s in opened)} differ; they must be equal"
        )
    origin = next(iter(opened)).instances
    read = {split.kind: _read_split(split, index) for split, index in opened.items()}
    return DataSource(
        kind="COCO",
        path=path,
        class_list=found_classes(class_lists.pop(), origin),
        train=read["train"].samples if "train" in read else (),
        val=read["val"].samples if "val" in read else (),
        description="labels from "
        + " and ".join(f"{s.instances.name} ({s.images.name if s.images else 'no images, left out'})" for s in splits),
        missing=tuple(path for split in read.values() for path in split.missing),
        unlisted=tuple(path for split in read.values() for path in split.unlisted),
    )


class _Split(NamedTuple):
    """Where a split is: train or val, its annotations, and the folder of its images, if that is there."""

    kind: str
    instances: Path
    images: Path | None

    @property
    def name(self) -> str:
        return self.instances.stem.removeprefix("instances_")


class _ReadSplit(NamedTuple):
    """What a split holds, as in ``DataSource``."""

    samples: tuple[Sample, ...]
    missing: tuple[Path, ...]
    unlisted: tuple[Path, ...]


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path)) if path.is_dir() else []  # noqa: PTH208  (names alone: there are 118,287)


def _years(path: Path) -> list[str]:
    """Return the years of the annotation files, an empty text for those without."""
    return sorted({match[2] for name in _names(path / "annotations") if (match := _INSTANCES.fullmatch(name))})


def _year(path: Path, wanted: int | None) -> str:
    """Return the year to open."""
    years = _years(path)
    if not years:
        raise DataError(
            f"{path} looks like COCO but has no annotations/instances_train*.json or instances_val*.json; unpack the "
            "annotations there"
        )
    if wanted is not None:
        if str(wanted) not in years:
            raise DataError(f"{path} has no annotations of COCO {wanted}, only {', '.join(years)}; leave the year out")
        return str(wanted)
    complete = [year for year in years if any(split.images for split in _splits(path, year))] or years
    if len(complete) > 1:
        raise DataError(
            f"{path} holds COCO {' and '.join(filter(None, complete))}; say which with --data.coco_year {complete[-1]}"
        )
    return complete[0]


def _splits(path: Path, year: str) -> list[_Split]:
    """Return the splits of a year that have annotations."""
    splits = []
    for kind in ("train", "val"):
        instances = path / "annotations" / f"instances_{kind}{year}.json"
        folders = (path / f"{kind}{year}", path / "images" / f"{kind}{year}")
        if instances.is_file():
            splits.append(_Split(kind, instances, next((folder for folder in folders if folder.is_dir()), None)))
    return splits


def _read_split(split: _Split, index: CocoIndex) -> _ReadSplit:
    """Match the images that the annotations list with those on disk; masks are named, never drawn."""
    folder = split.images or split.instances.parent
    on_disk = set(_names(folder))
    listed = list(index.images())
    return _ReadSplit(
        samples=tuple(
            Sample(
                name=image.file_name.rpartition(".")[0],
                image=folder / image.file_name,
                labels=image.labels,
                mask=CocoMask(split.instances, image.id) if image.has_mask else None,
            )
            for image in listed
            if _is_there(folder, image.file_name, on_disk)
        ),
        missing=tuple(folder / i.file_name for i in listed if not _is_there(folder, i.file_name, on_disk)),
        unlisted=tuple(_unlisted(folder, on_disk, {image.file_name for image in listed})),
    )


def _is_there(folder: Path, file_name: str, on_disk: set[str]) -> bool:
    """Tell whether an image is there, with a look at the disk only for one in a sub-folder."""
    return file_name in on_disk or ("/" in file_name and (folder / file_name).is_file())


def _unlisted(folder: Path, on_disk: set[str], listed: set[str]) -> Iterable[Path]:
    return (folder / name for name in sorted(on_disk - listed) if Path(name).suffix.lower() in IMAGE_SUFFIXES)

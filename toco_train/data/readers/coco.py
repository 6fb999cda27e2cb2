"""MS COCO 2014 and 2017, or any data set in its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES
from toco_train.data.classes import found_classes
from toco_train.data.readers.coco_index import CocoIndex
from toco_train.data.readers.coco_masks import CocoMask
from toco_train.data.readers.left_out import UNREAD_SUFFIXES, left_out
from toco_train.data.source import DataSource, Notice, Sample

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
    return _open_splits(path, _splits(path, _year(path, year)))


def open_coco_splits(path: Path, instances: Mapping[str, Path]) -> DataSource:
    """Open COCO as Roboflow writes it: each split a folder with its images and their instances file.

    Where there is no ``val``, ``test`` is used; beside a ``val`` it is left out.

    Args:
        path: The folder of the data set.
        instances: The instances file of train, val and test.

    Raises:
        DataError: See ``open_coco``.
        ConfigError: See ``open_coco``.
    """
    held_back = "val" if "val" in instances else "test"
    splits = [_Split("train", instances["train"], instances["train"].parent)]
    if held_back in instances:
        splits.append(_Split("val", instances[held_back], instances[held_back].parent))
    source = _open_splits(path, splits)
    if held_back == "val" and "test" in instances:
        source = replace(source, description=f"{source.description}; {instances['test'].parent.name}/ left out")
    return source


def _open_splits(path: Path, splits: Sequence[_Split]) -> DataSource:
    """Open the splits that have images."""
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
    problems = tuple(f"{split.instances} {one}" for split, index in opened.items() for one in index.problems)
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
        notices=(*_bad_entries(problems), *(notice for split in read.values() for notice in split.notices)),
    )


def _bad_entries(problems: tuple[str, ...]) -> tuple[Notice, ...]:
    title = "entries of the annotations that cannot be used"
    remedy = (
        "correct them: an image with an outline that cannot be drawn has no mask to score with, one with an unknown "
        "category is left out"
    )
    return (Notice("bad_annotation", title, remedy, problems),) if problems else ()


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
    notices: tuple[Notice, ...]


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
    places = _places(folder, [image.file_name for image in listed], on_disk)
    unread = {name for name in on_disk if Path(name).suffix.lower() in UNREAD_SUFFIXES}
    found = [(image, place) for image in listed if (place := places.get(image.file_name)) is not None]
    samples = tuple(
        Sample(
            name=_without_suffix(place),
            image=folder / place,
            labels=image.labels,
            mask=CocoMask(split.instances, image.id) if image.has_mask else None,
        )
        for image, place in found
        if image.usable and place not in unread
    )
    listed_places = set(places.values())
    images = {name for name in on_disk if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    used = {folder / name for name in {*listed_places, *images} - unread}
    return _ReadSplit(
        samples=samples,
        missing=tuple(folder.joinpath(*_parts_inside(i.file_name)) for i in listed if i.file_name not in places),
        unlisted=tuple(folder / name for name in sorted(images - listed_places)),
        notices=left_out(folder, used),
    )


def _places(folder: Path, file_names: Iterable[str], on_disk: set[str]) -> dict[str, str]:
    """Return where in the folder each image lies, as far as it is there: nothing outside the folder is looked at.

    It is at its path below the folder, or under its name alone if no other image is.
    """
    places: dict[str, str] = {}
    by_name: dict[str, list[str]] = {}
    for file_name in file_names:
        parts = _parts_inside(file_name)
        inside = "/".join(parts) == file_name
        if file_name in on_disk or (inside and len(parts) > 1 and os.path.isfile(folder / file_name)):  # noqa: PTH113
            places[file_name] = file_name
        elif parts and parts[-1] in on_disk:
            by_name.setdefault(parts[-1], []).append(file_name)
    taken = set(places.values())
    return places | {names[0]: name for name, names in by_name.items() if len(names) == 1 and name not in taken}


def _parts_inside(file_name: str) -> list[str]:
    """Return the parts of a path without those that lead out of the folder it is given for."""
    return [part for part in file_name.split("/") if part not in ("", ".", "..")]


def _without_suffix(place: str) -> str:
    path = PurePosixPath(place)
    return path.with_suffix("").as_posix() if path.suffix.lower() in IMAGE_SUFFIXES else place

"""What a COCO instances file says, entry by entry: what can be used, and what is wrong with the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toco_core.errors import DataError
from toco_core.images import MAX_IMAGE_PIXELS
from toco_core.text import one_line
from toco_train.data.readers.coco_outlines import checked_outline

_MAX_NUMBER = 2**63  # of SQLite

Key = int | str


@dataclass
class ListedImage:
    """An image of an instances file.

    Attributes:
        number: A number of its own: its id if that is a number.
        file_name: Its file name, with ``/`` between folders.
        size: Height and width in pixels; None if they are not usable.
        objects: Label, whether it is a crowd, and outline of each annotation; None for one without an outline.
        has_mask: Whether a mask can be drawn: all outlines are there and usable.
        usable: Whether its labels are known: all of its annotations have a category.
    """

    number: int
    file_name: str
    size: tuple[int, int] | None
    objects: list[tuple[int, bool, Any]] = field(default_factory=list)
    has_mask: bool = True
    usable: bool = True


@dataclass(frozen=True)
class CocoContent:
    """An instances file.

    Attributes:
        categories: Names of the categories in label order.
        images: The images in the order of the file.
        problems: A sentence for each entry that cannot be used, and for each image without a usable size.
    """

    categories: list[str]
    images: list[ListedImage]
    problems: list[str]


def read_content(instances: Path) -> CocoContent:
    """Read an instances file.

    An annotation whose outline cannot be drawn still gives its label, but its image has no mask. An image with an
    annotation of unknown category is not used: what is in it is not known.

    Raises:
        DataError: It is not JSON, has no usable categories, or none of its images or annotations can be used.
    """
    content = _parsed(instances)
    categories = _categories(instances, content["categories"], _used_categories(content["annotations"]))
    labels = {key: label for label, key in enumerate(categories, start=1)}
    problems: list[str] = []
    images = _images(content["images"], problems)
    if content["images"] and not images:
        raise DataError(f"{instances}: none of its images can be used, the first: {problems[0]}; correct the file")
    num_usable = sum(
        _add_annotation(one, f"annotation {_name(one, place)}", images, labels, problems)
        for place, one in enumerate(content["annotations"])
    )
    if content["annotations"] and not num_usable:
        raise DataError(f"{instances}: none of its annotations can be used, {problems[-1]}; correct the file")
    return CocoContent(list(categories.values()), list({id(i): i for i in images.values()}.values()), problems)


def _parsed(instances: Path) -> dict[str, list[Any]]:
    """Return the three lists of an instances file."""
    try:
        content = json.loads(instances.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{instances} is not JSON ({one_line(error)}); download or export it again") from error
    except OSError as error:
        raise DataError(f"{instances} cannot be read: {error.strerror}; restore it") from error
    names = ("images", "categories", "annotations")
    wrong = [n for n in names if not isinstance(content, dict) or not isinstance(content.get(n), list)]
    if wrong:
        raise DataError(
            f"{instances} is no COCO instances file (it has no list of {wrong[0]}); expected images, categories and "
            "annotations as in COCO's own"
        )
    return {name: content[name] for name in names}


def _used_categories(annotations: list[Any]) -> set[Key | None]:
    return {_key(one.get("category_id")) for one in annotations if isinstance(one, dict)}


def _categories(instances: Path, categories: list[Any], used: set[Key | None]) -> dict[Key, str]:
    """Return the name of each category by its id, in the order of ids.

    A category that only stands above others, as Roboflow writes one, is left out.
    """
    names: dict[Key, str] = {}
    for place, one in enumerate(categories):
        key = _key(one.get("id")) if isinstance(one, dict) else None
        name = one.get("name") if isinstance(one, dict) else None
        text = str(name) if isinstance(name, (str, int)) and not isinstance(name, bool) else ""
        if key is None or not _is_text(text):
            raise DataError(f"{instances}: category {place} has no id or no name; give it both")
        if names.setdefault(key, text) != text:
            raise DataError(f"{instances}: the categories {names[key]!r} and {text!r} have the id {key}; renumber one")
    above = {
        (key, str(one.get("supercategory")))
        for one in categories
        if (key := _key(one.get("id"))) is not None and one.get("supercategory")
    }
    groups = {key for key, name in names.items() if key not in used and any(n == name for k, n in above if k != key)}
    ordered = sorted(names) if all(isinstance(key, int) for key in names) else list(names)
    return {key: names[key] for key in ordered if key not in groups}


def _images(images: list[Any], problems: list[str]) -> dict[Key, ListedImage]:
    """Return the usable images by their ids; two ids of one file name are one image."""
    found: dict[Key, ListedImage] = {}
    by_name: dict[str, ListedImage] = {}
    twice: set[Key] = set()
    for place, one in enumerate(images):
        key = _key(one.get("id")) if isinstance(one, dict) else None
        name = one.get("file_name") if isinstance(one, dict) else None
        if key is None or not _is_text(name):
            lacks = "id" if key is None else "file name"
            problems.append(f"image {_name(one, place)} has no usable {lacks}")
            continue
        file_name = str(name).replace("\\", "/").removeprefix("./")
        if key in found:
            twice.add(key)
            problems.append(f"image {key} is listed twice, as {found[key].file_name} and as {file_name}")
            continue
        size = _size(one)
        if size is None:
            problems.append(f"image {key} ({file_name}) has no usable height and width")
        number = key if isinstance(key, int) and abs(key) < _MAX_NUMBER else -1 - place
        found[key] = by_name.setdefault(file_name, ListedImage(number, file_name, size, has_mask=size is not None))
    return {key: image for key, image in found.items() if key not in twice}


def _add_annotation(
    one: Any, where: str, images: Mapping[Key, ListedImage], labels: Mapping[Key, int], problems: list[str]
) -> bool:
    """Add an annotation to its image; give whether it says what is in it."""
    if not isinstance(one, dict):
        problems.append(f"{where} is {type(one).__name__}, expected a mapping")
        return False
    image_key, category = _key(one.get("image_id")), _key(one.get("category_id"))
    image = images.get(image_key) if image_key is not None else None
    if image is None:
        problems.append(f"{where} belongs to the image {one.get('image_id')!r:.40}, which is not listed")
        return False
    label = labels.get(category) if category is not None else None
    where = f"{where} of image {image_key} ({image.file_name})"
    if label is None:
        problems.append(f"{where} is of the category {one.get('category_id')!r:.40}, which is not listed")
        image.usable = False
        return False
    outline = None
    if image.size is not None:
        try:
            outline = checked_outline(one.get("segmentation"), *image.size)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    image.has_mask = image.has_mask and outline is not None
    image.objects.append((label, one.get("iscrowd") in (1, "1"), outline))
    return True


def _name(one: Any, place: int) -> str:
    """Return what to call an entry: its id, else its place."""
    key = _key(one.get("id")) if isinstance(one, dict) else None
    return f"at place {place}" if key is None else str(key)[:40]


def _key(value: Any) -> Key | None:
    """Return an id as what it is compared by: a number, also where it is written as text, or a text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip():
        text = value.strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text
    return value if isinstance(value, int) else None


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width, if they are those of an image."""
    height, width = (_key(image.get(side)) for side in ("height", "width"))
    whole = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    return (height, width) if whole and height * width <= MAX_IMAGE_PIXELS else None  # type: ignore[operator,return-value]


def _is_text(value: Any) -> bool:
    """Tell whether a value is text that can be a name."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    return value.encode(errors="replace").decode() == value

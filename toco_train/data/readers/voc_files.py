"""The text files of a VOC devkit: lists of images, and annotations in XML."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES
from toco_core.text import one_line
from toco_train.data.classes import tidy
from toco_train.data.readers.text_file import decode_xml, read_text

_FLAGS = frozenset({"-1", "0", "1", "+1"})


def read_list(listing: Path, images: Collection[str]) -> list[str]:
    """Return the image ids of a list, each once, in order; none where the list does not exist.

    A line holds an id, or a path or file name that ends in it; or the paths of an image and its mask, as in lists of
    published code.

    Args:
        listing: The list.
        images: The ids of the images on disk.

    Raises:
        DataError: It cannot be read, or a line holds something else.
    """
    if not listing.is_file():
        return []
    found: dict[str, None] = {}
    for number, line in enumerate(read_text(listing, errors="surrogateescape").split("\n"), start=1):
        text = line.strip()
        if text and not (text.startswith("#") and text not in images):
            found |= dict.fromkeys(_ids(text, images, f"{listing} line {number}"))
    return list(found)


def _ids(line: str, images: Collection[str], where: str) -> list[str]:
    """Return the ids on a line."""
    if line in images or _id(line) in images:
        return [line if line in images else _id(line)]
    parts = [part for part in re.split(r"[\s,;]+", line) if part]
    ids = [_id(part) for part in parts]
    if len(parts) == 2 and parts[1] in _FLAGS:
        raise DataError(
            f"{where} holds {line!r}, an image and whether a class is in it, expected an image alone; lists of a class "
            "belong in ImageSets/Main, write a list without the second column"
        )
    if len(set(ids)) == 1 or all(name in images for name in ids):
        return ids
    raise DataError(f"{where} holds {line!r}, expected the name of one image; correct the line")


def _id(text: str) -> str:
    """Return the id that a path or file name ends in."""
    name = PurePosixPath(text.replace("\\", "/")).name
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def read_annotation(annotation: Path) -> set[str]:
    """Return the names of the classes that an annotation names, in whatever encoding it is.

    Raises:
        DataError: It is missing, damaged or no VOC annotation, or an object has no name.
    """
    try:
        root = ElementTree.fromstring(decode_xml(annotation.read_bytes()))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise DataError(f"annotation {annotation} cannot be read ({one_line(error)}); restore it") from error
    if root.tag != "annotation":
        raise DataError(f"annotation {annotation} holds {root.tag[:40]!r}, expected 'annotation'; export it as VOC")
    names = [tidy(one.findtext("name") or "") for one in root.iterfind("object")]
    if "" in names:
        raise DataError(f"annotation {annotation}: object {names.index('') + 1} has no name; name its class")
    return set(names)

"""A COCO instances file, read once: labels and outlines by image, in a small database.

``instances_train2017.json`` is 448 MB and 3 GB once read, and a single mask would need all of it. So its content goes
into an SQLite file in the user's cache, one row an image, which opens in a moment, is held in nobody's memory, and
gives the outlines of one image by its id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from toco_core.errors import DataError
from toco_core.files import atomic_path

log = logging.getLogger(__name__)

_VERSION = 1  # of the index: another one is made anew

# no journal: the file is renamed into its place when it is whole
_SCHEMA = """
PRAGMA journal_mode = OFF;
CREATE TABLE category (label INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE image (
    position INTEGER PRIMARY KEY, id INTEGER UNIQUE, file_name TEXT, labels TEXT, has_mask INTEGER,
    height INTEGER, width INTEGER, objects BLOB
);
"""


class CocoImage(NamedTuple):
    """What an instances file says of an image, but for the outlines."""

    id: int
    file_name: str
    labels: tuple[int, ...]
    has_mask: bool


@dataclass(frozen=True)
class CocoIndex:
    """The index of an instances file.

    Attributes:
        instances: The instances file.
        folder: Its folder in the cache, with the database and the masks drawn so far.
    """

    instances: Path
    folder: Path

    @classmethod
    def of(cls, instances: Path) -> CocoIndex:
        """Return the index of an instances file, made now if the file is new or has changed.

        Raises:
            DataError: The file is missing or is no instances file, or the cache cannot be written.
        """
        try:
            state = instances.stat()
        except OSError as error:
            raise DataError(f"cannot read {instances}: {error.strerror}; restore it") from error
        key = f"{_VERSION} {instances} {state.st_size} {state.st_mtime_ns}"
        name = f"{instances.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        index = cls(instances, cache_folder() / "coco" / name)
        if not index.database.is_file():
            index._build()
        return index

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "index.sqlite"

    @property
    def classes(self) -> tuple[str, ...]:
        """Category names in the order of their ids."""
        return tuple(name for (name,) in self._select("SELECT name FROM category ORDER BY label"))

    def images(self) -> Iterator[CocoImage]:
        """Yield the images in the order of the instances file."""
        rows = self._select("SELECT id, file_name, labels, has_mask FROM image ORDER BY position")
        for number, file_name, labels, has_mask in rows:
            yield CocoImage(number, file_name, tuple(json.loads(labels)), bool(has_mask))

    def outlines(self, image_id: int) -> tuple[int, int, list[tuple[int, bool, Any]]]:
        """Return height, width and the objects of an image: label, whether it is a crowd, segmentation."""
        query = "SELECT height, width, objects FROM image WHERE id = ?"
        height, width, objects = next(iter(self._select(query, image_id)))
        return height, width, json.loads(zlib.decompress(objects))

    def _select(self, query: str, *values: object) -> list[Any]:
        try:
            with closing(
                sqlite3.connect(f"file:{quote(str(self.database))}?mode=ro&immutable=1", uri=True)
            ) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                f"the index {self.database} cannot be read ({error}); delete it, it is made anew"
            ) from error

    def _build(self) -> None:
        """Read the instances file and write the database, whole or not at all."""
        log.info("reading %s once; what is needed of it is kept in %s", self.instances, self.folder)
        content = _checked(self.instances)
        try:
            with atomic_path(self.database) as temporary, closing(sqlite3.connect(temporary)) as database:
                database.executescript(_SCHEMA)
                database.executemany("INSERT INTO category VALUES (?, ?)", enumerate(_names(content), start=1))
                database.executemany("INSERT INTO image VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", _rows(content))
                database.commit()
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"cannot keep an index of {self.instances} in {self.folder} ({error}); set XDG_CACHE_HOME to a folder "
                "that can be written"
            ) from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``$XDG_CACHE_HOME/toco``, else ``~/.cache/toco``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toco"


def _names(content: Mapping[str, Any]) -> list[str]:
    """Return the category names in label order."""
    return [str(category["name"]) for category in content["categories"]]


def _rows(content: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield the database's row of each image, but for its position."""
    labels = {category["id"]: label for label, category in enumerate(content["categories"], start=1)}
    objects = defaultdict(list)
    for one in content["annotations"]:
        entry = (labels[one["category_id"]], bool(one.get("iscrowd")), one.get("segmentation"))
        objects[one["image_id"]].append(entry)
    for image in content["images"]:
        shown = objects[image["id"]]
        present = json.dumps(sorted({label for label, _, _ in shown}))
        has_mask = all(segmentation for _, _, segmentation in shown)
        outlines = zlib.compress(json.dumps(shown).encode(), level=1)
        yield image["id"], image["file_name"], present, has_mask, image["height"], image["width"], outlines


def _checked(instances: Path) -> dict[str, Any]:
    """Read an instances file, its categories in the order of their ids.

    Raises:
        DataError: It is not JSON, lacks something, or contradicts itself.
    """
    try:
        content: dict[str, Any] = json.loads(instances.read_bytes())
        content["categories"] = sorted(content["categories"], key=itemgetter("id"))
        categories = {category["id"] for category in content["categories"] if category["name"]}
        images = {image["id"] for image in content["images"] if image["file_name"] and image["height"] * image["width"]}
        strangers = [
            one
            for one in content["annotations"]
            if one["category_id"] not in categories or one["image_id"] not in images
        ]
    except ValueError as error:
        raise DataError(f"{instances} is not JSON ({error}); download it again") from error
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{instances} is no COCO instances file ({type(error).__name__}: {error}); expected images, categories and "
            "annotations as in COCO's own"
        ) from error
    if len(images) < len(content["images"]):
        raise DataError(
            f"{instances} lists {len(content['images'])} images, of which {len(images)} have a number of their own, a "
            "file name and a size; mend the file"
        )
    if strangers:
        raise DataError(
            f"{instances}: {len(strangers)} annotations belong to no image or no category of the file, the first to "
            f"image {strangers[0]['image_id']} and category {strangers[0]['category_id']}; mend the file"
        )
    return content

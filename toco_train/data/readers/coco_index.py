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
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from toco_core.errors import DataError
from toco_core.files import atomic_path
from toco_train.data.readers.coco_content import CocoContent, read_content

log = logging.getLogger(__name__)

_VERSION = 2  # of the index: another one is made anew

# no journal: the file is renamed into its place when it is whole
_SCHEMA = """
PRAGMA journal_mode = OFF;
CREATE TABLE category (label INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE image (
    position INTEGER PRIMARY KEY, id INTEGER UNIQUE, file_name TEXT, labels TEXT, has_mask INTEGER, usable INTEGER,
    height INTEGER, width INTEGER, objects BLOB
);
CREATE TABLE problem (position INTEGER PRIMARY KEY, sentence TEXT);
"""


class CocoImage(NamedTuple):
    """What an instances file says of an image, but for the outlines; see ``ListedImage``."""

    id: int
    file_name: str
    labels: tuple[int, ...]
    has_mask: bool
    usable: bool


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
        key = os.fsencode(f"{_VERSION} {instances} {state.st_size} {state.st_mtime_ns}")
        name = f"{instances.stem}-{hashlib.sha256(key).hexdigest()[:16]}"
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
        rows = self._select("SELECT id, file_name, labels, has_mask, usable FROM image ORDER BY position")
        for number, file_name, labels, has_mask, usable in rows:
            yield CocoImage(number, file_name, tuple(json.loads(labels)), bool(has_mask), bool(usable))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the entries that cannot be used, in the order of the file."""
        return tuple(sentence for (sentence,) in self._select("SELECT sentence FROM problem ORDER BY position"))

    def outlines(self, image_id: int) -> tuple[int, int, list[tuple[int, bool, Any]]]:
        """Return height, width and the objects of an image with a mask: label, whether it is a crowd, segmentation."""
        query = "SELECT height, width, objects FROM image WHERE id = ?"
        height, width, objects = next(iter(self._select(query, image_id)))
        return height, width, json.loads(zlib.decompress(objects))

    def _select(self, query: str, *values: object) -> list[Any]:
        try:
            with closing(
                sqlite3.connect(f"file:{quote(os.fsencode(self.database))}?mode=ro&immutable=1", uri=True)
            ) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                f"the index {self.database} cannot be read ({error}); delete it, it is made anew"
            ) from error

    def _build(self) -> None:
        """Read the instances file and write the database, whole or not at all."""
        log.info("reading %s once; what is needed of it is kept in %s", self.instances, self.folder)
        content = read_content(self.instances)
        try:
            with atomic_path(self.database) as temporary, closing(sqlite3.connect(temporary)) as database:
                database.executescript(_SCHEMA)
                database.executemany("INSERT INTO category VALUES (?, ?)", enumerate(content.categories, start=1))
                database.executemany("INSERT INTO image VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", _rows(content))
                problems = ((_printable(sentence),) for sentence in content.problems)
                database.executemany("INSERT INTO problem VALUES (NULL, ?)", problems)
                database.commit()
        except (OSError, sqlite3.Error) as error:
            raise DataError(
                f"cannot keep an index of {self.instances} in {self.folder} ({error}); set XDG_CACHE_HOME to a folder "
                "that can be written"
            ) from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: ``$XDG_CACHE_HOME/toco``, else ``~/.cache/toco``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toco"


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _rows(content: CocoContent) -> Iterator[tuple[object, ...]]:
    """Yield the database's row of each image, but for its position."""
    for image in content.images:
        present = json.dumps(sorted({label for label, _, _ in image.objects}))
        height, width = image.size or (0, 0)
        outlines = zlib.compress(json.dumps(image.objects if image.has_mask else []).encode(), level=1)
        yield image.number, image.file_name, present, image.has_mask, image.usable, height, width, outlines

"""Names of images in a table, matched with the images on disk."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES


class ImageNames:
    """The images below a folder, by the names that a table may give them.

    Nothing outside the folder is ever found, whatever a name says.
    """

    def __init__(self, folder: Path, images: Iterable[Path]) -> None:
        self.images: Mapping[str, Path] = {
            unicodedata.normalize("NFC", image.relative_to(folder).as_posix()): image for image in images
        }
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for key in self.images:
            name = key.rpartition("/")[2]
            self._by_name.setdefault(name, []).append(key)
            self._by_stem.setdefault(name.rpartition(".")[0], []).append(key)
            self._by_stem.setdefault(key.rpartition(".")[0], []).append(key)

    def __contains__(self, name: str) -> bool:
        """Tell whether a name means one of them."""
        return self.find(name) is not None

    def find(self, name: str) -> str | None:
        """Return the image that a name means, as its path below the folder; None if there is none, or no single one.

        It is the path below the folder, the end of a longer path from elsewhere, or the file name alone, and of each
        without the suffix, too.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        tails = ["/".join(parts[start:]) for start in range(len(parts))]
        found = next((tail for tail in tails if tail in self.images), None)
        if found or not parts:
            return found
        candidates = self._by_name.get(parts[-1])
        if candidates is None and Path(parts[-1]).suffix.lower() not in IMAGE_SUFFIXES:
            candidates = next((self._by_stem[tail] for tail in tails if tail in self._by_stem), None)
        unique = set(candidates or ())
        return unique.pop() if len(unique) == 1 else None


def refuse_confusion(names: Mapping[str, tuple[str, int]], key: str, name: str, line: int, table: Path) -> None:
    """Refuse a table in which two names of different files lead to the same image.

    Args:
        names: The name and line that each image was found by.
        key: An image.
        name: What it was found by now.
        line: On which line.
        table: The table.

    Raises:
        DataError: The names differ by more than the folders before them.
    """
    other, other_line = names.get(key, (name, line))
    short, long = sorted((other, name), key=len)
    if not f"/{long}".endswith(f"/{short.lstrip('./')}"):
        raise DataError(
            f"{table} line {line} names {name!r} and line {other_line} {other!r}, and both lead to the image {key}; "
            "name images by their path below the folder of images"
        )

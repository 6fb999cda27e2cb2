"""Which image files are meant, and where what is made of each goes."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toco_core.errors import DataError
from toco_serve.client.images import SUFFIXES


@dataclass(frozen=True)
class Prediction:
    """One image and the start of the names of what is written for it."""

    source: Path
    target: Path

    def output(self, ending: str) -> Path:
        """Return where the output with this ending goes; the target may have dots of its own."""
        return self.target.with_name(self.target.name + ending)


def plan(images: Iterable[Path], out: Path) -> list[Prediction]:
    """Find the images, and a name for each: its stem, or its whole name where two stems are the same.

    A folder is searched to its bottom, and its subfolders appear in ``out`` too. A pattern (``*``, ``?``, ``[a-z]``,
    ``**``) stands for the files that it matches.

    Raises:
        DataError: A folder holds no image, a pattern matches none, or two images have one name.
    """
    sources = {source: out / parent for image in images for source, parent in _images_in(image, out)}
    stems = Counter(folder / source.stem for source, folder in sources.items())
    predictions = [
        Prediction(source, folder / (source.stem if stems[folder / source.stem] == 1 else source.name))
        for source, folder in sources.items()
    ]
    taken: dict[Path, Path] = {}
    for prediction in predictions:
        first = taken.setdefault(prediction.target, prediction.source)
        if first != prediction.source:
            raise DataError(f"{first} and {prediction.source} would be written to one file; use another --out for each")
    return predictions


def _images_in(path: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Give each image that is meant with its subfolder; a file stands for itself."""
    if path.is_dir():
        for source in _searched(path.rglob("*"), out, f"folder {path} holds no image"):
            yield source, source.relative_to(path).parent
    elif glob.has_magic(str(path)) and not path.exists():
        found = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 (pathlib's takes no absolute pattern)
        for source in _searched(found, out, f"the pattern {path} matches no image"):
            yield source, Path()
    else:
        yield path, Path()


def _searched(paths: Iterable[Path], out: Path, complaint: str) -> list[Path]:
    """Return the images among what was found, but for what an earlier run wrote."""
    found = [
        source
        for source in sorted(paths)
        if source.suffix.lower() in SUFFIXES and source.is_file() and out.resolve() not in source.resolve().parents
    ]
    if not found:
        raise DataError(f"{complaint}; expected files that end in {', '.join(sorted(SUFFIXES))}")
    return found

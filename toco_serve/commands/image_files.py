"""Which image files a command line names, and where the outputs of each go."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES, is_image_name, list_images


@dataclass(frozen=True)
class Prediction:
    """One image and the path that the names of its outputs begin with."""

    source: Path
    target: Path

    def output(self, ending: str) -> Path:
        """Return the path of the output with this ending; the target itself may contain dots."""
        return self.target.with_name(self.target.name + ending)


def plan(images: Iterable[Path], out: Path) -> list[Prediction]:
    """Find the images, and a name for each: its stem, or its whole name where two stems are the same.

    A folder is searched with all its sub-folders, which appear in ``out`` too; a PNG beside an image of another kind
    with the same stem is its mask and left out. A pattern (``*``, ``?``, ``[a-z]``, ``**``) stands for all image files
    that it matches. What lies in ``out`` is left out: an earlier run wrote it.

    Raises:
        DataError: A folder holds no image, a pattern matches none, or two images would have the same name.
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
    """Yield each image that a path stands for, with its sub-folder; a file stands for itself."""
    if path.is_dir():
        for source in _outside(out, list_images(path, recursive=True), f"folder {path} holds no image"):
            yield source, source.relative_to(path).parent
    elif glob.has_magic(str(path)) and not path.exists():
        matched = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (pathlib's refuses absolute)
        images = [source for source in matched if is_image_name(source.name) and source.is_file()]
        for source in _outside(out, images, f"the pattern {path} matches no image"):
            yield source, Path()
    else:
        yield path, Path()


def _outside(out: Path, images: Iterable[Path], complaint: str) -> list[Path]:
    """Return the images that are not in the output folder."""
    found = [source for source in images if out.resolve() not in source.resolve().parents]
    if not found:
        raise DataError(f"{complaint}; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found

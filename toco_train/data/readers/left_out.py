"""Images and masks in a data set that are not used: of a kind that is not read, in the wrong place or oddly named."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from toco_core.images import IMAGE_SUFFIXES
from toco_train.data.source import Notice

UNREAD_SUFFIXES = frozenset({
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".gif", ".jp2", ".j2k", ".jpe", ".jif", ".svg", ".psd", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".ico", ".tga", ".ppm", ".pgm", ".pnm", ".pbm", ".exr", ".dcm",
})  # fmt: skip
MASKS_FOLDER = "masks"

_MASK_FOLDERS = frozenset({
    "mask", "masks", "annotation", "annotations", "label", "labels", "gt", "groundtruth", "segmentation",
    "segmentations", "segmentationclass", "segmentationclassaug", "segmentationobject", "trimap", "trimaps",
})  # fmt: skip
_MASK_MARK = r"(?:masks?|segmentation|seg|labels?|labelids|groundtruth|ground_truth|annotation|matte)"
_MASK_STEM = re.compile(rf"(?:(.+?)[ _.\-]*{_MASK_MARK}(?:[ _\-]?\d+)?|{_MASK_MARK}[ _.\-]+(.+))", re.IGNORECASE)


def is_mask_folder(name: str) -> bool:
    """Tell whether a folder's name says that it holds masks, not images."""
    return re.sub(r"[\W_]+", "", name).casefold() in _MASK_FOLDERS


def masks_among(images: Iterable[Path]) -> set[Path]:
    """Return the images that are called a mask of another one in their folder, as in ``NAME_mask.png``."""
    images = list(images)
    all_of_them = {image.with_suffix("") for image in images}
    return {
        image
        for image in images
        if any(image.with_name(name) in all_of_them for name in _base(image.stem) if name and name != image.stem)
    }


def _base(stem: str) -> set[str]:
    """Return the stems that the image of a mask may have; none if the stem is not that of a mask."""
    match = _MASK_STEM.fullmatch(stem)
    if match is None:
        return set()
    name = match[1] or match[2]
    return {name, name.rstrip(" _.-"), f"{name}_image", f"{name}_img"}


def left_out(root: Path, used: Collection[Path], *, folders: Collection[str] = ()) -> tuple[Notice, ...]:
    """Return what images and masks below a folder are not used, by reason.

    Args:
        root: The folder of the data set.
        used: Files that are used, or counted elsewhere.
        folders: The sub-folders to search; all where none is given.
    """
    unread, masks, elsewhere = list[str](), list[str](), list[str]()
    for start in [root / name for name in folders] or [root]:
        for files in _walk(start):
            strays = [path for path in files if path not in used]
            named_as_masks = masks_among(files) if strays else set()
            for path in strays:
                inside = path.relative_to(root)
                if any(is_mask_folder(part) for part in inside.parts[:-1]) or path in named_as_masks:
                    masks.append(str(inside))
                elif path.suffix.lower() in UNREAD_SUFFIXES:
                    unread.append(str(inside))
                elif path.suffix.lower() == ".png" and any(path.with_suffix(s) in used for s in IMAGE_SUFFIXES):
                    masks.append(str(inside))
                else:
                    elsewhere.append(str(inside))
    return tuple(notice for notice in (_unread(unread), _unused_masks(masks), _elsewhere(elsewhere)) if notice.examples)


def _walk(start: Path) -> Iterator[list[Path]]:
    """Yield the image files, of every kind, of each folder below one, but for hidden ones."""
    for name, folders, files in os.walk(start):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        paths = (Path(name, file) for file in sorted(files) if not file.startswith("."))
        yield [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES | UNREAD_SUFFIXES]


def _unread(paths: list[str]) -> Notice:
    suffixes = ", ".join(sorted({Path(path).suffix.lower() for path in paths}))
    return Notice(
        "unread_suffix", f"images of a kind that is not read ({suffixes})", "convert them to JPEG or PNG to use them",
        tuple(paths),
    )  # fmt: skip


def _unused_masks(paths: list[str]) -> Notice:
    return Notice(
        "unused_mask", "masks that are not used",
        f"to score with a mask it must be a PNG of the same stem as its image, in {MASKS_FOLDER}/ (VOC: "
        "SegmentationClass/) in the image's sub-folder, or beside the image for a silhouette of its one class",
        tuple(paths),
    )  # fmt: skip


def _elsewhere(paths: list[str]) -> Notice:
    return Notice(
        "image_elsewhere", "images in folders where none are read",
        "move them to where the other images are, or out of the data",
        tuple(paths),
    )  # fmt: skip

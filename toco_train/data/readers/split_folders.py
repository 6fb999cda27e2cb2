"""Folders called train, valid and test, as export tools write them: splits of a data set, not its classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from toco_core.errors import DataError
from toco_core.images import list_images
from toco_train.data.classes import CLASSES_FILE, read_classes, tidy
from toco_train.data.readers.folder import IMAGES_FOLDER, LabelledFolder, class_folders
from toco_train.data.readers.label_table import LABELS_FILE
from toco_train.data.readers.left_out import MASKS_FOLDER, is_mask_folder

COCO_FILE = "_annotations.coco.json"  # Roboflow's name
_TABLE_FILE = "_classes.csv"  # the same tool's table of marks, beside the images

Kind = Literal["classes", "coco", "table"]

_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_REMEDY = (
    "give each split one sub-folder per class (train/cat, valid/cat), a labels.csv with images/, or export the data as "
    "COCO"
)


class SplitFolders(NamedTuple):
    """The splits of a data set that are folders: what each of them holds, and the folder of train, val and test."""

    kind: Kind
    folders: dict[str, Path]

    def tables(self) -> Mapping[str | None, LabelledFolder]:
        """Return the table and folders of each split."""
        return {split: _labelled(folder) for split, folder in self.folders.items()}


def find_split_folders(path: Path) -> SplitFolders | None:
    """Return the splits of a data set whose sub-folders are splits; None where its sub-folders are something else.

    Sub-folders are splits if all that hold something are called like one. ``train`` alone among others is a class, and
    so is any that ``classes.yaml`` lists. A test split without labels is left out.

    Raises:
        DataError: Splits and other folders are mixed, two are the same split, or a split holds nothing that is read.
    """
    listed = read_classes(path)
    known = set(listed.labels) if listed else set()
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith((".", "__"))]
    folders = [p for p in folders if not is_mask_folder(p.name) and any(p.iterdir())]
    splits = [p for p in folders if _split_of(p.name) and tidy(p.name) not in known]
    if not splits:
        return None
    others = [p for p in folders if p not in splits]
    names = ", ".join(f"{p.name}/" for p in splits)
    if others and [_split_of(p.name) for p in splits] == ["train"]:
        return None
    if others:
        raise DataError(
            f"{path} has the folders {names} of splits beside {others[0].name}/; take one kind out, or if all are "
            f"classes list them in {CLASSES_FILE}"
        )
    found: dict[str, Path] = {}
    for folder in splits:
        other = found.setdefault(str(_split_of(folder.name)), folder)
        if other is not folder:
            raise DataError(f"{path} has {other.name}/ and {folder.name}/ for the same split; join them")
    if "train" not in found:
        raise DataError(f"{path} has {names} but no folder train; add it, or if these are classes list them in "
                        f"{CLASSES_FILE}")  # fmt: skip
    kind = _kind(found["train"])
    if "test" in found and kind != "coco" and not _is_labelled(found["test"]):
        del found["test"]
    for folder in found.values():
        if _kind(folder) != kind:
            raise DataError(f"{folder} is another kind of data than {found['train']}; {_REMEDY}")
    return SplitFolders(kind, found)


def _split_of(name: str) -> str | None:
    """Return which split a folder's name says it is, if any."""
    word = re.sub(r"[\s_-]*(set|data|split|images|imgs)$", "", name.casefold().strip())
    return _WORDS.get(word)


def _kind(folder: Path) -> Kind:
    """Return what a split holds.

    Raises:
        DataError: Nothing that is read.
    """
    if (folder / COCO_FILE).is_file():
        return "coco"
    if (folder / LABELS_FILE).is_file() or (folder / _TABLE_FILE).is_file():
        return "table"
    names = {p.name for p in folder.iterdir()}
    images = list_images(folder)
    if IMAGES_FOLDER in names:
        what = "YOLO's images/ and labels/" if "labels" in names else "images/ without labels"
        raise DataError(f"{folder} is a split with {what}, which are not read; {_REMEDY}")
    if any(name.endswith(".xml") for name in names):
        raise DataError(f"{folder} is a split with images and XML files in one folder, which is not read; {_REMEDY}")
    if any(name.endswith((".csv", ".json")) for name in names):
        other = next(name for name in sorted(names) if name.endswith((".csv", ".json")))
        raise DataError(f"{folder} is a split with {other}, which is not read under that name; {_REMEDY}")
    if class_folders(folder):
        return "classes"
    what = f"{len(images)} images without labels" if images else "nothing that is read"
    raise DataError(f"{folder} is named like a split and holds {what}; {_REMEDY}, or if its name is a class list it "
                    f"in {CLASSES_FILE}")  # fmt: skip


def _is_labelled(folder: Path) -> bool:
    """Tell whether a split holds what is read; a test split often holds images without labels."""
    try:
        _kind(folder)
    except DataError:
        return False
    return True


def _labelled(folder: Path) -> LabelledFolder:
    table = folder / LABELS_FILE
    if table.is_file():
        return LabelledFolder(table, folder / IMAGES_FOLDER, folder / MASKS_FOLDER)
    return LabelledFolder(folder / _TABLE_FILE, folder, folder / MASKS_FOLDER)

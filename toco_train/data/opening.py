"""Recognise what kind of data set a folder is."""

from __future__ import annotations

from pathlib import Path

from toco_core.errors import DataError
from toco_core.text import listed
from toco_train.config import DataConfig
from toco_train.data.readers.coco import is_coco, open_coco, open_coco_splits
from toco_train.data.readers.folder import (
    IMAGES_FOLDER,
    LabelledFolder,
    class_folders,
    open_class_folders,
    open_labelled_folder,
)
from toco_train.data.readers.label_table import LABELS_FILE
from toco_train.data.readers.left_out import MASKS_FOLDER, UNREAD_SUFFIXES
from toco_train.data.readers.split_folders import COCO_FILE, SplitFolders, find_split_folders
from toco_train.data.readers.voc import is_voc, open_voc
from toco_train.data.source import DataSource
from toco_train.data.splitting import SplitRule

_LAYOUTS = (
    f"a VOC devkit (JPEGImages, Annotations, ImageSets), COCO (annotations/instances_*.json), {IMAGES_FOLDER}/ with "
    f"{LABELS_FILE}, or one sub-folder of images per class"
)
_NO_CLASS, _GROUP_BY = ("no_class", "--no-class"), ("group_by", "--group-by")
_COCO_YEAR = ("coco_year", "--data.coco_year")
_SHOWN = 6  # entries of a folder, in a complaint about it


def open_source(config: DataConfig, *, seed: int, allow_missing: bool = False) -> DataSource:
    """Open the data set at ``config.path``.

    Args:
        config: Where it is and how it is read.
        seed: Seed of the split, where the data has none of its own.
        allow_missing: Open it even if labelled images are missing, to report all of them.

    Raises:
        DataError: It is missing, of no known kind, or incomplete.
        ConfigError: Its class names cannot be used.
    """
    path = Path(config.path).expanduser()
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"data folder {path} {kind}; give {_LAYOUTS}")
    source = _open(path.resolve(), config, seed)
    if source.missing and not allow_missing:
        raise DataError(_complaint(source.missing))
    return source


def _open(path: Path, config: DataConfig, seed: int) -> DataSource:
    """Open a folder as what it looks like."""
    for candidate in (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012"):
        if is_voc(candidate):
            _refuse(config, "a VOC devkit: its annotations and lists say it", _NO_CLASS, _GROUP_BY, _COCO_YEAR)
            return open_voc(candidate)
    if is_coco(path):
        _refuse(config, "COCO: its annotations say it", _NO_CLASS, _GROUP_BY)
        return open_coco(path, config.coco_year)
    _refuse(config, "not COCO", _COCO_YEAR)
    rule = SplitRule(config.val_fraction, config.group_by, seed)
    if (path / LABELS_FILE).is_file():
        whole = LabelledFolder(path / LABELS_FILE, path / IMAGES_FOLDER, path / MASKS_FOLDER)
        return open_labelled_folder(path, no_class=config.no_class, rule=rule, parts={None: whole})
    if splits := find_split_folders(path):
        return _open_splits(path, splits, config, rule)
    folders = class_folders(path)
    if not folders or IMAGES_FOLDER in folders:
        raise DataError(f"{path} is no data set: expected {_LAYOUTS}; found {_found(path)}")
    return open_class_folders(path, no_class=config.no_class, rule=rule)


def _open_splits(path: Path, splits: SplitFolders, config: DataConfig, rule: SplitRule) -> DataSource:
    """Open a data set whose splits are folders."""
    if splits.kind == "coco":
        _refuse(config, "COCO: its annotations say it", _NO_CLASS, _GROUP_BY)
        return open_coco_splits(path, {split: folder / COCO_FILE for split, folder in splits.folders.items()})
    if splits.kind == "table":
        return open_labelled_folder(path, no_class=config.no_class, rule=rule, parts=splits.tables())
    return open_class_folders(path, no_class=config.no_class, rule=rule, splits=splits.folders)


def _refuse(config: DataConfig, what: str, *settings: tuple[str, str]) -> None:
    """Refuse settings that would change nothing; each is given by its name and its flag."""
    for name, flag in settings:
        if getattr(config, name) is not None:
            raise DataError(f"{config.path} is {what}; leave out {flag}")


def _found(path: Path) -> str:
    """Say in a few words what lies in a folder."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    return listed((f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries), _SHOWN) or "nothing"


def _complaint(missing: tuple[Path, ...]) -> str:
    """Say which labelled images are missing."""
    first = missing[0]
    beside = sorted(entry.name for entry in first.parent.iterdir()) if first.parent.is_dir() else []
    alike = next((name for name in beside if Path(name).stem.casefold() == first.stem.casefold()), None)
    unread = alike is not None and Path(alike).suffix.lower() in UNREAD_SUFFIXES
    hint = f", did you mean {alike!r}?" if alike else ""
    if unread:
        hint = f" (there is {alike}, of a kind that is not read: convert it to JPEG)"
    more = f" ({len(missing)} are missing in all)" if len(missing) > 1 else ""
    return (
        f"image {first} is missing, yet the labels name it{hint}{more}; restore what is missing "
        "or take it out of the lists"
    )

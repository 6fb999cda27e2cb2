"""Recognise what kind of data set a folder is."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from toco.config import FrozenModel
from toco.errors import DataError
from toco_train.data.folder import open_class_folders
from toco_train.data.source import DataSource
from toco_train.data.voc import is_voc, open_voc


class DataConfig(FrozenModel):
    """Where the images are and how they are read."""

    path: str = Field("", description="A VOC devkit, or a folder with one sub-folder per class.")
    no_class: str | None = Field(None, description="Sub-folder whose images have nothing in them.")
    group_by: str | None = Field(None, description="Regular expression; images with the same match share a split.")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="Share held back where the data has no split of its own.")
    num_workers: int = Field(2, ge=0, description="Processes that read and augment images.")


def open_source(config: DataConfig, *, seed: int) -> DataSource:
    """Open the data set at ``config.path``.

    Raises:
        DataError: It is missing, of no known kind, or incomplete.
    """
    path = Path(config.path).expanduser()
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"data folder {path} {kind}; give a VOC devkit or a folder with one sub-folder per class")
    nested = path / "VOCdevkit" / "VOC2012"
    for candidate in (path, path / "VOC2012", nested):
        if is_voc(candidate):
            if config.no_class is not None:
                raise DataError(f"{path} is a VOC devkit: its annotations say what has no class; leave out --no-class")
            return open_voc(candidate.resolve())
    if any(child.is_dir() for child in path.iterdir()):
        return open_class_folders(
            path.resolve(),
            no_class=config.no_class,
            group_by=config.group_by,
            val_fraction=config.val_fraction,
            seed=seed,
        )
    raise DataError(
        f"{path} is neither a VOC devkit (JPEGImages, Annotations, ImageSets) nor a folder "
        "with one sub-folder per class"
    )

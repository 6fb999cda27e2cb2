"""The real images that an export is checked with: an even sample of a folder, fitted to the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from toco_core.config import read_yaml
from toco_core.errors import DataError
from toco_core.fitting import Size, fit_to_network
from toco_core.images import IMAGE_SUFFIXES, list_images, read_image, without_masks
from toco_core.palette import UInt8Array
from toco_core.sampling import evenly_spaced
from toco_train.runs.layout import CONFIG_FILE


def data_folder(run: Path) -> Path:
    """Return the folder of the data set that a run was trained on, as its configuration states it.

    Raises:
        DataError: The configuration names none.
    """
    data = read_yaml(run / CONFIG_FILE).get("data")
    path = data.get("path") if isinstance(data, dict) else None
    if not path:
        raise DataError(f"{run / CONFIG_FILE} does not name the data set (data.path); give a folder with --images")
    return Path(str(path)).expanduser()


def sample_images(folder: Path, count: int) -> list[Path]:
    """Return up to ``count`` image files of a folder and its sub-folders, the same ones every time.

    They are spread evenly over all files in order of path, so that every class folder has its share. Masks are left
    out, also those in another folder than their photograph (see ``without_masks``).

    Raises:
        DataError: The folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist; give a folder of images with --images")
    files = without_masks(list_images(folder, recursive=True), anywhere=True)
    if not files:
        raise DataError(
            f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); the export is checked with real images: "
            "give a folder of them with --images"
        )
    return list(evenly_spaced(files, count))


def load_images(files: Sequence[Path], sizes: Sequence[Size]) -> list[UInt8Array]:
    """Read images as training does and fit each to the nearest of some sizes: uint8 ``[H, W, 3]`` RGB.

    Raises:
        DataError: A file cannot be read.
    """
    return [np.asarray(fit_to_network(read_image(file), sizes)) for file in files]

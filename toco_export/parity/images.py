"""The real images that an export is checked with: a sample spread over a folder, resized to one size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from toco_core.config import read_yaml
from toco_core.errors import DataError
from toco_core.palette import UInt8Array
from toco_core.sampling import evenly_spaced
from toco_train.runs.layout import CONFIG_FILE

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
PHOTOGRAPH_SUFFIXES = frozenset({".jpg", ".jpeg"})


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

    They are spread evenly over all files in order of path, so that every class folder has its share. A PNG named
    like a photograph (``a/1.png`` beside ``a/1.jpg``, or in another folder) is its mask and is left out.

    Raises:
        DataError: The folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist; give a folder of images with --images")
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    photographs = {file.stem for file in files if file.suffix.lower() in PHOTOGRAPH_SUFFIXES}
    files = [file for file in files if file.suffix.lower() != ".png" or file.stem not in photographs]
    if not files:
        raise DataError(
            f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); the export is checked with real images: "
            "give a folder of them with --images"
        )
    return list(evenly_spaced(files, count))


def load_images(files: Sequence[Path], height: int, width: int) -> UInt8Array:
    """Read images and resize them, bilinearly: uint8 ``[B, height, width, 3]`` RGB.

    Raises:
        DataError: A file cannot be decoded.
    """
    return np.stack([_load_image(file, height, width) for file in files])


def _load_image(file: Path, height: int, width: int) -> UInt8Array:
    try:
        with Image.open(file) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {file} cannot be decoded ({error}); remove it or give others with --images") from error
    return np.asarray(resized)

"""The folder that ``toco-label`` writes: masks laid out as VOC's, and all that is needed to train on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from toco_core.config import FrozenModel
from toco_core.errors import DataError, RunError
from toco_core.files import atomic_path, write_atomic
from toco_core.fitting import Size
from toco_core.images import read_image
from toco_core.palette import IGNORE_INDEX, UInt8Array, save_mask
from toco_core.sampling import evenly_spaced
from toco_train.config import LabelConfig
from toco_train.data.classes import CLASSES_FILE, ClassList, write_classes
from toco_train.data.masks import read_labels
from toco_train.data.source import Sample
from toco_train.inference.preview import heat, labelled, save_grid
from toco_train.inference.pseudo_labels import PseudoLabel

MASKS_FOLDER = "SegmentationClass"
CONFIDENCE_FOLDER = "Confidence"
LISTS_FOLDER = Path("ImageSets", "Segmentation")
SETTINGS_FILE = "labels.json"
SHEET_FILE = "contact_sheet.png"

_SHEET_IMAGES = 16
_TILE_PX = 320
_TITLES = ("image", "pseudo label", "confidence")


class LabelRecord(FrozenModel):
    """What a folder of pseudo labels was made from: labels of different records are never mixed."""

    weights: str = Field(description="SHA-256 of the network's weights.")
    source: str = Field(description="The data set.")
    classes: tuple[str, ...] = Field(description="Foreground class names, labels 1..C.")
    sizes: tuple[Size, ...] = Field(description="Height and width of the sizes that images were fitted to.")
    settings: LabelConfig
    masks: str = f"0 background, 1 to C the classes, {IGNORE_INDEX} unsure"
    confidence: str = (
        "255 times the network's own score of the label, before refinement: the activation of the class (background: "
        "1 less the strongest) or the softmax of the segmentation; 0 where the label is 255"
    )


class LabelFolder:
    """Pseudo labels on disk; each file is whole or not there.

    ``SegmentationClass/NAME.png`` are palette masks, ``Confidence/NAME.png`` grey images,
    ``ImageSets/Segmentation/SPLIT.txt`` the names that have a mask, ``classes.yaml`` the classes and their colours,
    ``labels.json`` what the labels were made from, ``contact_sheet.png`` some of them to look at.

    Args:
        path: The folder; made if it does not exist.
        record: What labels are made from.
        class_list: Names and colours of the classes.
        overwrite: Whether labels of another record, or of this one, may be removed first.

    Raises:
        RunError: It holds labels of another record or something else, or cannot be written.
    """

    def __init__(self, path: Path, record: LabelRecord, class_list: ClassList, *, overwrite: bool = False) -> None:
        self.path, self._class_list = path, class_list
        with self._writing():
            if path.exists():
                self._check(record, overwrite=overwrite)
            write_atomic(path / SETTINGS_FILE, record.model_dump_json(indent=2) + "\n")
            write_classes(path / CLASSES_FILE, class_list)

    def mask(self, sample: Sample) -> UInt8Array | None:
        """Return the mask of a sample, uint8 ``[H, W]``, if mask and confidence are there and whole."""
        try:
            read_labels(self._file(CONFIDENCE_FOLDER, sample))
            return read_labels(self._file(MASKS_FOLDER, sample))
        except DataError:
            return None

    def write(self, sample: Sample, label: PseudoLabel) -> None:
        """Write mask and confidence of a sample.

        Raises:
            RunError: The disk is full, for example.
        """
        with self._writing():
            with atomic_path(self._file(CONFIDENCE_FOLDER, sample)) as temporary:
                Image.fromarray(label.confidence).save(temporary)
            save_mask(self._file(MASKS_FOLDER, sample), label.mask, self._class_list.rgb)

    def write_list(self, split: str, samples: Sequence[Sample]) -> None:
        """Write the names of the samples of a split that have a mask."""
        names = "".join(f"{sample.name}\n" for sample in samples)
        with self._writing():
            write_atomic(self.path / LISTS_FOLDER / f"{split}.txt", names)

    def save_sheet(self, samples: Sequence[Sample]) -> None:
        """Draw images, masks and confidences of some samples that have a mask, evenly spread."""
        cells = []
        for sample in evenly_spaced(samples, _SHEET_IMAGES):
            with suppress(DataError):  # the label is older than what has befallen the image
                cells.append(self._cells(sample))
        if not cells:
            return
        half = -(-len(cells) // 2)
        rows = [left + (cells[half + row] if half + row < len(cells) else []) for row, left in enumerate(cells[:half])]
        with self._writing():
            save_grid(self.path / SHEET_FILE, rows, _TITLES * (2 if len(cells) > 1 else 1), self._class_list)

    def _cells(self, sample: Sample) -> list[UInt8Array]:
        """Return image, label map over it (255 in cream) and confidence, small."""
        pil_image = read_image(sample.image)
        pil_image.thumbnail((_TILE_PX, _TILE_PX))
        image = np.asarray(pil_image)
        mask = Image.fromarray(read_labels(self._file(MASKS_FOLDER, sample)))
        confidence = Image.fromarray(read_labels(self._file(CONFIDENCE_FOLDER, sample)))
        small_mask = np.asarray(mask.resize(pil_image.size, Image.Resampling.NEAREST))
        small_confidence = np.asarray(confidence.resize(pil_image.size, Image.Resampling.BILINEAR), dtype=np.float32)
        return [image, labelled(image, small_mask, self._class_list.rgb), heat(image, small_confidence / 255)]

    def _file(self, folder: str, sample: Sample) -> Path:
        return self.path / folder / f"{sample.name}.png"

    def _check(self, record: LabelRecord, *, overwrite: bool) -> None:
        """Refuse a folder that holds something else; take out its labels if they are to be made anew."""
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file, expected a folder for the labels; give another OUT")
        if not any(self.path.iterdir()):
            return
        try:
            found = dict(json.loads((self.path / SETTINGS_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise RunError(f"{self.path} holds something that is no folder of labels; give another OUT") from error
        differences = _differences(found, record.model_dump(mode="json"))
        if differences and not overwrite:
            raise RunError(
                f"{self.path} holds labels made with {'; '.join(differences)}: give another OUT, or --overwrite to "
                "make them anew"
            )
        unwanted = "*.*" if overwrite else ".*"  # what a kill left in the middle of a file begins with a dot
        for folder in (MASKS_FOLDER, CONFIDENCE_FOLDER, LISTS_FOLDER):
            for file in (self.path / folder).rglob(unwanted):
                file.unlink()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the disk has against writing into a sentence."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"cannot write {self.path} ({error.strerror or error}); make room or give another OUT, what is there "
                "is whole and the same command goes on from it"
            ) from error


def label_all(
    labeller: Callable[[Sample], PseudoLabel], samples: Sequence[Sample], folder: LabelFolder
) -> Iterator[tuple[Sample, UInt8Array | DataError]]:
    """Label every sample that has no label yet.

    Args:
        labeller: Makes the label of a sample.
        samples: What to label.
        folder: Where labels are kept.

    Yields:
        Each sample with its mask, old or new, or with what keeps its image from being read; the others go on.

    Raises:
        RunError: A label cannot be written.
    """
    for sample in samples:
        mask = folder.mask(sample)
        if mask is None:
            try:
                label = labeller(sample)
            except DataError as error:
                yield sample, error
                continue
            folder.write(sample, label)
            mask = label.mask
        yield sample, mask


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Say in what two records of labels differ."""
    texts = [
        f"{key} {found.get(key)}, not {wanted[key]}"
        for key in ("source", "classes", "sizes")
        if found.get(key) != wanted[key]
    ]
    if found.get("weights") != wanted["weights"]:
        texts.append("other weights")
    settings = dict(found.get("settings", {}))
    return texts + [f"{key} {settings.get(key)}, not {value}" for key, value in wanted["settings"].items()
                    if settings.get(key) != value]  # fmt: skip

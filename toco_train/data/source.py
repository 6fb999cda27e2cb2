"""What a data set is to training: images, the classes in each, and masks that only evaluation opens."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toco_core.errors import DataError
from toco_core.palette import UInt8Array
from toco_train.data.classes import ClassList
from toco_train.data.masks import Mask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        name: Name that tells it from the others of its data set; a path without suffix.
        image: The image.
        labels: Foreground labels present (1..C) in order, possibly none.
        mask: Ground truth, for evaluation only; None where there is none.
    """

    name: str
    image: Path
    labels: tuple[int, ...]
    mask: Mask | None = None


@dataclass(frozen=True)
class Notice:
    """What a reader did not use, though a user may think that it does; ``str`` is one sentence.

    Attributes:
        kind: A short name.
        title: What it is, in the plural.
        remedy: What follows, and what to do.
        examples: Each of them.
    """

    kind: str
    title: str
    remedy: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        example = self.examples[0].encode(errors="backslashreplace").decode()  # a name need not be UTF-8
        return f"{self.title}: {len(self.examples)}, for example {example}; {self.remedy}"


@dataclass(frozen=True)
class DataSource:
    """A data set, whatever its layout.

    Attributes:
        kind: The layout as users know it: ``VOC``, ``COCO`` or ``folder``.
        path: Where it is.
        class_list: Class names and colours.
        train: Samples to train on.
        val: Samples held back.
        description: One sentence: where labels and splits come from.
        missing: Images that the labels name and the disk does not have; they are in neither split.
        unlisted: Images beside the others that the labels say nothing of; they are in neither split.
        notices: What else is not used.
    """

    kind: str
    path: Path
    class_list: ClassList
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    description: str
    missing: tuple[Path, ...] = ()
    unlisted: tuple[Path, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; label i is ``classes[i - 1]``."""
        return self.class_list.classes


def log_notices(source: DataSource) -> None:
    """Log a warning for everything that is not used of a data set."""
    for notice in source.notices:
        log.warning("%s: %s", source.path, notice)


def image_labels(sample: Sample, num_classes: int) -> npt.NDArray[np.float32]:
    """Return the multi-hot image label of a sample, float32 ``[C]``."""
    labels = np.zeros(num_classes, dtype=np.float32)
    labels[[label - 1 for label in sample.labels]] = 1
    return labels


def read_mask(sample: Sample) -> UInt8Array:
    """Return the ground truth of a sample, uint8 ``[H, W]``: 0 background, 1..C, 255 ignore.

    Raises:
        DataError: It has none, or it cannot be read.
    """
    if sample.mask is None:
        raise DataError(f"image {sample.image} has no mask to evaluate with")
    return sample.mask.read()


def with_masks(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    """Return the samples that have a mask."""
    return tuple(sample for sample in samples if sample.mask is not None and sample.mask.exists())

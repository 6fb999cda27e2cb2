"""A mask held against the tags of its image: what it lacks, what it has too much, and what it looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from toco_core.errors import DataError
from toco_core.palette import IGNORE_INDEX, UInt8Array
from toco_core.sampling import evenly_spaced
from toco_train.data.masks import LabelMask
from toco_train.data.source import Sample, read_mask, with_masks

MaskKind = Literal["binary_mask", "ignored_mask", "tag_without_pixel", "pixel_without_tag"]

_LOOKED_AT = 32  # masks that tell what the masks of a data set are
_TITLES: dict[MaskKind, str] = {
    "binary_mask": "hold nothing but 0 and 255, and 255 means ignored",
    "ignored_mask": "are 255 everywhere, which means ignored",
    "tag_without_pixel": "have no pixel of a class that the image is tagged with",
    "pixel_without_tag": "have pixels of a class that the image is not tagged with",
}


def disagreement(sample: Sample, labels: UInt8Array) -> frozenset[MaskKind]:
    """Return in what ways the mask of a sample disagrees with its tags.

    Args:
        sample: An image with tags.
        labels: Its mask, uint8 ``[H, W]``: 0 background, 1..C, 255 ignore.
    """
    held = {int(label) for label in np.unique(labels)}
    shown = held - {0, IGNORE_INDEX}
    found: set[MaskKind] = set()
    if set(sample.labels) - shown:
        if IGNORE_INDEX not in held:
            found.add("tag_without_pixel")
        elif isinstance(sample.mask, LabelMask):  # else drawn from annotations: 255 is a crowd, and has the tag
            found.add("tag_without_pixel" if shown else "binary_mask" if 0 in held else "ignored_mask")
    if shown - set(sample.labels):
        found.add("pixel_without_tag")
    return frozenset(found)


def refuse_unusable_masks(samples: Sequence[Sample]) -> None:
    """Read some masks, evenly spread over all, and refuse those that cannot be read or are masks of 0 and 255.

    With the latter the 255 of an object would be ignored, and the score mean nothing.

    Raises:
        DataError: A mask cannot be read, or most of those of tagged images show no class and are 255 somewhere.
    """
    looked_at = evenly_spaced(with_masks(samples), _LOOKED_AT)
    refuse_binary_masks((sample, disagreement(sample, read_mask(sample))) for sample in looked_at)


def refuse_binary_masks(found: Iterable[tuple[Sample, frozenset[MaskKind]]]) -> None:
    """Refuse masks of 0 and 255, from how they disagree with tags.

    Raises:
        DataError: Half of the masks of tagged images or more show no class and are 255 somewhere.
    """
    tagged = [(sample, kinds) for sample, kinds in found if sample.labels]
    binary = [sample for sample, kinds in tagged if "binary_mask" in kinds]
    if binary and 2 * len(binary) >= len(tagged):
        raise DataError(
            f"{len(binary)} of {len(tagged)} masks of tagged images hold nothing but 0 and 255, for example "
            f"{binary[0].mask}, and 255 means ignored; they look like masks of object and background: write the label "
            "of the class (1 for the first) instead of 255"
        )


def describe(found: Iterable[frozenset[MaskKind]]) -> str:
    """Say in one sentence how many of the masks disagree with the tags of their images; nothing if none does."""
    found = list(found)
    numbers = Counter(kind for kinds in found for kind in kinds)
    parts = [f"{numbers[kind]} {title}" for kind, title in _TITLES.items() if numbers[kind]]
    return f"of {len(found)} masks {'; '.join(parts)}; toco-data check names them" if parts else ""

"""Read a whole data set once: count what it holds, and find what would stop training or should be looked at."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from toco_core.config import FrozenModel
from toco_core.errors import DataError
from toco_core.images import opened
from toco_core.palette import IGNORE_INDEX, UInt8Array
from toco_core.rgb import orientation, upright_rgb
from toco_train.data.mask_tags import MaskKind, disagreement, refuse_binary_masks
from toco_train.data.source import DataSource, Sample, read_mask

ENORMOUS_PIXELS = 25_000_000
_DARK = 16  # of 255: 12 bits stored in 16 give no brighter colour

Severity = Literal["stop", "look", "fine"]


class Kind(NamedTuple):
    """Something that is found in a data set: how serious it is, its name, and what to do about it."""

    severity: Severity
    title: str
    remedy: str


KINDS: Mapping[str, Kind] = {
    "missing": Kind(
        "stop", "named by the labels, but not on disk", "restore them, or take them out of the lists or labels"
    ),
    "unreadable": Kind("stop", "cannot be read", "replace them or take them out of the data"),
    "bad_mask": Kind("stop", "masks that do not fit their image", "mend or delete the mask: training scores with it"),
    "binary_mask": Kind(
        "look",
        "masks of nothing but 0 and 255 for tagged images",
        "255 is ignored: write the label of the class instead",
    ),
    "binary_masks": Kind(
        "stop",
        "most masks hold nothing but 0 and 255",
        "255 is ignored: write the label of the class (1 for the first)",
    ),
    "ignored_mask": Kind("look", "masks that are 255 everywhere", "ignored in scores: draw them, or delete them"),
    "tag_without_pixel": Kind(
        "look", "masks without a pixel of a class that the image is tagged with", "draw the class, or take out the tag"
    ),
    "pixel_without_tag": Kind(
        "look", "masks with pixels of a class that the image is not tagged with", "add the tag, or mend the mask"
    ),
    "bad_training_mask": Kind(
        "look", "masks of training images that do not fit", "training does not read them, toco-eval --split train does"
    ),
    "no_training_images": Kind("stop", "no image to train on", "list images in the training split, or add some"),
    "no_training_labels": Kind("stop", "no training image shows any class", "tag images with the classes in them"),
    "unseen_class": Kind(
        "look", "classes in no training image", "add images of them, or take them out of the class list"
    ),
    "unscored_class": Kind("look", "classes in no validation image", "their scores will be blank; add images of them"),
    "in_both_splits": Kind(
        "look", "the same image in both splits", "scores will flatter: delete one, or keep them together (--group-by)"
    ),
    "duplicate": Kind("look", "the same image more than once in a split", "delete all but one"),
    "contradiction": Kind("look", "the same image with different labels", "label it once, with all that is in it"),
    "unlisted": Kind("look", "images that the labels do not name", "left out; label them to train on them"),
    "tiny": Kind("look", "tiny: a side below {tiny} px", "training enlarges or pads them; larger ones teach more"),
    "enormous": Kind(
        "look", f"enormous: above {ENORMOUS_PIXELS // 10**6} megapixels", "slow to read each time; shrink them once"
    ),
    "dark_16_bit": Kind(
        "look", "16-bit, but nearly black at 8", f"stretch their levels to 0..65535 (now below {_DARK * 256:,})"
    ),
    "transparent": Kind("look", "with transparency", "ignored: the colours below count; flatten them if these are odd"),
    "animated": Kind("look", "of several frames or pages", "the first one is used"),
    "no_label": Kind("fine", "images without any class", "used as images with nothing in them: make sure they are"),
    "grey": Kind("fine", "grey", "used as RGB of three equal channels"),
    "cmyk": Kind("fine", "CMYK", "converted to RGB without a colour profile"),
    "16_bit": Kind("fine", "16-bit", "their high byte is used"),
    "rotated": Kind("fine", "turned by EXIF", "turned upright; masks must be upright too"),
}


class Finding(FrozenModel):
    """All that was found of one kind: one row of the report."""

    kind: str
    severity: Severity
    title: str
    remedy: str
    examples: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.examples)


class SplitCounts(FrozenModel):
    """Numbers of a split: images, images without any class, images with a mask, and images of each class."""

    images: int
    without_class: int
    with_mask: int
    by_class: dict[str, int]


class CheckReport(FrozenModel):
    """What was found in a data set.

    ``co_occurrence`` holds (class, other class, images that show both) over both splits, the most frequent first.
    """

    kind: str
    path: str
    description: str
    classes: tuple[str, ...]
    splits: dict[str, SplitCounts]
    co_occurrence: tuple[tuple[str, str, int], ...]
    findings: tuple[Finding, ...]

    @property
    def training_would_fail(self) -> bool:
        """Whether training would stop, or could learn nothing."""
        return any(finding.severity == "stop" for finding in self.findings)


@dataclass(frozen=True)
class Examined:
    """The result of reading one image.

    Attributes:
        problem: The error that training would stop with.
        kinds: Names in ``KINDS``.
        digest: Hash of the pixels, which finds the same image in another file; None where it cannot be read.
        mask_problem: What is wrong with its mask.
        mask_kinds: In what ways its mask disagrees with its tags, names in ``KINDS``; None where it has none to read.
    """

    problem: str | None
    kinds: frozenset[str]
    digest: bytes | None
    mask_problem: str | None = None
    mask_kinds: frozenset[MaskKind] | None = None


def examine_all(source: DataSource, *, tiny_px: int, num_workers: int) -> Iterator[Examined]:
    """Read all images and their masks, ``source.train`` and then ``source.val``.

    Args:
        source: The data set.
        tiny_px: An image with a shorter side is called tiny.
        num_workers: Threads that read.
    """
    samples = (*source.train, *source.val)
    executor = ThreadPoolExecutor(num_workers)  # what takes time here releases the interpreter
    try:
        yield from executor.map(lambda sample: _examined(sample, len(source.classes), tiny_px=tiny_px), samples)
    finally:
        executor.shutdown(cancel_futures=True)


def report(source: DataSource, examined: Sequence[Examined], *, tiny_px: int) -> CheckReport:
    """Sum up the results of ``examine_all``."""
    samples = (*source.train, *source.val)
    pairs = Counter(pair for sample in samples for pair in combinations(sorted(set(sample.labels)), 2))
    found = _findings(source, list(zip(samples, examined, strict=True)))
    return CheckReport(
        kind=source.kind,
        path=str(source.path),
        description=source.description,
        classes=source.classes,
        splits={name: _counts(split, source.classes) for name, split in _splits(source).items()},
        co_occurrence=tuple(
            (source.classes[a - 1], source.classes[b - 1], number) for (a, b), number in pairs.most_common()
        ),
        findings=(
            *(_finding(name, kind, found[name], source, tiny_px) for name, kind in KINDS.items() if found.get(name)),
            *(
                _finding(one.kind, Kind("look", one.title, one.remedy), one.examples, source, tiny_px)
                for one in source.notices
            ),
        ),
    )


def _finding(name: str, kind: Kind, examples: Iterable[str], source: DataSource, tiny_px: int) -> Finding:
    """Return a line of the report."""
    return Finding(
        kind=name,
        severity=kind.severity,
        title=kind.title.replace("{tiny}", str(tiny_px)),
        remedy=kind.remedy,
        examples=tuple(_shown(example, source.path) for example in examples),
    )


def _shown(example: str, folder: Path) -> str:
    """Return an example with paths below the data set's folder, and every character printable as UTF-8."""
    return example.replace(f"{folder}{os.sep}", "").encode(errors="backslashreplace").decode()


def _splits(source: DataSource) -> dict[str, tuple[Sample, ...]]:
    return {"train": source.train, "val": source.val}


def _counts(samples: Sequence[Sample], classes: Sequence[str]) -> SplitCounts:
    numbers = Counter(label for sample in samples for label in sample.labels)
    return SplitCounts(
        images=len(samples),
        without_class=sum(not sample.labels for sample in samples),
        with_mask=sum(sample.mask is not None and sample.mask.exists() for sample in samples),
        by_class={name: numbers[label] for label, name in enumerate(classes, start=1)},
    )


def _findings(source: DataSource, examined: Sequence[tuple[Sample, Examined]]) -> dict[str, list[str]]:
    """Return the examples of each kind."""
    found: dict[str, list[str]] = defaultdict(list)
    found["missing"] = [str(path) for path in source.missing]
    found["unlisted"] = [str(path) for path in source.unlisted]
    for place, (sample, result) in enumerate(examined):
        if result.problem:
            found["unreadable"].append(result.problem)
        if result.mask_problem:
            found["bad_mask" if place >= len(source.train) else "bad_training_mask"].append(result.mask_problem)
        for kind in result.kinds:
            found[kind].append(sample.name)
        for kind in result.mask_kinds or ():
            found[kind].append(str(sample.mask))
    try:
        held_back = examined[len(source.train) :]
        refuse_binary_masks((s, result.mask_kinds) for s, result in held_back if result.mask_kinds is not None)
    except DataError as error:
        found["binary_masks"] = [str(error)]
    if not source.train:
        found["no_training_images"] = [str(source.path)]
    elif not any(sample.labels for sample in source.train):
        found["no_training_labels"] = [str(source.path)]
    else:
        found["unseen_class"] = _classes_without_image(source.train, source.classes)
    if source.val:
        found["unscored_class"] = _classes_without_image(source.val, source.classes)
    _add_duplicates(found, source, examined)
    return found


def _classes_without_image(samples: Iterable[Sample], classes: Sequence[str]) -> list[str]:
    shown = {label for sample in samples for label in sample.labels}
    return [name for label, name in enumerate(classes, start=1) if label not in shown]


def _add_duplicates(
    found: dict[str, list[str]], source: DataSource, examined: Sequence[tuple[Sample, Examined]]
) -> None:
    """Add the images that occur more than once."""
    groups: dict[bytes, tuple[list[Sample], list[Sample]]] = defaultdict(lambda: ([], []))
    for place, (sample, result) in enumerate(examined):
        if result.digest is not None:
            groups[result.digest][place >= len(source.train)].append(sample)
    for train, val in groups.values():
        if train and val:
            found["in_both_splits"].append(f"{train[0].name} = {val[0].name}")
        found["duplicate"] += [" = ".join(sample.name for sample in part) for part in (train, val) if len(part) > 1]
        if len({sample.labels for sample in (*train, *val)}) > 1:
            found["contradiction"].append(" = ".join(sample.name for sample in (*train, *val)))


def _examined(sample: Sample, num_classes: int, *, tiny_px: int) -> Examined:
    """Read an image as training does, and its mask as evaluation does."""
    try:
        with opened(sample.image) as file:
            stored = _stored(file)
            pixels = np.asarray(upright_rgb(file))
            kinds = stored | _kinds_of_file(file)
    except DataError as error:
        return Examined(str(error), frozenset(), None)
    height, width = pixels.shape[:2]
    if min(height, width) < tiny_px:
        kinds.add("tiny")
    if height * width > ENORMOUS_PIXELS:
        kinds.add("enormous")
    if _is_grey(pixels[::8, ::8]) and _is_grey(pixels):
        kinds.add("grey")
    if "16_bit" in kinds and pixels.max() < _DARK:
        kinds.add("dark_16_bit")
    if not sample.labels:
        kinds.add("no_label")
    digest = hashlib.blake2b(pixels.data, key=f"{height} {width}".encode()).digest()
    problem, mask_kinds = _held_against_mask(sample, (height, width), num_classes)
    return Examined(None, frozenset(kinds), digest, problem, mask_kinds)


def _stored(image: Image.Image) -> set[str]:
    """Return the kinds that are lost when the pixels are decoded: Pillow turns a TIFF and has no 16-bit colours."""
    kinds = {
        "16_bit": image.mode.startswith("I") or any("16" in raw for raw in _raw_modes(image)),
        "rotated": image.format == "TIFF" and orientation(image) != 1,
    }
    return {name for name, holds in kinds.items() if holds}


def _kinds_of_file(image: Image.Image) -> set[str]:
    """Return the kinds of a decoded image."""
    kinds = {
        "cmyk": image.mode == "CMYK",
        "transparent": image.has_transparency_data,
        "rotated": orientation(image) != 1,
        "animated": getattr(image, "is_animated", False),
    }
    return {name for name, holds in kinds.items() if holds}


def _raw_modes(image: Image.Image) -> Iterator[str]:
    """Yield how the pixels are stored: Pillow's mode is the same for 8 and for 16 bits a colour."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        yield from (argument for argument in arguments[:1] if isinstance(argument, str))


def _is_grey(pixels: UInt8Array) -> bool:
    return bool((pixels[..., 1:] == pixels[..., :1]).all())


def _held_against_mask(
    sample: Sample, size: tuple[int, int], num_classes: int
) -> tuple[str | None, frozenset[MaskKind] | None]:
    """Return what is wrong with the mask of an image of ``(height, width)``, and how it disagrees with its tags."""
    if sample.mask is None or not sample.mask.exists():
        return None, None
    try:
        mask = read_mask(sample)
    except DataError as error:
        return str(error), None
    if mask.shape != size:
        return f"mask {sample.mask} is {mask.shape[1]} x {mask.shape[0]} px, its image {size[1]} x {size[0]}", None
    strange = set(np.unique(mask).tolist()) - set(range(num_classes + 1)) - {IGNORE_INDEX}
    if strange:
        return f"mask {sample.mask} holds the label {min(strange)}, and there are {num_classes} classes", None
    return None, disagreement(sample, mask)

"""Hold back part of a data set that has no split of its own, with photographs of one thing on one side."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from toco_core.errors import DataError
from toco_train.data.source import Sample


@dataclass(frozen=True)
class SplitRule:
    """How to hold back images for validation.

    Attributes:
        val_fraction: Share of each class that is held back.
        group_by: Regular expression on the file name; images for which its first group (or the whole match) is the
            same stay in one split. None: every image stands alone.
        seed: Seed of the split.
    """

    val_fraction: float
    group_by: str | None
    seed: int


def split(samples: Sequence[Sample], rule: SplitRule) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split samples into those to train on and those held back, each in the order given.

    A share of each class's groups is held back, but at least one where there are two; a group counts for the rarest
    class in it, so that rare classes are on both sides; groups without any class count as a class of their own.

    Raises:
        DataError: ``rule.group_by`` is no regular expression.
    """
    try:
        pattern = re.compile(rule.group_by) if rule.group_by else None
    except re.error as error:
        raise DataError(f"--group-by {rule.group_by!r} is not a regular expression: {error}") from error
    groups = [_group_of(sample, pattern) for sample in samples]
    frequency = Counter(label for sample in samples for label in sample.labels)
    rarity: dict[str, tuple[float, int]] = {}
    for sample, group in zip(samples, groups, strict=True):
        rarest = min(((frequency[label], label) for label in sample.labels), default=(float("inf"), 0))
        rarity[group] = min(rarity.get(group, rarest), rarest)
    draw = random.Random(rule.seed)
    held_back: set[str] = set()
    for stratum in sorted(set(rarity.values())):
        members = sorted(group for group, rarest in rarity.items() if rarest == stratum)
        draw.shuffle(members)
        held_back.update(members[: max(1, round(len(members) * rule.val_fraction)) if len(members) > 1 else 0])
    chosen = [group in held_back for group in groups]
    return (
        tuple(sample for sample, held in zip(samples, chosen, strict=True) if not held),
        tuple(sample for sample, held in zip(samples, chosen, strict=True) if held),
    )


def _group_of(sample: Sample, pattern: re.Pattern[str] | None) -> str:
    """Return what a sample must share its split with."""
    match = pattern.search(sample.image.name) if pattern else None
    return match.group(match.re.groups and 1) or "" if match else sample.name

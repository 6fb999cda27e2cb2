"""Choosing some of many items, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def evenly_spaced(items: Sequence[T], count: int) -> tuple[T, ...]:
    """Return ``count`` items in their order, evenly spaced from the first to the last.

    All items are returned if ``count`` is 0 or at least their number; a count of 1 gives the first.
    """
    if count == 0 or count >= len(items):
        return tuple(items)
    return tuple(items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int))

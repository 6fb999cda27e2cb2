"""When to ask again: an inference changes nothing, so that a lost one may be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Retry:
    """How often and how soon to ask again after a ``TransientError``, within the call's own time.

    A server that is about to stop is waited for as long as the call's time allows, whatever stands here.

    Attributes:
        max_attempts: Requests in all; 1 asks once.
        first_pause_s: Longest pause after the first failure; it doubles with each further one.
        longest_pause_s: Where the doubling ends.
    """

    max_attempts: int = 5
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0

    def pauses(self) -> Iterator[float]:
        """Give the pause before each further attempt, in seconds.

        Each is drawn between half its bound and the whole, so that clients that failed together do not return together.
        """
        bound = self.first_pause_s
        for _ in range(self.max_attempts - 1):
            yield random.uniform(bound / 2, bound)
            bound = min(2 * bound, self.longest_pause_s)

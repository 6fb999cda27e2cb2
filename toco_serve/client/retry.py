"""When to retry: an inference changes nothing on the server, so a lost one can be sent again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Retry:
    """How often and how soon to retry after a ``TransientError``, within the call's timeout.

    Requests to a stopping server are retried until the call's timeout, independent of these values.

    Attributes:
        max_attempts: Largest number of requests; 1: no retry.
        first_pause_s: Longest pause after the first failure, in seconds; it doubles with each further failure.
        longest_pause_s: Upper limit of the pause, in seconds.
    """

    max_attempts: int = 5
    first_pause_s: float = 0.1
    longest_pause_s: float = 2.0

    def pauses(self) -> Iterator[float]:
        """Yield the pause before each further attempt, in seconds.

        Each is drawn between half of its bound and the bound, so that clients that failed together retry apart.
        """
        bound = self.first_pause_s
        for _ in range(self.max_attempts - 1):
            yield random.uniform(bound / 2, bound)
            bound = min(2 * bound, self.longest_pause_s)

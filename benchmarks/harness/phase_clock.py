"""A clock that adds up the time of each phase of a call."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from benchmarks.harness.timing import synchronise

P = ParamSpec("P")
R = TypeVar("R")


class PhaseClock:
    """Adds up time by phase, with the device synchronised at both ends; a phase inside a phase is not counted."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._clock = clock
        self._inside = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's time to a phase, unless the block lies inside another phase."""
        if self._inside:
            yield
            return
        self._inside = True
        synchronise(self._device)
        began = self._clock()
        try:
            yield
        finally:
            synchronise(self._device)
            self.seconds[name] += self._clock() - began
            self._inside = False

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function with its time added to a phase."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

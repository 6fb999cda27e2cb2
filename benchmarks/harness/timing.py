"""Timing calls in turn: warm-up, rounds, and the median, ratio and stability of the times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

CONFIDENCE, NORMAL_QUANTILE = 0.95, 1.96
FEW = 8  # with fewer, two halves of a steady series differ more often than one time in twenty

SPREAD = f"""\
Spread: half the {CONFIDENCE:.0%} confidence interval of the median (order statistics; the range of fewer than 6 calls),
widened to contain the median of each process (with one process, of each quarter of its rounds), as a share of the
median. Ratio and speed: the median over the rounds of the quotient in one round, with its interval in parentheses. Two
medians differ if their intervals do not overlap. unstable: in most processes the intervals of the first and the second
half of the rounds, without the widening, do not overlap; few: fewer than {FEW} calls in a process, too few to tell."""


@dataclass(frozen=True)
class Series:
    """Measurements of one thing in their order: seconds of calls, or their ratios.

    Attributes:
        values: One or more; none if every call failed: then only percentiles are defined.
        turns: Number of values per process, if there were several; empty for one process.
    """

    values: tuple[float, ...]
    turns: tuple[int, ...] = ()

    @classmethod
    def joined(cls, series: Sequence[Series]) -> Series:
        """Return the measurements of several processes as one series; empty ones are left out."""
        found = [one.values for one in series if one.values]
        return cls(tuple(value for values in found for value in values), tuple(map(len, found)))

    def percentile(self, percent: float) -> float:
        """Return a percentile of the values; NaN if there are none."""
        return float(np.percentile(self.values, percent)) if self.values else math.nan

    @cached_property
    def median(self) -> float:
        """The median."""
        return self.percentile(50)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the median, widened to contain the medians of all processes or quarters.

        The medians of four processes and of four others like them are wholly apart 2 times in 70. Quarters show the
        drift of one process, but not the differences between processes.
        """
        low, high = self._interval_if_steady
        medians = [part.median for part in (self._by_process if len(self.turns) > 1 else self._parts(4))]
        return min(low, *medians), max(high, *medians)

    @cached_property
    def spread(self) -> float:
        """Half the interval's width, as a share of the median."""
        low, high = self.interval
        return (high - low) / 2 / self.median

    @cached_property
    def stable(self) -> bool | None:
        """Whether the second half agrees with the first, in most processes; None with too few values to tell."""
        if len(self.turns) > 1:
            votes = [part.stable for part in self._by_process if part.stable is not None]
            return 2 * sum(votes) >= len(votes) if votes else None
        if len(self.values) < FEW:
            return None
        (low, high), (late_low, late_high) = (half._interval_if_steady for half in self._parts(2))
        return low <= late_high and late_low <= high

    def over(self, other: Series) -> Series:
        """Return the quotients of the rounds that both have; with several processes, both must have the same turns."""
        assert self.turns == other.turns
        return Series(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=False)), self.turns)

    def as_json(self) -> dict[str, Any]:
        """Return the statistics of the values for a report, without the values."""
        low, high = self.interval
        return {
            "count": len(self.values), "median": self.median, "q1": self.percentile(25), "q3": self.percentile(75),
            "low": low, "high": high, "spread": self.spread, "stable": self.stable,
        }  # fmt: skip

    @cached_property
    def _by_process(self) -> list[Series]:
        """The values of each process."""
        ends = np.cumsum(self.turns)[:-1]
        return [Series(tuple(part.tolist())) for part in np.split(np.array(self.values), ends)]

    @cached_property
    def _interval_if_steady(self) -> tuple[float, float]:
        """The confidence interval of the median by order statistics, without widening."""
        ordered, rank = sorted(self.values), _rank(len(self.values))
        return ordered[rank], ordered[-1 - rank]

    def _parts(self, number: int) -> list[Series]:
        """Split the values, in their order, into non-empty parts of about equal length."""
        return [Series(tuple(part.tolist())) for part in np.array_split(self.values, number) if len(part)]


def _rank(count: int) -> int:
    """Return the index, among the sorted values, where the confidence interval of the median begins.

    Uses the normal approximation of the binomial distribution. The interval ends at the mirrored index. For any
    distribution it misses the median only if at most as many values as the index lie below the median, or above it.
    """
    return max(0, math.floor((count - NORMAL_QUANTILE * math.sqrt(count) - 1) / 2))


def warm_up(
    call: Callable[[], object], device: torch.device, times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Make a call several times and return the seconds of the fastest one."""
    return min(timed_call(call, device, clock) for _ in range(times))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int | Mapping[str, int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Series]:
    """Time calls in turn, A B C A B C, so that other load on the machine affects all of them alike.

    Args:
        calls: The calls, after warm-up.
        device: Where they run.
        repeats: Number of rounds, for all calls or for each; a call with fewer is left out of the last rounds.
        clock: Returns seconds.

    Returns:
        The seconds of each call, in the order of the rounds.
    """
    wanted = {name: repeats if isinstance(repeats, int) else repeats[name] for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(wanted.values(), default=0)):
        for name, call in calls.items():
            if turn < wanted[name]:
                seconds[name].append(timed_call(call, device, clock))
    return {name: Series(tuple(values)) for name, values in seconds.items()}


def timed_call(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one call; the device is idle before and after it."""
    synchronise(device)
    began = clock()
    call()
    synchronise(device)
    return clock() - began


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread_cell(found: Mapping[str, Any]) -> str:
    """Return the spread of a ``Series.as_json`` for a table, marked if it is not reliable."""
    mark = {True: "", False: " unstable", None: " few"}[found["stable"]]
    return f"± {found['spread']:.1%}{mark}"


def ratio_cell(found: Mapping[str, Any]) -> str:
    """Return the median of a ``Series.as_json`` for a table, with its interval if there is more than one value."""
    interval = f" ({found['low']:.2f} to {found['high']:.2f})" if found["count"] > 1 else ""
    return f"{found['median']:.2f}{interval}"

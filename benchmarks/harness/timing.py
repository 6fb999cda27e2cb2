"""Timing calls against each other: warm-up, turns, and what the times say of their median, ratio and stability."""

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
FEW = 8  # below, two halves of one steady series are apart more than one time in twenty

SPREAD = f"""\
Spread: half the {CONFIDENCE:.0%} interval of the median (of order statistics; of fewer than 6 calls, their range), made
wide enough for the median of each process (of each quarter of the rounds, where one process made all); as a share of
the median. Ratio and speed: the median over rounds of the quotient in one round, with its interval in parentheses. Two
medians differ where their intervals do not overlap. unstable: those of the first and the second half of the rounds, in
most of the processes, do not, taken without that widening; few: under {FEW} calls in a process, too few to tell."""


@dataclass(frozen=True)
class Series:
    """Measurements of one thing in the order in which they were made: seconds of calls, or their ratios.

    Attributes:
        values: One or more; none where every call failed, and then there are percentiles alone.
        turns: How many of them each process made, where several took turns; nothing where one made all.
    """

    values: tuple[float, ...]
    turns: tuple[int, ...] = ()

    @classmethod
    def joined(cls, series: Sequence[Series]) -> Series:
        """Return what several processes measured as one; those that measured nothing are left out."""
        found = [one.values for one in series if one.values]
        return cls(tuple(value for values in found for value in values), tuple(map(len, found)))

    def percentile(self, percent: float) -> float:
        """Return a percentile of the values; NaN without any."""
        return float(np.percentile(self.values, percent)) if self.values else math.nan

    @cached_property
    def median(self) -> float:
        """The middle value."""
        return self.percentile(50)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Where the median lies: its confidence interval, wide enough for the medians of all processes or quarters.

        Four processes and four like them lie wholly apart 2 times in 70. Quarters know of the drift of one process, and
        nothing of what the next does otherwise.
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
        """Whether the second half repeats the first, in most processes; None where the values are too few to tell."""
        if len(self.turns) > 1:
            votes = [part.stable for part in self._by_process if part.stable is not None]
            return 2 * sum(votes) >= len(votes) if votes else None
        if len(self.values) < FEW:
            return None
        (low, high), (late_low, late_high) = (half._interval_if_steady for half in self._parts(2))
        return low <= late_high and late_low <= high

    def over(self, other: Series) -> Series:
        """Return the quotients of the rounds that both have; where several processes made them, all have as many."""
        assert self.turns == other.turns
        return Series(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=False)), self.turns)

    def as_json(self) -> dict[str, Any]:
        """Return what a report says of the values, without the values."""
        low, high = self.interval
        return {
            "count": len(self.values), "median": self.median, "q1": self.percentile(25), "q3": self.percentile(75),
            "low": low, "high": high, "spread": self.spread, "stable": self.stable,
        }  # fmt: skip

    @cached_property
    def _by_process(self) -> list[Series]:
        """What each process measured."""
        ends = np.cumsum(self.turns)[:-1]
        return [Series(tuple(part.tolist())) for part in np.split(np.array(self.values), ends)]

    @cached_property
    def _interval_if_steady(self) -> tuple[float, float]:
        """The confidence interval of the median by order statistics."""
        ordered, rank = sorted(self.values), _rank(len(self.values))
        return ordered[rank], ordered[-1 - rank]

    def _parts(self, number: int) -> list[Series]:
        """Cut the values, in their order, into parts of about one length; none is empty."""
        return [Series(tuple(part.tolist())) for part in np.array_split(self.values, number) if len(part)]


def _rank(count: int) -> int:
    """Return the index of the sorted value that begins the interval of the median, by a normal tail of the binomial.

    The interval from that value to its mirror image misses the median when no more values than the index lie below the
    median, or above it, whatever the distribution.
    """
    return max(0, math.floor((count - NORMAL_QUANTILE * math.sqrt(count) - 1) / 2))


def warm_up(
    call: Callable[[], object], device: torch.device, times: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Make a call some times and return the seconds of the fastest one."""
    return min(timed_call(call, device, clock) for _ in range(times))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int | Mapping[str, int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Series]:
    """Time calls in turn, A B C A B C, so that whatever else the machine does falls on all of them alike.

    Args:
        calls: What to time, warm.
        device: Where they run.
        repeats: Rounds, one for all or for each; one with fewer leaves the last rounds to the others.
        clock: Gives seconds.

    Returns:
        The seconds of each, in the order of the rounds.
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
    """Return the seconds of one call, from an idle device to an idle device."""
    synchronise(device)
    began = clock()
    call()
    synchronise(device)
    return clock() - began


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread_cell(found: Mapping[str, Any]) -> str:
    """Return the spread of a ``Series.as_json`` for a table, marked where it is not to be trusted."""
    mark = {True: "", False: " unstable", None: " few"}[found["stable"]]
    return f"± {found['spread']:.1%}{mark}"


def ratio_cell(found: Mapping[str, Any]) -> str:
    """Return the median of a ``Series.as_json`` for a table, with its interval where it is of more than one value."""
    interval = f" ({found['low']:.2f} to {found['high']:.2f})" if found["count"] > 1 else ""
    return f"{found['median']:.2f}{interval}"

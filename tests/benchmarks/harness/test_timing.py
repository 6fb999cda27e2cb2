from __future__ import annotations

from collections.abc import Callable
from math import comb

import numpy as np
import pytest
import torch

from benchmarks.agreement import overlap
from benchmarks.harness.timing import Series, _rank, interleaved, ratio_cell, spread_cell, warm_up

CPU = torch.device("cpu")
SEEDS = range(40)


class Machine:
    """A clock, and calls that take a given time on it with some noise, while the speed of the machine changes."""

    def __init__(self, seed: int, slowness: Callable[[float], float] = lambda now: 1.0) -> None:
        self._random = np.random.default_rng(seed)
        self._slowness = slowness
        self._now = 0.0

    def clock(self) -> float:
        return self._now

    def call(self, seconds: float, noise: float = 0.05) -> Callable[[], None]:
        def run() -> None:
            self._now += seconds * self._slowness(self._now) * (1 + noise * self._random.standard_normal())

        return run


def measured(machine: Machine, rounds: int = 100, **seconds: float) -> dict[str, Series]:
    calls = {name: machine.call(value) for name, value in seconds.items()}
    return interleaved(calls, CPU, rounds, machine.clock)


def waves(now: float) -> float:
    return 1 + 0.1 * np.sin(now / 5)


def differ(one: Series, other: Series) -> bool:
    return not overlap(one.as_json(), other.as_json())


def share(events: list[bool]) -> float:
    return sum(events) / len(events)


@pytest.mark.parametrize("slowness", [lambda now: 1.0, waves])
@pytest.mark.parametrize("rounds", [10, 100])
def test_two_runs_in_a_row_agree_within_their_stated_spread(slowness, rounds) -> None:
    disagree = []
    for seed in SEEDS:
        machine = Machine(seed, slowness)
        first, second = (measured(machine, rounds, only=1.0)["only"] for _ in ("first", "second"))
        disagree.append(differ(first, second))
    assert share(disagree) <= 0.05


@pytest.mark.parametrize("slowness", [lambda now: 1.0, waves, lambda now: 1 + now / 500])
def test_a_variant_slowed_by_a_tenth_is_told_apart_and_an_equal_one_is_not(slowness) -> None:
    slower, equal = [], []
    for seed in SEEDS:
        found = measured(Machine(seed, slowness), plain=1.0, same=1.0, slowed=1.1)
        slower.append(found["slowed"].over(found["plain"]).interval[0] > 1)
        low, high = found["same"].over(found["plain"]).interval
        equal.append(low <= 1 <= high)
    assert all(slower)
    assert share(equal) >= 0.9


def test_a_machine_that_slows_down_is_marked_unstable_and_a_steady_one_is_not() -> None:
    drifting = [measured(Machine(seed, lambda now: 1 + now / 500), only=1.0)["only"] for seed in SEEDS]
    steady = [measured(Machine(seed), only=1.0)["only"] for seed in SEEDS]
    assert not any(series.stable for series in drifting)
    assert share([bool(series.stable) for series in steady]) >= 0.95
    assert spread_cell(drifting[0].as_json()).endswith("unstable")


def test_drift_widens_the_stated_spread_to_the_medians_of_all_quarters() -> None:
    assert Series((2.0,) * 60 + (1.0,) * 20).interval == (1.0, 2.0)
    assert Series((1.0,) * 10 + (2.0,) * 10).stable is False


def runs_of(processes: int, seed: int, slowed: float = 1.0) -> Series:
    """Measure one call in fresh processes of which each is faster or slower than the others by some 5 %."""
    luck = 1 + 0.05 * np.random.default_rng([seed, int(1000 * slowed)]).standard_normal(processes)
    machines = [Machine(1000 * seed + turn, lambda now, factor=factor: factor) for turn, factor in enumerate(luck)]
    return Series.joined([measured(machine, 50, only=slowed)["only"] for machine in machines])


def test_two_runs_of_processes_that_differ_agree_as_those_of_one_process_do_not() -> None:
    def disagreements(processes: int) -> float:
        runs = [runs_of(processes, seed) for seed in range(2 * len(SEEDS))]
        return share([differ(one, other) for one, other in zip(runs[::2], runs[1::2], strict=True)])

    assert disagreements(4) <= 0.05
    assert disagreements(1) > 0.3
    assert share([differ(runs_of(4, seed, 1.3), runs_of(4, seed)) for seed in SEEDS]) >= 0.9


def test_the_interval_of_several_processes_holds_the_median_of_each() -> None:
    joined = Series.joined([Series((2.0,) * 60), Series((1.0,) * 3), Series((4.0,) * 30)])
    assert (joined.median, joined.interval) == (2.0, (1.0, 4.0))
    assert joined.stable is True, "in two processes the halves agree, the third is too short to tell"
    assert Series.joined([Series((1.0,) * 10 + (2.0,) * 10)] * 3).stable is False
    assert Series.joined([Series((1.0,))] * 9).stable is None
    assert Series.joined([Series(()), Series((1.0, 3.0))]).interval == (1.0, 3.0)
    assert np.isnan(Series.joined([Series(())]).percentile(50))


def test_a_summary_by_hand() -> None:
    found = Series((3.0, 1.0, 2.0, 5.0, 4.0)).as_json()
    assert (found["count"], found["median"], found["q1"], found["q3"]) == (5, 3.0, 2.0, 4.0)
    assert (found["low"], found["high"], found["spread"]) == (1.0, 5.0, pytest.approx(2 / 3))
    assert found["stable"] is None
    assert spread_cell(found) == "± 66.7% few"
    assert Series((7.0,)).interval == (7.0, 7.0)


def test_a_ratio_is_that_of_the_rounds_that_both_have() -> None:
    ratio = Series((2.0, 4.0, 8.0, 100.0)).over(Series((1.0, 2.0, 2.0)))
    assert ratio.values == (2.0, 2.0, 4.0)
    assert ratio_cell(ratio.as_json()) == "2.00 (2.00 to 4.00)"
    twice = Series.joined([Series((2.0, 4.0)), Series((9.0,))])
    assert twice.over(Series((1.0, 1.0, 3.0), (2, 1))) == Series((2.0, 4.0, 3.0), (2, 1))
    assert ratio_cell(Series((3.0,)).as_json()) == "3.00"


def test_the_interval_misses_the_median_at_most_one_time_in_twenty() -> None:
    assert _rank(100) + 1 == 40, "as tables of order statistics have it"
    for count in range(6, 400):
        assert 2 * sum(comb(count, k) for k in range(_rank(count) + 1)) / 2**count <= 0.05


def test_calls_take_turns_and_one_with_fewer_rounds_leaves_the_last_ones_to_the_others() -> None:
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    found = interleaved(calls, CPU, {"a": 3, "b": 1, "c": 2})
    assert "".join(seen) == "abcaca"
    assert [len(series.values) for series in found.values()] == [3, 1, 2]


def test_warming_up_returns_the_seconds_of_the_fastest_call() -> None:
    now = [0.0]
    steps = iter([5.0, 0.5, 1.0])

    def call() -> None:
        now[0] += next(steps)

    assert warm_up(call, CPU, 3, lambda: now[0]) == 0.5

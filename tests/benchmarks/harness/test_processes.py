from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.harness.processes import in_processes, merged
from benchmarks.harness.timing import Series
from toco_core.errors import ConfigError, TocoError


def counting(numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Find one number after the other."""
    for index in range(len(numbers)):
        yield {"process": [os.getpid()], "numbers": Series(tuple(map(float, numbers[: index + 1])))}


def refusing() -> Iterator[dict[str, Any]]:
    yield {}
    raise ConfigError("give another number")


def killed() -> Iterator[dict[str, Any]]:
    yield {}
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_each_process_finds_is_joined_as_it_comes() -> None:
    found = list(in_processes(2, counting, [3, 4]))
    assert [one["numbers"].values for one in found] == [(3,), (3, 4), (3, 4, 3), (3, 4, 3, 4)]
    assert found[-1]["numbers"].turns == (2, 2)
    processes = found[-1]["process"]
    assert len(set(processes)) == 2
    assert os.getpid() not in processes


def test_a_single_process_is_this_one() -> None:
    (found,) = in_processes(1, counting, [3])
    assert found["process"] == [os.getpid()]


def test_an_error_in_a_process_is_raised_here() -> None:
    with pytest.raises(ConfigError, match="give another number"):
        list(in_processes(2, refusing))


def test_a_process_that_is_killed_is_reported() -> None:
    with pytest.raises(TocoError, match=r"ended with status -9 \(-9: often too little memory\); measure less"):
        list(in_processes(2, killed))


def test_what_only_some_processes_found_is_kept() -> None:
    one, other = {"a": Series((1.0,)), "why": "first"}, {"b": [2], "a": Series((3.0,)), "why": "second"}
    assert merged([one, other]) == {"a": Series((1.0, 3.0), (1, 1)), "why": "first", "b": [2]}

"""Load on a server: closed loop (each client waits for its answer) and open loop (arrivals wait for nobody)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from toco_core.errors import TocoError

MAX_OPEN_REQUESTS = 256


@dataclass(frozen=True)
class Load:
    """What came of some load.

    Attributes:
        latencies_s: Seconds that each answered request took, in the order of the answers.
        failures: Requests that got an error.
        seconds: How long it lasted, up to the last answer.
    """

    latencies_s: tuple[float, ...]
    failures: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds


def closed_loop(calls: Sequence[Callable[[], object]], seconds: float) -> Load:
    """Let each call be made again and again by a client of its own.

    Args:
        calls: What each client does; raises a ``TocoError`` where it fails.
        seconds: How long clients begin new requests.
    """
    latencies: list[float] = []
    failures: list[float] = []
    start = threading.Barrier(len(calls) + 1)

    def client(call: Callable[[], object]) -> None:
        start.wait()
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            _timed(call, began, latencies, failures)

    threads = [threading.Thread(target=client, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return Load(tuple(latencies), len(failures), time.perf_counter() - began)


def open_loop(call: Callable[[], object], rate: float, seconds: float, seed: int = 0) -> Load:
    """Make calls at random moments, whether earlier ones are answered or not (a Poisson process).

    A request's time begins when it was due, not when a thread was free for it: waiting counts.

    Args:
        call: What each request does; raises a ``TocoError`` where it fails.
        rate: Requests a second.
        seconds: How long requests arrive.
        seed: Of the moments.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(1, round(rate * seconds)))
    latencies: list[float] = []
    failures: list[float] = []
    began = time.perf_counter()
    with ThreadPoolExecutor(MAX_OPEN_REQUESTS) as pool:
        for due in began + np.cumsum(gaps):
            time.sleep(max(0.0, due - time.perf_counter()))
            pool.submit(_timed, call, float(due), latencies, failures)
    return Load(tuple(latencies), len(failures), time.perf_counter() - began)


def _timed(call: Callable[[], object], began: float, latencies: list[float], failures: list[float]) -> None:
    try:
        call()
    except TocoError:
        failures.append(time.perf_counter() - began)
    else:
        latencies.append(time.perf_counter() - began)

"""Load on a server: closed loop (each client waits for its answer) and open loop (arrivals do not wait)."""

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
    """The result of a load.

    Attributes:
        latencies_s: Latency of each answered request in seconds, in the order of the answers.
        failures: Number of requests that failed.
        seconds: Duration up to the last answer.
    """

    latencies_s: tuple[float, ...]
    failures: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds


def closed_loop(calls: Sequence[Callable[[], object]], seconds: float) -> Load:
    """Repeat each call in a client thread of its own.

    Args:
        calls: The request of each client; raises a ``TocoError`` if it fails.
        seconds: How long clients send new requests.
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
    """Make calls at random times (a Poisson process), whether earlier ones are answered or not.

    The latency of a request is counted from its arrival time, so waiting for a free thread is included.

    Args:
        call: The request; raises a ``TocoError`` if it fails.
        rate: Requests per second.
        seconds: How long requests arrive.
        seed: Seed of the arrival times.
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

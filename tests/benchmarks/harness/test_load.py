from __future__ import annotations

import threading
import time

import numpy as np

from benchmarks.harness.load import Load, closed_loop, open_loop
from toco_core.errors import ServeError


def test_throughput_counts_answers_alone():
    assert Load((0.1, 0.2, 0.3), failures=5, seconds=2.0).throughput == 1.5


def test_in_a_closed_loop_a_client_never_has_two_requests_at_once():
    most, now, lock = [0, 0], [0, 0], threading.Lock()

    def client(index: int) -> object:
        def call() -> None:
            with lock:
                now[index] += 1
                most[index] = max(most[index], now[index])
            time.sleep(0.01)
            with lock:
                now[index] -= 1

        return call

    load = closed_loop([client(0), client(1)], 0.2)
    assert most == [1, 1]
    assert 4 <= len(load.latencies_s) <= 42
    assert min(load.latencies_s) >= 0.01
    assert load.failures == 0


def test_in_an_open_loop_waiting_for_a_busy_server_counts():
    server = threading.Lock()

    def call() -> None:
        with server:
            time.sleep(0.01)

    load = open_loop(call, rate=400, seconds=0.2)
    assert len(load.latencies_s) == 80
    assert np.percentile(load.latencies_s, 95) > 5 * 0.01, "arrivals at four times what the server can do pile up"
    assert load.seconds >= 80 * 0.01


def test_arrivals_are_random_at_the_rate_that_was_asked_for():
    moments: list[float] = []
    open_loop(lambda: moments.append(time.perf_counter()), rate=300, seconds=1.0, seed=1)
    gaps = np.random.default_rng(1).exponential(1 / 300, size=300)
    assert len(moments) == 300
    assert moments[-1] - moments[0] >= gaps[1:].sum() - 0.05


def test_failures_are_counted_and_have_no_latency():
    def call() -> None:
        raise ServeError("busy")

    load = open_loop(call, rate=100, seconds=0.1)
    assert (load.latencies_s, load.failures) == ((), 10)
    assert closed_loop([call], 0.02).failures > 0

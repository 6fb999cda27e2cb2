from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.harness import perf_analyzer
from benchmarks.harness.perf_analyzer import second_opinion

TABLE = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
1,55.5,10,900,50,20,16000,10,5,17100,18200,19000,21500
"""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run, by a perf_analyzer that writes a table."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        seen.append(command)
        Path(command[command.index("-f") + 1]).write_text(TABLE)

    monkeypatch.setattr(perf_analyzer.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(perf_analyzer.subprocess, "run", run)
    return seen


def test_its_latencies_are_microseconds_and_each_number_of_clients_is_a_run_of_its_own(commands: list[list[str]]):
    found = second_opinion("127.0.0.1:8001", 96, (1, 64), 2.0)
    figures = {"images_per_second": 55.5, "p50_ms": 17.1, "p90_ms": 18.2, "p99_ms": 21.5}
    assert found == {"clients": {"1": figures, "64": figures}}
    assert [command[command.index("--concurrency-range") + 1] for command in commands] == ["1", "64"]
    assert "image:96,96,3" in commands[0]
    assert commands[0][commands[0].index("--measurement-interval") + 1] == "2000"


@pytest.mark.usefixtures("commands")
def test_where_it_is_not_installed_or_fails_there_is_a_reason(monkeypatch: pytest.MonkeyPatch):
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(99, command, output="", stderr="no\nsuch model")

    monkeypatch.setattr(perf_analyzer.subprocess, "run", fail)
    assert second_opinion("x", 96, (1,), 2.0) == {"reason": "perf_analyzer failed: no such model"}
    monkeypatch.setattr(perf_analyzer.shutil, "which", lambda name: None)
    assert second_opinion("x", 96, (1,), 2.0) == {"reason": "perf_analyzer is not installed"}

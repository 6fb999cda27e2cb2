"""The benchmark of start-up times: it measures CPU time of processes, and shows each command with its limit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import startup

WORK = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]


def test_cpu_time_of_a_process_counts_and_its_sleep_does_not() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(1.5)"]
    found = startup.measure({"work": WORK, "sleep": sleep}, repeats=1)
    assert found["work"]["median"] >= 0.3
    assert found["sleep"]["median"] < 1.5


def test_every_command_and_the_client_have_a_row_and_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = dict.fromkeys(startup.commands(), WORK)
    assert {"toco-train --help", "toco-serve --help", "from toco_serve import Client", "python"} < lines.keys()
    assert len(lines) == 2 + 11
    some = ("python", "from toco_serve import Client", "toco-train --help")
    monkeypatch.setattr(startup, "commands", lambda: dict.fromkeys(some, WORK))
    assert startup.main(["--repeats", "1", "--report", str(tmp_path / "report")]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [(row[0], row[-1]) for row in rows] == [
        ("| `python`", " |"), ("| `from toco_serve import Client`", "0.3 s |"), ("| `toco-train --help`", "0.7 s |")
    ]  # fmt: skip
    assert json.loads((tmp_path / "report.json").read_text())["cpu_seconds"]["python"]["median"] >= 0.3

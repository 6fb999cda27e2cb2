"""benchmarks/gpu.sh leaves one report, whatever its parts come to, and asks the benchmarks for what they know."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
RECORDER = """#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
with open({record!r}, "a") as record:
    record.write(json.dumps(arguments) + "\\n")
if "--report" in arguments:
    report = pathlib.Path(arguments[arguments.index("--report") + 1])
    report.with_name(report.name + ".md").write_text("# Figures of " + arguments[1] + "\\n\\n## Details\\n")
if "pytest" in arguments:
    sys.exit("two of the tests failed")
"""


class _ParsedError(Exception):
    """The arguments were understood."""


@pytest.fixture
def calls(tmp_path: Path) -> list[list[str]]:
    """What the script calls when it is run with a Python that only writes that down."""
    recorder, record = tmp_path / "python", tmp_path / "calls.jsonl"
    recorder.write_text(RECORDER.format(python=sys.executable, record=str(record)))
    recorder.chmod(0o755)
    finished = subprocess.run(
        [str(SCRIPT), str(tmp_path / "results")], env=os.environ | {"PYTHON": str(recorder)}, check=False, timeout=60
    )
    assert finished.returncode == 1, "a part failed"
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_one_report_holds_every_part(calls: list[list[str]], tmp_path: Path) -> None:
    (report,) = (tmp_path / "results").glob("*.md")
    text = report.read_text()
    parts = [call for call in calls if call[0] == "-m"]
    assert len(parts) == 6
    assert text.count("\n## ") == len(parts)
    assert [text.count(f"## Figures of benchmarks.{name}\n\n### Details\n") for name in
            ("training_step", "inference", "convergence", "serving")] == [2, 1, 1, 1]  # fmt: skip
    statuses = re.findall(r"^\| ([\w-]+) \| (\d+) \|", text, re.MULTILINE)
    assert [name for name, status in statuses if status == "1"] == ["tests"]
    assert [status for _, status in statuses].count("0") == len(parts) - 1
    assert "two of the tests failed" in text


def test_the_benchmarks_know_every_argument(calls: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_alone(parser: argparse.ArgumentParser, *arguments: Any) -> None:
        parse(parser, *arguments)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    for _, module, *arguments in (call for call in calls if "--report" in call):
        assert "--processes 1" in " ".join(arguments) or "convergence" in module, "the limits are for one"
        with pytest.raises(_ParsedError):
            importlib.import_module(module).main(arguments)

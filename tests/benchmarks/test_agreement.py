from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.agreement import main
from benchmarks.harness.timing import Series
from toco_core.errors import ConfigError


def report(path: Path, slow: float) -> str:
    """Write what a run leaves; in its second cell all calls take ``slow`` times as long."""

    def cell(batch: int, factor: float) -> dict[str, Any]:
        times = Series(tuple(factor * (1 + 0.01 * (call % 5)) for call in range(40)))
        return {"backend": "ort", "size": 96, "batch": batch, "time_s": times.as_json(), "flops": 7}

    path.write_text(json.dumps({"cells": [cell(1, 1.0), cell(4, slow)], "setting": {"seconds": 3}}))
    return str(path)


def test_equal_runs_agree_and_a_slowed_figure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report(tmp_path / "first.json", 1.0)
    assert main([first, report(tmp_path / "same.json", 1.0)]) == 0
    assert capsys.readouterr().out == "2 of 2 figures agree within their stated spread.\n"
    assert main([first, report(tmp_path / "slow.json", 1.2)]) == 1
    table = capsys.readouterr().out
    assert "| cells/ort 96 4/time_s | 1.02 (1.01 to 1.03) | 1.224 (1.212 to 1.236) | 1.20 |" in table
    assert table.endswith("1 of 2 figures agree within their stated spread.\n")


def test_what_is_no_report_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="the reports share no figure with a spread; give those of two runs"):
        main([str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    with pytest.raises(ConfigError, match=r"b\.json is no report of a benchmark .*; give its \.json"):
        main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])

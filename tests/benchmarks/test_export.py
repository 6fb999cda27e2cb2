"""What an export costs is read off the command itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import export
from toco_core.errors import ExportError

STAGES = ["load", "observe", "trace", "simplify", "convert", "build", "verify", "place"]


def test_the_report_holds_every_stage_and_they_add_up_to_the_whole_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main(["--exports", "1", "--report", str(tmp_path / "report")]) == 0
    result = json.loads((tmp_path / "report.json").read_text())
    assert list(result["stage_seconds"]) == [*STAGES, export.REST]
    assert sum(result["stage_seconds"].values()) == pytest.approx(result["seconds"]["median"])
    assert result["stage_seconds"]["verify"] > 0
    assert 300e6 < result["peak_bytes"]["median"] < 20e9, "PyTorch alone takes the first"
    text = (tmp_path / "report.md").read_text()
    assert text in capsys.readouterr().out + "\n"
    assert all(f"| {stage} |" in text for stage in STAGES)


def test_an_export_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = subprocess.Popen

    def start_another(command: list[str], **options: Any) -> subprocess.Popen[str]:
        return start([command[0], str(tmp_path / "missing")], **options)

    monkeypatch.setattr(subprocess, "Popen", start_another)
    with pytest.raises(ExportError, match="toco-export ended with status 2"):
        export.export_often(tmp_path, 1)

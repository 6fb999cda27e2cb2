"""The convergence benchmark: the command it gives is one that toco-train takes, and its report says what came of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from benchmarks import convergence
from toco_core.errors import TocoError
from toco_train.commands.train import _parse


def _line(step: int, cam: float, seg: float) -> dict[str, Any]:
    scores = {"cam": {"mean_iou": cam}, "aux_cam": {"mean_iou": cam / 2}, "seg": {"mean_iou": seg}}
    return {"step": step, "evaluation_s": 1.0, "evaluation": {**scores, "num_images": 2}}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Training that takes no time: the run folder is written, and the command kept."""
    found: list[list[str]] = []

    def trained(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        found.append(command)
        config, arguments = _parse(command[3:])
        samples = arguments.out / "samples"
        samples.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(samples / "step_000600.png")
        (arguments.out / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        step = {"step": 600, "lr": 0.0, "seconds": 61.4, "losses": {"total": 1.0}}
        lines = [_line(300, 0.5, 0.1), step, _line(600, 0.75, 0.625)]
        (arguments.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(convergence.subprocess, "run", trained)
    return found


def test_the_report_holds_the_scores_over_the_steps(calls: list[list[str]], tmp_path: Path) -> None:
    report = tmp_path / "report"
    argv = ["--out", str(tmp_path / "out"), "--images", "10", "--report", str(report)]
    assert convergence.main([*argv, "--train-flags", "--batch_size 8"]) == 0
    config, _ = _parse(calls[0][3:])
    assert (config.steps, config.batch_size, config.model.backbone) == (600, 8, "vit_base_patch16_224")
    assert [phase.from_step for phase in config.phases] == [0, 75, 210]
    assert len(list(Path(config.data.path, "JPEGImages").iterdir())) == 10
    text = report.with_suffix(".md").read_text()
    assert "600 steps of 8 images at 192 px took 61 s" in text
    assert "| 300 | 2 | 50.0 | 25.0 | 10.0 |\n| 600 | 2 | 75.0 | 37.5 | 62.5 |" in text
    assert {path.name for path in tmp_path.glob("report*")} == {
        "report.md", "report.json", "report.png", "report.svg", "report-masks.png"
    }  # fmt: skip


def test_training_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "make_dataset", lambda *_: None)
    monkeypatch.setattr(convergence.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    with pytest.raises(TocoError, match=r"toco_train.* ended with 2"):
        convergence.main(["--out", str(tmp_path)])

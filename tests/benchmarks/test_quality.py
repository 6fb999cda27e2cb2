"""The quality benchmark on networks that train in seconds: what it runs, what it reuses, and its table by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import LADDER, ROWS, Outcome, main, outcome, report
from tests.train.small_runs import SETTINGS, small_shapes
from toco_core.errors import TocoError
from toco_train.analysis.token_similarity import BlockSimilarity

ORIGIN = {"device": "d", "host": "h", "load_average": None, "versions": {}, "date": "today", "command": "c"}
SMALL = " ".join(f"--{name} '{value}'" for name, value in SETTINGS.items() if name != "evaluation.every")


def _outcome(cam: float, similarity: float) -> Outcome:
    scores = {kind: {"mean_iou": cam} for kind in ("cam", "aux_cam", "seg")}
    evaluation: dict[str, Any] = {**scores, "token_similarity": similarity, "num_images": 7}
    return Outcome(evaluation, BlockSimilarity("x", np.array([[0.5, similarity]])))


def test_each_row_of_the_ladder_adds_to_the_one_above() -> None:
    off = [set(ROWS[name].off) for name in LADDER]
    assert off == [{"ptc", "ctc", "seg", "reg"}, {"ctc", "seg", "reg"}, {"seg", "reg"}, {"reg"}, set()]


def test_the_table_holds_mean_and_spread_and_no_score_of_a_decoder_that_nothing_trains() -> None:
    outcomes = {"plain": [_outcome(0.4, 0.5), _outcome(0.6, 0.7)], "full": [_outcome(0.7, 0.25), _outcome(0.7, 0.25)]}
    text = report(outcomes, ORIGIN, "x.png")
    assert "scored on 7 validation images" in text
    assert "| plain CAM | cls, aux_cls | 50.0 ± 14.1 | 50.0 ± 14.1 | - | 0.600 ± 0.141 |" in text
    assert ("| full (+ dense energy) | cls, aux_cls, ptc, ctc, seg, reg | 70.0 ± 0.0 | 70.0 ± 0.0 | 70.0 ± 0.0 "
            "| 0.250 ± 0.000 |") in text  # fmt: skip
    assert "| plain CAM | 1 | 60.0 | 60.0 | - | 0.700 |" in text
    assert "(x.png)" in text


@pytest.mark.parametrize("metrics", ["", '{"step": 10, "losses": {}}\n'])
def test_a_run_that_was_stopped_is_not_taken_for_finished(tmp_path: Path, metrics: str) -> None:
    (tmp_path / "config.yaml").write_text("steps: 20\n")
    (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(TocoError, match="was stopped before its end: run the same command again to go on"):
        outcome(tmp_path, "x")


@pytest.mark.slow
def test_runs_are_trained_once_and_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    data = small_shapes(tmp_path / "shapes")
    argv = ["--data", str(data), "--out", str(tmp_path / "runs"), "--seeds", "1", "--rows", "plain", "full",
            "--report", str(tmp_path / "report")]  # fmt: skip
    assert main([*argv, "--train-flags", SMALL]) == 0
    weights = {run.name: (run / "model.safetensors").stat().st_mtime_ns for run in (tmp_path / "runs").iterdir()}
    assert set(weights) == {"plain-seed0", "full-seed0"}
    result = json.loads((tmp_path / "report.json").read_text())
    assert result["config"]["steps"] == 6
    for name, run in (("plain", "plain-seed0"), ("full", "full-seed0")):
        lines = [json.loads(line) for line in (tmp_path / "runs" / run / "metrics.jsonl").read_text().splitlines()]
        (seed,) = result["rows"][name]["seeds"]
        assert seed["evaluation"] == lines[-1]["evaluation"]
        assert len(seed["similarity_by_block"]) == 3 + 1
        assert seed["similarity_by_block"][-1] == pytest.approx(seed["evaluation"]["token_similarity"], rel=1e-4)
        on = set(lines[0]["losses"]) - {"total"}
        assert on == ({"cls", "aux_cls"} if name == "plain" else {"cls", "aux_cls", "ptc", "ctc", "seg", "reg"})
    first = (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").stat().st_size > 10_000
    assert main([*argv, "--train-flags", SMALL]) == 0
    again = {run.name: (run / "model.safetensors").stat().st_mtime_ns for run in (tmp_path / "runs").iterdir()}
    assert again == weights, "nothing is trained again"
    tables = [re.sub(r"^.*load average.*$", "", text, flags=re.MULTILINE)
              for text in (first, (tmp_path / "report.md").read_text())]  # fmt: skip
    assert tables[0] == tables[1]
    with pytest.raises(TocoError, match="a run is resumed with the settings that it began with"):
        main([*argv, "--train-flags", SMALL.replace("--batch_size '4'", "--batch_size '2'")])

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from benchmarks.serving import main


def test_the_report_holds_single_calls_loads_and_a_image(tmp_path: Path):
    arguments = [
        "--repeats",
        "3",
        "--clients",
        "1",
        "2",
        "--seconds",
        "0.5",
        "--processes",
        "2",
        "--report",
        str(tmp_path / "report"),
    ]
    assert main(arguments) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    alone = found["one_at_a_time"]
    assert {name: len(call["seconds"]) for name, call in alone["calls"].items()} == {
        "in process": 6,
        "toco": 6,
        "decode": 6,
        "toco_image": 6,
    }
    assert min(alone["calls"]["toco_image"]["seconds"]) > min(alone["calls"]["decode"]["seconds"])
    assert alone["ratios"]["toco"]["count"] == 6
    assert found["ready_s"]["count"] == found["share_of_batched"]["count"] == 2, "one of each server"
    assert list(found["closed_loop"]) == ["1", "2"]
    assert list(found["open_loop"]) == ["50%", "80%", "95%"]
    for load in (*found["closed_loop"].values(), *found["open_loop"].values()):
        assert load["failures"] == 0
        assert load["images_per_second"]["count"] == 2
        assert load["images_per_second"]["low"] > 0
        assert load["answers"] > 0
        assert 0 < load["p50_ms"] <= load["p90_ms"] <= load["p99_ms"]
    assert "## Closed loop, tensors by gRPC" in (tmp_path / "report.md").read_text()
    with Image.open(tmp_path / "report.png") as image:
        assert image.width > 1000

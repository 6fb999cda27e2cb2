from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import inference
from benchmarks.cases import backends
from benchmarks.cases.backends import Bench, noise
from benchmarks.harness.peaks import Roofline
from benchmarks.harness.timing import Series
from benchmarks.inference import Grid, as_json, main, profile_of, summary
from benchmarks.reports.inference_tables import as_markdown
from toco_export.graph import OUTPUT_NAMES

CPU = torch.device("cpu")
ORIGIN = {"device": "d", "host": "h", "load_average": None, "versions": {}, "date": "today", "command": "c"}


def test_a_summary_holds_rates_and_how_near_the_roof_they_come():
    found = summary(Series((1.0, 2.0, 3.0, 4.0, 5.0)), 6, 12, 4, Roofline(8.0, 2.0))
    assert (found["time_s"]["median"], found["images_per_second"], found["p99_s"]) == (3.0, 2.0, None)
    assert (found["intensity"], found["bound_flops_per_second"], found["bound_by"]) == (3.0, 6.0, "memory")
    assert (found["flops_per_second"], found["efficiency"]) == (4.0, pytest.approx(2 / 3))
    assert summary(Series((1.0,)), 1, 12, 1, Roofline(8.0, 2.0))["bound_by"] == "products"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("demo", CPU, profile_of([(64, 1)]), tmp_path)


def test_the_least_bytes_are_weights_images_and_answers(bench: Bench):
    images = torch.from_numpy(noise(2, 64))
    weights = sum(4 * w.numel() for part in (bench.model.backbone, bench.model.decoder) for w in part.parameters())
    assert bench.least_bytes(images, "fp32") == weights + 2 * 64 * 64 * (3 + len(OUTPUT_NAMES))
    sizes = bench.weight_bytes
    assert weights / 4 < sizes["int8"] < sizes["fp16"] < 0.55 * sizes["fp32"]


def test_what_takes_too_long_is_predicted_from_smaller_work_and_left_out_with_its_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    tried: list[tuple[int, ...]] = []

    def sleeper(bench: Bench, images: torch.Tensor) -> backends.Prepared:
        tried.append(tuple(images.shape[:2]))
        return backends.Prepared(lambda: time.sleep(0.01 * len(images)), "fp32", CPU, "fp32")

    monkeypatch.setitem(backends.BACKENDS, "eager-fp32", sleeper)
    setting = {"processes": 1, "seconds": 0.1, "call_limit": 0.035}
    grid = Grid(bench, ["eager-fp32"], [64], setting)
    for batch in (1, 2, 5, 8):
        grid.measure(64, batch)
    assert tried == [(1, 64), (2, 64)]
    result = as_json(grid.found, setting)
    assert [cell["batch"] for cell in result["cells"]] == [1, 2]
    assert [cell["reason"] for cell in result["skipped"]] == ["about 0.1 s a call"] * 2
    text = as_markdown({"backbone": "demo", "provenance": ORIGIN, **result})
    assert "Not timed: eager-fp32: 64 px, batch 5 on (about 0.1 s a call)." in text


def test_what_may_not_fit_the_memory_is_left_out_with_its_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "available_memory", lambda: 2**30)
    grid = Grid(bench, ["eager-fp32"], [256], {"seconds": 0.1, "call_limit": 60})
    grid.measure(256, 64)
    (skipped,) = grid.found["skipped"].values()
    tokens, classes = 32**2 + 1, bench.model.num_classes + 1
    needed = 64 * 4 * 2 * (4 * tokens**2 + classes * 256**2) / 2**30
    assert skipped["reason"] == f"up to {needed:.1f} GiB of activations, 1.0 are free"
    assert grid.found["cells"] == {}


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a run over one small cell leaves; one of its backends is our ONNX file slowed down."""
    plain = backends.BACKENDS["ort-fp32"]

    def slowed(bench: Bench, images: torch.Tensor) -> backends.Prepared:
        call = plain(bench, images)

        def run() -> None:
            call()
            time.sleep(0.05)

        return backends.Prepared(run, "fp32", CPU, "fp32")

    monkeypatch.setitem(backends.BACKENDS, "ort-fp16", slowed)
    names = ["eager-fp32", "ort-fp32", "ort-int8", "ort-plain-fp32", "ort-fp16", "tensorrt-rtx-fp16"]
    arguments = [
        "--device",
        "cpu",
        "--sizes",
        "64",
        "--batches",
        "2",
        "--seconds",
        "0.3",
        "--call-limit",
        "60",
        "--processes",
        "1",
    ]  # fmt: skip  (another process would know nothing of the slowed one)
    assert main([*arguments, "--backends", *names, "--report", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Inference: demo\n")
    assert "![report-roofline](report-roofline.png)" in text
    with Image.open(tmp_path / "report-roofline.png") as image:
        assert image.width > 600
    assert not (tmp_path / "report.png").exists(), "one size and batch are no grid"
    return json.loads((tmp_path / "report.json").read_text())


def test_several_processes_measure_the_same_and_their_calls_are_joined(tmp_path: Path):
    flags = ["--device", "cpu", "--sizes", "32", "--batches", "1", "--seconds", "0.01", "--call-limit", "60"]
    report = tmp_path / "report"
    assert main([*flags, "--backends", "ort-fp32", "--processes", "2", "--report", str(report)]) == 0
    found = json.loads(report.with_name("report.json").read_text())
    (cell,) = found["cells"]
    assert cell["time_s"]["count"] == cell["speed"]["count"] >= 2 * inference.MIN_CALLS
    assert len(found["memory_bytes_per_second"]["cpu"]) == 2
    assert "in 2 fresh processes, one after the other" in " ".join(report.with_name("report.md").read_text().split())


def test_every_backend_that_runs_here_is_timed_and_one_that_was_slowed_is_slower(report: dict):
    cells = {cell["backend"]: cell for cell in report["cells"]}
    assert list(cells) == ["eager-fp32", "ort-fp32", "ort-int8", "ort-plain-fp32", "ort-fp16"]
    assert report["left_out"] == {"tensorrt-rtx-fp16": "TocoError: an engine runs on a GPU; give --device cuda"}
    assert cells["ort-fp16"]["time_s"]["median"] > cells["ort-fp32"]["time_s"]["median"] + 0.03
    assert cells["ort-fp16"]["speed"]["high"] < 1
    assert cells["ort-fp32"]["speed"]["median"] == 1.0
    assert cells["ort-int8"]["least_bytes"] < cells["ort-fp32"]["least_bytes"]
    for cell in cells.values():
        assert cell["efficiency"] == pytest.approx(cell["flops_per_second"] / cell["bound_flops_per_second"])
    assert list(report["gemm_flops_per_second"]) == ["fp32 on cpu"]
    assert min(report["memory_bytes_per_second"]["cpu"]) > 0

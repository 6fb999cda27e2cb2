from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import backends
from benchmarks.inference import as_markdown, main, summary
from benchmarks.measuring import interleaved

CPU = torch.device("cpu")


class Machine:
    """A clock, and calls that take a given time on it, give or take some noise, while the whole machine drifts."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._now = 0.0

    def clock(self) -> float:
        return self._now

    def call(self, seconds: float, noise: float = 0.05):
        def run() -> None:
            drift = 1 + 0.2 * np.sin(self._now / 50)
            self._now += seconds * drift * (1 + noise * self._random.standard_normal())

        return run


def medians(seed: int, **seconds: float) -> dict[str, dict[str, float]]:
    machine = Machine(seed)
    calls = {name: machine.call(value) for name, value in seconds.items()}
    times = interleaved(calls, CPU, 100, machine.clock)
    return {name: summary(found, batch=1, flops=1, peak=1.0) for name, found in times.items()}


def differ(one: dict[str, float], other: dict[str, float]) -> bool:
    """Tell whether two medians lie further apart than their spreads."""
    return abs(one["median_s"] - other["median_s"]) > sum(found["median_s"] * found["spread"] for found in (one, other))


def test_two_runs_agree_within_their_spread_and_a_variant_that_is_slower_is_told_apart():
    first, second = (medians(seed, fast=1.0, same=1.0, slow=1.5) for seed in (1, 2))
    for name in ("fast", "same", "slow"):
        assert not differ(first[name], second[name])
    assert not differ(first["fast"], first["same"])
    assert differ(first["fast"], first["slow"])
    assert differ(second["fast"], first["slow"])


def test_a_summary_is_median_spread_and_rates():
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0], batch=6, flops=12, peak=8.0)
    assert (found["median_s"], found["spread"], found["images_per_second"]) == (3.0, pytest.approx(1 / 3), 2.0)
    assert (found["flops_per_second"], found["share_of_gemm_peak"], found["p99_s"]) == (4.0, 0.5, None)


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a run over one small cell leaves; one of its backends is our ONNX file slowed down."""
    plain = backends.BACKENDS["ort-fp32"]

    def slowed(bench: backends.Bench, images: torch.Tensor) -> backends.Prepared:
        call = plain(bench, images)

        def run() -> None:
            call()
            time.sleep(0.05)

        return backends.Prepared(run, "fp32", backends.CPU)

    monkeypatch.setitem(backends.BACKENDS, "ort-fp16", slowed)
    names = ["eager-fp32", "ort-fp32", "ort-int8", "ort-plain-fp32", "ort-fp16", "tensorrt-rtx-fp16"]
    arguments = ["--device", "cpu", "--sizes", "64", "--batches", "2", "--seconds", "0.3", "--call-limit", "60"]
    assert main([*arguments, "--backends", *names, "--report", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report.md").read_text().startswith("# Inference: demo")
    return json.loads((tmp_path / "report.json").read_text())


def test_every_backend_that_runs_here_is_timed_and_one_that_was_slowed_is_slower(report: dict):
    cells = {cell["backend"]: cell for cell in report["cells"]}
    assert list(cells) == ["eager-fp32", "ort-fp32", "ort-int8", "ort-plain-fp32", "ort-fp16"]
    assert report["left_out"] == {"tensorrt-rtx-fp16": "TocoError: an engine runs on a GPU; give --device cuda"}
    assert cells["ort-fp16"]["median_s"] > cells["ort-fp32"]["median_s"] + 0.03
    text = as_markdown({**report, "flops_per_image": {64: 1}})
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| 64 px, batch 2 | ")]
    speeds = {row[1]: float(row[6]) for row in rows}
    assert speeds["ort-fp32"] == 1.0
    assert speeds["ort-fp16"] < 0.9

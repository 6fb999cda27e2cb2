"""Runs of ``toco-train`` on a GPU: half precision with its scaler, and going on after a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.train.small_runs import last_checkpoint, make_small, metrics, small_shapes, tensors, train
from toco_train.commands.display import TrainingDisplay
from toco_train.commands.train import main

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_is_stopped_and_goes_on_with_finite_weights(
    precision: str, graph: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run, stepped = small_shapes(tmp_path / "shapes"), tmp_path / "run", TrainingDisplay.stepped

    def stop_after_two(display: TrainingDisplay, step: int, losses: dict[str, float] | None) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        stepped(display, step, losses)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingDisplay, "stepped", stop_after_two)
        assert train(data, run, mixed_precision=precision, cuda_graph=graph) == 0
    assert last_checkpoint(run).name == "step_0000002.safetensors"
    assert main(["--resume", "--out", str(run)]) == 0
    assert last_checkpoint(run).name == "step_0000006.safetensors"
    assert all(weight.isfinite().all() for weight in tensors(run / "model.safetensors").values())
    assert [line["step"] for line in metrics(run) if "losses" in line] == [1, 2, 3, 4, 5, 6]

"""The Triton kernels in Triton's interpreter, which needs no GPU, against the definitions; on a GPU: tests/gpu."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from toco_train.kernels import gpu as gpu_kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

FILTER = """
import torch
from toco_train.kernels.gpu import gaussian_filter
torch.manual_seed(0)
values, points = torch.rand(2, 21, 150), 2 * torch.rand(2, 150, 5)
weights = torch.exp2(-torch.cdist(points.double(), points.double()).square())
torch.testing.assert_close(gaussian_filter(values, points).double(), values.double() @ weights, rtol=1e-5, atol=1e-6)
"""
REFINEMENT = """
import torch
from toco_train.method import par
from toco_train.kernels.gpu import works_on
torch.manual_seed(0)
images, maps = torch.rand(2, 3, 9, 31), torch.rand(2, 5, 9, 31)
images[1] = 0.5  # one colour: no deviation to divide by
assert works_on(images.device)
refinement = par.PixelAdaptiveRefinement((1, 3, 12), num_iterations=2)
weights = refinement.affinity(images)
expected = refinement(images, maps)
par.runs_kernels = lambda _: True
torch.testing.assert_close(refinement.affinity(images), weights, rtol=1e-5, atol=1e-6)
torch.testing.assert_close(refinement(images, maps), expected, rtol=1e-5, atol=1e-6)
"""


@needs_triton
@pytest.mark.parametrize("code", [FILTER, REFINEMENT], ids=["filter", "refinement"])
def test_a_kernel_gives_what_is_defined(code: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when a kernel is defined
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-2000:]


def test_where_triton_fails_the_operations_are_used_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    gpu_kernels.works_on.cache_clear()
    assert not gpu_kernels.works_on(torch.device("cpu"))  # compiled code does not run on a CPU
    assert not gpu_kernels.works_on(torch.device("cpu"))
    (message,) = caplog.messages
    assert message.startswith("Triton does not work on cpu (")
    assert "so the dense energy and PAR run slowly" in message

"""The peak performance of a machine: matrix products and memory traffic, measured together with a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks.harness.timing import timed_call

GEMM_SIDE = {"cuda": 8192, "cpu": 1024}
TRIAD_FLOATS = {"cuda": 2**28, "cpu": 2**25}  # arrays far larger than any cache

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def gemm_peak(device: torch.device, precision: Precision) -> float:
    """Return the operations per second that a large square matrix product reaches here."""
    side, products = GEMM_SIDE[device.type], 8 if device.type == "cuda" else 1
    left, right = (torch.randn(side, side, device=device, dtype=DTYPES[precision]) for _ in ("left", "right"))
    out = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)

    with tensor_float32(precision == "tf32"):
        multiply()
        fastest = min(timed_call(multiply, device) for _ in range(5))
    return 2 * side**3 * products / fastest


def memory_peak(device: torch.device) -> float:
    """Return the bytes per second of a triad, a = b + 3 c: two arrays read and one written (STREAM)."""
    length = TRIAD_FLOATS[device.type]
    left, right = (torch.ones(length, device=device) for _ in ("left", "right"))
    out = torch.empty_like(left)

    def triad() -> None:
        torch.add(left, right, alpha=3, out=out)

    triad()
    fastest = min(timed_call(triad, device) for _ in range(5))
    return 3 * out.nbytes / fastest


@dataclass(frozen=True)
class Roofline:
    """The upper bound of a machine's performance by arithmetic intensity (Williams et al., 2009).

    Attributes:
        flops_per_second: Peak of matrix products.
        bytes_per_second: Peak of memory traffic.
    """

    flops_per_second: float
    bytes_per_second: float

    def bound(self, intensity: float) -> float:
        """Return the upper bound in operations per second for an intensity in operations per byte."""
        return min(self.flops_per_second, intensity * self.bytes_per_second)

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import peaks
from benchmarks.harness.peaks import Roofline, gemm_peak, memory_peak

CPU = torch.device("cpu")


def test_work_of_little_intensity_is_bound_by_memory_and_other_work_by_products():
    roof = Roofline(flops_per_second=1e12, bytes_per_second=1e11)
    assert roof.bound(2.0) == 2e11
    assert roof.bound(10.0) == roof.bound(1e4) == 1e12


def test_peaks_count_two_operations_a_multiply_add_and_three_arrays_a_triad(monkeypatch: pytest.MonkeyPatch):
    def took_a_second(call, device):
        call()
        return 1.0

    monkeypatch.setattr(peaks, "timed_call", took_a_second)
    monkeypatch.setitem(peaks.GEMM_SIDE, "cpu", 8)
    monkeypatch.setitem(peaks.TRIAD_FLOATS, "cpu", 16)
    assert gemm_peak(CPU, "fp32") == 2 * 8**3
    assert memory_peak(CPU) == 3 * 16 * 4

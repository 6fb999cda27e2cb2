"""The tables of an inference report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.processes import in_words
from benchmarks.harness.provenance import provenance_text
from benchmarks.harness.timing import SPREAD, ratio_cell, spread_cell
from toco_core.text import markdown_table

METHOD = """\
Each call is timed on the host, with the device idle before and after it: the latency of one batch, with input and
output in the backend's own memory (host memory for ONNX Runtime on the CPU). Backends take turns at each size and
batch, in {processes}: {min_calls} to {max_calls} calls each in a process, about {seconds:g} s, after {warmup_calls}
warm-up calls; p99 from {min_calls_for_p99} calls on. Speed: against {reference} at that size and batch. Not timed:
calls that took, or at the best rate so far would take, more than {call_limit:g} s. fp32: TF32 off; tf32: on; bf16:
autocast; fp16: the network that toco-export --fp16 writes (ONNX Runtime on the CPU computes it in fp32); int8: all
linear layers, as toco-export --precision int8 writes them if its accuracy gate allows. ort: ONNX Runtime, which on a
GPU computes fp32 files in tf32 by default; ort-plain: ONNX Runtime on the plain output of torch.onnx.export for the
same network; openvino: OpenVINO on the file of ort-fp32. compiled: torch.compile of each ViT block alone, for each
size. graph: replayed as one CUDA graph. The fp16 network's attention is written as separate operations, as exporters
and TensorRT need it; in the other PyTorch variants it is one fused kernel."""
ROOFLINE = """\
GFLOP: multiply-adds times 2 of matrix products and convolutions, attention included. MB: the least that a batch must
move: the weights of backbone and decoder, read once in their stored type, the images read, labels and confidence
written. Activations are left out, because a fused kernel need not move them; so the bound is optimistic. Bound: the
smaller of the product peak and FLOP/byte times the memory peak, both measured at that size and batch: a square matrix
product of the same type (for int8 that of fp32, so int8 may exceed it) and a triad over arrays larger than the caches,
counted as two reads and one write."""


def as_markdown(result: Mapping[str, Any], images: Sequence[Path] = ()) -> str:
    """Return the tables of the report, with provenance and method.

    Args:
        result: The content of the report's JSON.
        images: Chart files beside the report.
    """
    cells, setting = result["cells"], result["setting"]
    speed = f"speed against {setting['reference']}"
    timing_headings = ("input", "backend", "on", "calls", "median, ms", "spread", speed, "p99, ms", "images/s")
    roofline_headings = ("input", "backend", "GFLOP", "MB", "FLOP/byte", "bound, GFLOP/s", "bound by",
                         "reached, GFLOP/s", "of the bound")  # fmt: skip
    return "\n\n".join([
        f"# Inference: {result['backbone']}",
        provenance_text(result["provenance"]),
        *(f"![{path.stem}]({path.name})" for path in images),
        "## Latency",
        markdown_table(timing_headings, [_timing_row(cell) for cell in cells]),
        *(f"Left out: {name}: {reason}" for name, reason in result["left_out"].items()),
        *_skipped(result["skipped"]),
        METHOD.format(**{**setting, "processes": in_words(setting["processes"])}),
        SPREAD,
        "## Roofline",
        markdown_table(roofline_headings, [_roofline_row(cell) for cell in cells]),
        f"Peaks, median (least to most): products, TFLOP/s: {_peaks(result['gemm_flops_per_second'], 1e12)}; "
        f"memory, GB/s: {_peaks(result['memory_bytes_per_second'], 1e9)}.",
        ROOFLINE,
    ])  # fmt: skip


def _input(cell: Mapping[str, Any]) -> str:
    return f"{cell['size']} px, batch {cell['batch']}"


def _timing_row(cell: Mapping[str, Any]) -> list[str]:
    time = cell["time_s"]
    return [
        _input(cell),
        cell["backend"],
        cell["device"],
        str(time["count"]),
        f"{1e3 * time['median']:.2f}",
        spread_cell(time),
        ratio_cell(cell["speed"]) if cell["speed"] else "",
        f"{1e3 * cell['p99_s']:.2f}" if cell["p99_s"] else "",
        f"{cell['images_per_second']:.1f}",
    ]


def _roofline_row(cell: Mapping[str, Any]) -> list[str]:
    return [
        _input(cell),
        cell["backend"],
        f"{cell['flops'] / 1e9:.1f}",
        f"{cell['least_bytes'] / 1e6:.1f}",
        f"{cell['intensity']:.0f}",
        f"{cell['bound_flops_per_second'] / 1e9:.0f}",
        cell["bound_by"],
        f"{cell['flops_per_second'] / 1e9:.0f}",
        f"{cell['efficiency']:.0%}",
    ]


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each backend that was not timed everywhere: the first such batch of each size, and why."""
    first: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in skipped:
        known = first.setdefault(cell["backend"], {}).setdefault(cell["size"], cell)
        if cell["batch"] < known["batch"]:
            first[cell["backend"]][cell["size"]] = cell
    lines = []
    for name, sizes in first.items():
        parts = (f"{_input(sizes[size])} on ({sizes[size]['reason']})" for size in sorted(sizes))
        lines.append(f"Not timed: {name}: {'; '.join(parts)}.")
    return lines


def _peaks(found: Mapping[str, Sequence[float]], unit: float) -> str:
    return ", ".join(
        f"{name} {np.median(values) / unit:.3g} ({min(values) / unit:.3g} to {max(values) / unit:.3g})"
        for name, values in found.items()
    )

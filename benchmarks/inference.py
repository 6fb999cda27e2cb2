"""How fast the served graph runs: bytes in, mask out, over backends, sizes and batches.

    python -m benchmarks.inference --backbone demo --sizes 64 96 --batches 1 4 --device cpu
    python -m benchmarks.inference --backbone vit_base_patch16_224 --report benchmarks/results/NAME

Images are noise that already lies where the backend reads it; weights are random. Backends take turns at each size and
batch. One that cannot run here is left out, with its reason.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.backends import BACKENDS, SLOW_ON_A_CPU, WARMUP_CALLS, Bench, Prepared, noise
from benchmarks.measuring import (
    gemm_peak,
    interleaved,
    markdown_table,
    one_line,
    provenance,
    provenance_text,
    save_report,
    timed_call,
)
from benchmarks.training_step import add_network_arguments
from toco.command import run_command
from toco.manifest import Profile, Shape

MIN_CALLS, MAX_CALLS = 3, 200
MIN_CALLS_FOR_P99 = 50
REFERENCE = "ort-fp32"

METHOD = """\
Each call is timed from the host, from an idle device to an idle device: the latency of one batch, with input and output
where the backend has them (host memory for ONNX Runtime on the CPU). Backends take turns at each size and batch:
{least} to {most} calls each, about {seconds:g} s of them, after {warmup} to warm up; p99 where there are {p99} calls.
A backend that takes more than {limit:g} s a call is not timed at larger sizes. fp32: TF32 off; tf32: on; bf16:
autocast; fp16: the network that toco-export --fp16 writes (ONNX Runtime on the CPU computes it in fp32); int8: all
linear layers, as toco-export --precision int8 writes them where its gate allows. ort: ONNX Runtime; ort-plain: on what
torch.onnx.export alone writes of the same network; openvino: on the file of ort-fp32. compiled: torch.compile of each
ViT block alone, for each size. graph: replayed as one CUDA graph. Spread: half the distance between the quartiles, of
the median. Speed: the median of {reference} at that size and batch over this one's. FLOPs: multiply-adds times 2 of
products and convolutions. Peak: a square product on the same processor, measured in this run: of the same type, but
for int8 that of fp32."""


def main(argv: Sequence[str] | None = None) -> int:
    """Time the backends over the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 512], help="image sides, in pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32], help="images at a time")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), help="rows (default: what suits the device)")
    parser.add_argument("--seconds", type=float, default=0.5, help="calls of each backend at each size and batch")
    parser.add_argument("--call-limit", type=float, default=1.0, help="seconds a call that end a backend's turn")
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md; kept up to date")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    names = arguments.backends or [n for n in BACKENDS if device.type == "cuda" or n not in SLOW_ON_A_CPU]
    grid = [(size, batch) for size in arguments.sizes for batch in arguments.batches]
    cells = sorted(grid, key=lambda cell: cell[0] ** 2 * cell[1])
    result: dict[str, Any] = {
        "provenance": provenance(device, "benchmarks.inference", argv),
        "setting": {"backbone": arguments.backbone, "seconds": arguments.seconds, "call_limit": arguments.call_limit},
        "cells": [],
        "gemm_flops_per_second": {},
        "left_out": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.backbone, device, profile_of(cells), Path(folder))
        result["flops_per_image"] = {size: bench.flops_per_image(size) for size in arguments.sizes}
        for size, batch in cells:
            measure_cell(bench, names, size, batch, result)
            if arguments.report:
                save_report(arguments.report, result, as_markdown(result))
    print(as_markdown(result))
    return 0


def profile_of(cells: Sequence[tuple[int, int]]) -> Profile:
    """Return the range of an engine that takes every cell, tuned for the one in the middle."""
    sizes, batches = zip(*cells, strict=True)

    def shape(size: int, batch: int) -> Shape:
        return Shape(batch=batch, height=size, width=size)

    return Profile(
        min=shape(min(sizes), min(batches)),
        opt=shape(*cells[len(cells) // 2]),
        max=shape(max(sizes), max(batches)),
    )


def measure_cell(bench: Bench, names: Sequence[str], size: int, batch: int, result: dict[str, Any]) -> None:
    """Time every backend that is still in on one size and batch, and add what was found to the result."""
    images = torch.from_numpy(noise(batch, size)).to(bench.device)
    seconds, limit = result["setting"]["seconds"], result["setting"]["call_limit"]
    calls: dict[str, Prepared] = {}
    repeats: dict[str, int] = {}
    for name in names:
        if name in result["left_out"]:
            continue
        try:
            call = BACKENDS[name](bench, images)
            once = [timed_call(call, bench.device) for _ in range(WARMUP_CALLS)][-1]
        except Exception as error:  # each library has its own families; whatever it is, the others are still timed
            result["left_out"][name] = one_line(error)
            continue
        calls[name], repeats[name] = call, min(MAX_CALLS, max(MIN_CALLS, round(seconds / once)))
        if once > limit:
            result["left_out"][name] = f"sizes beyond {size} px, batch {batch}, where one call took {once:.1f} s"
    times = interleaved(calls, bench.device, repeats)
    flops = batch * result["flops_per_image"][size]
    for name, call in calls.items():
        peak = _peak(result["gemm_flops_per_second"], call)
        result["cells"].append(
            {"size": size, "batch": batch, "backend": name, "device": call.device.type,
             **summary(times[name], batch=batch, flops=flops, peak=peak)}
        )  # fmt: skip
    calls.clear()
    gc.collect()  # captured graphs hold their memory until they go
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(known: dict[str, float], call: Prepared) -> float:
    """Return the product peak that a call is held against, measured when it is first asked for."""
    key = f"{call.precision} on {call.device.type}"
    if key not in known:
        known[key] = gemm_peak(call.device, call.precision)
    return known[key]


def summary(seconds: Sequence[float], *, batch: int, flops: int, peak: float) -> dict[str, Any]:
    """Reduce the times of a backend to what the table shows."""
    low, middle, high, late = (float(q) for q in np.percentile(seconds, [25, 50, 75, 99]))
    return {
        "calls": len(seconds),
        "median_s": middle,
        "spread": (high - low) / 2 / middle,
        "p99_s": late if len(seconds) >= MIN_CALLS_FOR_P99 else None,
        "images_per_second": batch / middle,
        "flops_per_second": flops / middle,
        "share_of_gemm_peak": flops / middle / peak,
    }


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table, with what it was measured on and how."""
    reference = {(c["size"], c["batch"]): c["median_s"] for c in result["cells"] if c["backend"] == REFERENCE}
    rows = [
        [f"{cell['size']} px, batch {cell['batch']}", cell["backend"], cell["device"], str(cell["calls"]),
         f"{1e3 * cell['median_s']:.2f}", f"± {cell['spread']:.1%}", _speed(reference, cell),
         "" if cell["p99_s"] is None else f"{1e3 * cell['p99_s']:.2f}", f"{cell['images_per_second']:.1f}",
         f"{cell['share_of_gemm_peak']:.0%}"]
        for cell in result["cells"]
    ]  # fmt: skip
    headings = (
        "input",
        "backend",
        "on",
        "calls",
        "median, ms",
        "spread",
        "speed",
        "p99, ms",
        "images/s",
        "of the product peak",
    )
    setting = result["setting"]
    peaks = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in result["gemm_flops_per_second"].items())
    return "\n\n".join([
        f"# Inference: {setting['backbone']}",
        provenance_text(result["provenance"]),
        markdown_table(headings, rows),
        f"Peak of a square product, TFLOP/s: {peaks}.",
        *(f"Left out: {name}: {reason}" for name, reason in result["left_out"].items()),
        METHOD.format(least=MIN_CALLS, most=MAX_CALLS, seconds=setting["seconds"], warmup=WARMUP_CALLS,
                      p99=MIN_CALLS_FOR_P99, reference=REFERENCE, limit=setting["call_limit"]),
    ])  # fmt: skip


def _speed(reference: Mapping[tuple[int, int], float], cell: Mapping[str, Any]) -> str:
    seconds = reference.get((cell["size"], cell["batch"]))
    return "" if seconds is None else f"{seconds / cell['median_s']:.2f}"


if __name__ == "__main__":
    sys.exit(run_command("inference")(main)(None))

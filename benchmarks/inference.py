"""How fast the served graph runs: bytes in, mask out, over backends, sizes and batches, and beside what is possible.

    python -m benchmarks.inference --backbone demo --sizes 64 96 --batches 1 4 --device cpu
    python -m benchmarks.inference --backbone vit_base_patch16_224 --report benchmarks/results/NAME

Images are noise that already lies where the backend reads it; weights are random. Backends take turns at each size and
batch. One that cannot run here is left out, and so is a size and batch that takes too long or too much memory, with
the reason.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases.backends import BACKENDS, SLOW_ON_A_CPU, WARMUP_CALLS, Bench, Prepared, noise
from benchmarks.cases.recipe import add_network_arguments
from benchmarks.harness.peaks import Roofline, gemm_peak, memory_peak
from benchmarks.harness.processes import Found, add_processes_argument, in_processes
from benchmarks.harness.provenance import provenance, save_report
from benchmarks.harness.timing import Series, interleaved, warm_up
from benchmarks.reports.inference_charts import grid_chart, roofline_chart
from benchmarks.reports.inference_tables import as_markdown
from toco_core.charts import save_figure
from toco_core.cli import run_command
from toco_core.manifest import Profile, Shape
from toco_core.memory import available_memory
from toco_core.text import one_line

MIN_CALLS, MAX_CALLS = 8, 200
MIN_CALLS_FOR_P99 = 50
REFERENCE = "ort-fp32"


def main(argv: Sequence[str] | None = None) -> int:
    """Time the backends over the grid and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 512, 768], help="image sides, in pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32], help="images at a time")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), help="rows (default: what suits the device)")
    parser.add_argument("--seconds", type=float, default=0.5, help="calls of each backend at each size and batch")
    parser.add_argument("--call-limit", type=float, default=1.0, help="seconds a call beyond which nothing is timed")
    add_processes_argument(parser)
    parser.add_argument("--report", type=Path, help="write there .json and .md, kept up to date, and last the images")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    names = arguments.backends or [n for n in BACKENDS if device.type == "cuda" or n not in SLOW_ON_A_CPU]
    cells = [(size, batch) for size in arguments.sizes for batch in arguments.batches]
    origin = provenance(device, "benchmarks.inference", argv)  # first: the load average is that before our own
    setting = {"processes": arguments.processes, "seconds": arguments.seconds, "call_limit": arguments.call_limit}
    with tempfile.TemporaryDirectory() as folder:
        network = (arguments.backbone, device, profile_of(cells), Path(folder))
        for found in in_processes(arguments.processes, measure_grid, network, names, cells, setting):
            result = {"provenance": origin, "backbone": arguments.backbone, **as_json(found, setting)}
            if arguments.report:
                save_report(arguments.report, result, as_markdown(result))
    images = draw(result, arguments.report) if arguments.report and result["cells"] else []
    text = as_markdown(result, images)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def draw(result: Mapping[str, Any], report: Path) -> list[Path]:
    """Draw the images beside a report and return them: the roofline, and the grid where it is more than one cell."""
    charts = {"-roofline": roofline_chart}
    if len({(cell["size"], cell["batch"]) for cell in result["cells"]}) > 1:
        charts = {"": grid_chart, **charts}
    return [save_figure(chart(result), report.with_name(report.name + name))[0] for name, chart in charts.items()]


def profile_of(cells: Sequence[tuple[int, int]]) -> Profile:
    """Return the range of an engine that takes every cell, tuned for the one in the middle."""
    cells = sorted(cells, key=lambda cell: cell[0] ** 2 * cell[1])
    sizes, batches = zip(*cells, strict=True)

    def shape(size: int, batch: int) -> Shape:
        return Shape(batch=batch, height=size, width=size)

    return Profile(
        min=shape(min(sizes), min(batches)),
        opt=shape(*cells[len(cells) // 2]),
        max=shape(max(sizes), max(batches)),
    )


def measure_grid(
    network: tuple[str, torch.device, Profile, Path],
    names: Sequence[str],
    cells: Sequence[tuple[int, int]],
    setting: Mapping[str, Any],
) -> Iterator[Found]:
    """Time the backends over the grid in this process, least work first; give what is found after each cell.

    Args:
        network: What makes its ``Bench``.
        names: Backends.
        cells: Sizes and batches.
        setting: See ``Grid``.
    """
    grid = Grid(Bench(*network), names, {size for size, _ in cells}, setting)
    for size, batch in sorted(cells, key=lambda cell: grid.flops(*cell)):
        grid.measure(size, batch)
        yield grid.found


class Grid:
    """Backends over sizes and batches: what was found, what is left out, and the machine's peaks meanwhile.

    Args:
        bench: The network.
        names: Backends.
        sizes: Image sides in pixels.
        setting: ``seconds`` of calls of each backend at each size and batch, within ``MIN_CALLS`` and ``MAX_CALLS``;
            ``call_limit``, seconds a call beyond which a backend is not timed.

    Attributes:
        found: What is known so far; what several processes found can be merged.
    """

    def __init__(self, bench: Bench, names: Sequence[str], sizes: Iterable[int], setting: Mapping[str, Any]) -> None:
        self._bench, self._names = bench, names
        self._seconds, self._call_limit = setting["seconds"], setting["call_limit"]
        self._reference = REFERENCE if REFERENCE in names else names[0]
        self._flops = {size: bench.flops_per_image(size) for size in sizes}
        self._rates: dict[str, float] = {}  # the most operations a second of each so far
        self.found: dict[str, Any] = {
            "reference": self._reference, "flops_per_image": self._flops, "cells": {}, "left_out": {}, "skipped": {},
            "gemm_flops_per_second": {}, "memory_bytes_per_second": {},
        }  # fmt: skip

    def flops(self, size: int, batch: int) -> int:
        """Return the operations of a batch."""
        return batch * self._flops[size]

    def measure(self, size: int, batch: int) -> None:
        """Time every backend that is still in on one size and batch; begin with the least work."""
        device = self._bench.device
        images = torch.from_numpy(noise(batch, size)).to(device)
        calls: dict[str, Prepared] = {}
        repeats: dict[str, int] = {}
        for name in self._names:
            if name in self.found["left_out"]:
                continue
            if reason := self._too_much(name, size, batch):
                self._skip(name, size, batch, reason)
                continue
            try:
                call = BACKENDS[name](self._bench, images)
                once = warm_up(call, device, WARMUP_CALLS)
            except Exception as error:  # each library has its own families; whatever it is, the others are still timed
                where = f"from {size} px, batch {batch}: " if name in self._rates else ""
                self.found["left_out"][name] = where + f"{type(error).__name__}: {one_line(error)}"
                continue
            self._rates[name] = max(self._rates.get(name, 0.0), self.flops(size, batch) / once)
            if once > self._call_limit:
                self._skip(name, size, batch, f"{once:.1f} s a call")
                continue
            calls[name], repeats[name] = call, min(MAX_CALLS, max(MIN_CALLS, round(self._seconds / once)))
        peaks = self._peaks(calls)
        times = interleaved(calls, device, repeats)
        reference = times.get(self._reference)
        for name, call in calls.items():
            self.found["cells"][size, batch, name] = {
                "device": call.device.type, "precision": call.precision, "seconds": times[name],
                "speed": reference and reference.over(times[name]), "flops": self.flops(size, batch),
                "least_bytes": self._bench.least_bytes(images, call.weights), **peaks[name],
            }  # fmt: skip
        calls.clear()
        gc.collect()  # captured graphs hold their memory until they go
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_much(self, name: str, size: int, batch: int) -> str | None:
        """Return why a backend is not even tried: by its best rate it takes too long, or the memory may not do."""
        expected = self.flops(size, batch) / self._rates.get(name, float("inf"))
        if expected > self._call_limit:
            return f"about {expected:.1f} s a call"
        if self._bench.device.type == "cuda":
            return None  # too little memory is an error there, and ends nothing
        needed, available = batch * self._bench.activation_bytes(size), available_memory()
        if available is not None and needed > available:
            return f"up to {needed / 2**30:.1f} GiB of activations, {available / 2**30:.1f} are free"
        return None

    def _skip(self, name: str, size: int, batch: int, reason: str) -> None:
        self.found["skipped"][name, size, batch] = {
            "backend": name, "size": size, "batch": batch, "reason": reason
        }  # fmt: skip

    def _peaks(self, calls: Mapping[str, Prepared]) -> dict[str, dict[str, list[float]]]:
        """Measure the peaks that calls are held against, once each."""
        gemm, memory = {}, {}
        for call in calls.values():
            place = call.device.type
            if place not in memory:
                memory[place] = memory_peak(call.device)
                self.found["memory_bytes_per_second"].setdefault(place, []).append(memory[place])
            key = f"{call.precision} on {place}"
            if key not in gemm:
                gemm[key] = gemm_peak(call.device, call.precision)
                self.found["gemm_flops_per_second"].setdefault(key, []).append(gemm[key])
        return {name: {"gemm_peaks": [gemm[f"{call.precision} on {call.device.type}"]],
                       "memory_peaks": [memory[call.device.type]]} for name, call in calls.items()}  # fmt: skip


def as_json(found: Found, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report holds of what one process found, or several."""
    cells = [
        {"size": size, "batch": batch, "backend": name, "device": cell["device"], "precision": cell["precision"],
         "speed": cell["speed"] and cell["speed"].as_json(),
         **summary(cell["seconds"], batch, cell["flops"], cell["least_bytes"],
                   Roofline(float(np.median(cell["gemm_peaks"])), float(np.median(cell["memory_peaks"]))))}
        for (size, batch, name), cell in found["cells"].items()
    ]  # fmt: skip
    return {
        **found,
        "setting": {**setting, "reference": found["reference"], "warmup_calls": WARMUP_CALLS, "min_calls": MIN_CALLS,
                    "max_calls": MAX_CALLS, "min_calls_for_p99": MIN_CALLS_FOR_P99},
        "cells": cells,
        "skipped": list(found["skipped"].values()),
    }  # fmt: skip


def summary(seconds: Series, batch: int, flops: int, moved: int, roofline: Roofline) -> dict[str, Any]:
    """Reduce the times of a backend to what the tables show.

    Args:
        seconds: Of its calls.
        batch: Images in each.
        flops: Operations in each.
        moved: Bytes that each must move.
        roofline: What the machine does at most.
    """
    bound = roofline.bound(flops / moved)
    return {
        "time_s": seconds.as_json(),
        "p99_s": seconds.percentile(99) if len(seconds.values) >= MIN_CALLS_FOR_P99 else None,
        "images_per_second": batch / seconds.median,
        "flops": flops,
        "least_bytes": moved,
        "intensity": flops / moved,
        "bound_flops_per_second": bound,
        "bound_by": "products" if bound == roofline.flops_per_second else "memory",
        "flops_per_second": flops / seconds.median,
        "efficiency": flops / seconds.median / bound,
    }


if __name__ == "__main__":
    sys.exit(run_command("inference")(main)(None))

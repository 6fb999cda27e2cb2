"""What the benchmarks share: timing side by side, the machine's peak, where and how a figure was measured, reports."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import timm
import torch

from toco import __version__
from toco.files import write_atomic

GEMM_SIDE = {"cuda": 8192, "cpu": 1024}

P = ParamSpec("P")
R = TypeVar("R")

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int | Mapping[str, int],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time calls in turn, A B C A B C, so that whatever else the machine does falls on all of them alike."""
    wanted = {name: repeats if isinstance(repeats, int) else repeats[name] for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(wanted.values(), default=0)):
        for name, call in calls.items():
            if turn < wanted[name]:
                seconds[name].append(timed_call(call, device, clock))
    return seconds


def timed_call(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of one call, from an idle device to an idle device."""
    synchronise(device)
    began = clock()
    call()
    synchronise(device)
    return clock() - began


class PhaseClock:
    """Adds up time by phase, with the device synchronised at every border; inside a phase no other begins."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._clock = clock
        self._inside = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block to a phase, unless it lies inside another."""
        if self._inside:
            yield
            return
        self._inside = True
        synchronise(self._device)
        began = self._clock()
        try:
            yield
        finally:
            synchronise(self._device)
            self.seconds[name] += self._clock() - began
            self._inside = False

    def timed(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, counted to a phase."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.phase(name):
                return function(*args, **kwargs)

        return call


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow TF32 in products and convolutions, or in neither."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def gemm_peak(device: torch.device, precision: Precision) -> float:
    """Return the most operations a second that a large square product reaches here."""
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


def one_line(error: Exception) -> str:
    """Return what an error says, short enough for a table's foot."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def provenance(device: torch.device, module: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return what a figure depends on beside the code: machine, versions, date, command."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU: {cpu_name()}",
        "host": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
                     "cuda": torch.version.cuda if on_gpu else None,
                     "cudnn": torch.backends.cudnn.version() if on_gpu else None  # type: ignore[no-untyped-call]
                     , "toco": __version__},
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]),
    }  # fmt: skip


def cpu_name() -> str:
    """Return the processor's name where Linux tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def provenance_text(found: Mapping[str, Any]) -> str:
    """Return the provenance as the first paragraph of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    load = "" if found["load_average"] is None else f"; load average {found['load_average']:.1f}"
    return f"{found['device']}; host {found['host']}{load}; {versions}; {found['date']}.\n\n`{found['command']}`"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out as a Markdown table."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "--:|" * (len(headings) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def save_report(path: Path, result: Mapping[str, Any], text: str) -> None:
    """Write a report as ``path`` with .json and .md after it."""
    write_atomic(path.with_name(path.name + ".json"), json.dumps(result, indent=1) + "\n")
    write_atomic(path.with_name(path.name + ".md"), text + "\n")

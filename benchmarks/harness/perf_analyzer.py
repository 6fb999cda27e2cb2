"""A second measurement of a served model, with NVIDIA's perf_analyzer if it is installed."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = "perf_analyzer"
TIMEOUT_S = 120
ABSENT = f"{PROGRAM} is not installed"


def second_opinion(url: str, size: int, clients: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measure the model ``toco`` under the load of closed-loop clients with perf_analyzer.

    Args:
        url: The server's gRPC endpoint, without a scheme.
        size: Side of the images, in pixels.
        clients: Numbers of clients, one load each.
        seconds: Length of a window; perf_analyzer measures up to ten windows, until three agree.

    Returns:
        ``{"clients": {number: {"images_per_second", "p50_ms", "p90_ms", "p99_ms"}}}``, or ``{"reason": ...}`` if it
        could not measure.
    """
    if shutil.which(PROGRAM) is None:
        return {"reason": ABSENT}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        for number in clients:
            command = [
                PROGRAM, "-m", "toco", "-i", "grpc", "-u", url, "--shape", f"image:{size},{size},3",
                "--concurrency-range", f"{number}", "--measurement-interval", f"{1000 * seconds:.0f}", "-f", str(table),
            ]  # fmt: skip
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                return {"reason": f"{PROGRAM} took more than {TIMEOUT_S} s with {number} clients"}
            except subprocess.CalledProcessError as error:
                return {"reason": f"{PROGRAM} failed: {' '.join((error.stderr or error.stdout).split())[-240:]}"}
            found[str(number)] = read_table(table.read_text(encoding="utf-8"))
    return {"clients": found}


def read_table(text: str) -> dict[str, float]:
    """Return the figures in the only row of perf_analyzer's CSV, which has latencies in microseconds."""
    (row,) = csv.DictReader(text.splitlines())
    latencies = {f"p{percent}_ms": float(row[f"p{percent} latency"]) / 1e3 for percent in (50, 90, 99)}
    return {"images_per_second": float(row["Inferences/Second"]), **latencies}

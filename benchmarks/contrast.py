"""What the two contrasts are worth: the demo with and without PTC and CTC, several seeds each.

    python -m benchmarks.contrast --data demo/shapes --out demo/contrast [--jobs 1] [--report benchmarks/results/NAME]

Each row is ``toco-train --preset demo`` with only the two loss weights changed. A finished run is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from toco.command import run_command
from toco.errors import TocoError
from toco.files import write_atomic

VARIANTS = {
    "PTC + CTC": (),
    "PTC": ("--weights.ctc", "0"),
    "CTC": ("--weights.ptc", "0"),
    "neither": ("--weights.ptc", "0", "--weights.ctc", "0"),
}
COLUMNS: dict[str, Callable[[Any], float]] = {
    "CAM mIoU, %": lambda e: 100 * e["cam"]["mean_iou"],
    "aux CAM mIoU, %": lambda e: 100 * e["aux_cam"]["mean_iou"],
    "segmentation mIoU, %": lambda e: 100 * e["seg"]["mean_iou"],
    "token similarity": lambda e: e["token_similarity"],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train every variant with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set of toco-shapes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (a small network leaves a GPU mostly idle)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="rows")
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md")
    arguments = parser.parse_args(argv)
    tasks = [(variant, seed) for variant in arguments.variants for seed in range(arguments.seeds)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = pool.map(lambda task: final_evaluation(arguments.data, arguments.out, *task), tasks)
        evaluations = list(track(pending, "training", total=len(tasks), console=Console(stderr=True)))
    results = {v: [e for (variant, _), e in zip(tasks, evaluations, strict=True) if variant == v]
               for v in arguments.variants}  # fmt: skip
    text = report(results, arguments.seeds)
    print(text)
    if arguments.report:
        write_atomic(arguments.report.with_suffix(".md"), text + "\n")
        write_atomic(arguments.report.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    return 0


def final_evaluation(data: Path, out: Path, variant: str, seed: int) -> dict[str, object]:
    """Train one variant, unless it is there, and return its last evaluation."""
    run = out / f"{variant.replace(' + ', '_').lower()}-seed{seed}"
    if (found := _last_evaluation(run)) is not None:
        return found
    command = [sys.executable, "-m", "toco_train", "--preset", "demo", "--data", str(data), "--out", str(run),
               "--overwrite", "--seed", str(seed), "--evaluation.every", "1000000", *VARIANTS[variant]]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    found = _last_evaluation(run)
    if finished.returncode or found is None:
        raise TocoError(f"{' '.join(command)} ended with {finished.returncode}: {finished.stderr.strip()[-300:]}")
    return found


def _last_evaluation(run: Path) -> dict[str, object] | None:
    """Return the evaluation of a finished run: the line that comes last."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    last: dict[str, object] | None = json.loads(lines[-1]).get("evaluation") if lines else None
    return last


def report(results: dict[str, list[dict[str, object]]], seeds: int) -> str:
    """Return the table in Markdown, with what it was measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
    lines = [
        f"`toco-train --preset demo` on Shapes, {seeds} seeds, mean ± standard deviation over seeds; {device}, "
        f"PyTorch {torch.__version__}, {datetime.now(timezone.utc):%Y-%m-%d}.",
        "",
        "| losses | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for variant, evaluations in results.items():
        cells = []
        for name, value in COLUMNS.items():
            values = [value(evaluation) for evaluation in evaluations]
            digits = 3 if name == "token similarity" else 1
            spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.{digits}f}{spread}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command("contrast")(main)(None))

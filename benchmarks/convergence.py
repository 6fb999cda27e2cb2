"""Does a timm ViT learn the synthetic shapes from nothing: mIoU over the steps of one run, and its masks.

    python -m benchmarks.convergence --out demo/convergence [--backbone vit_base_patch16_224] [--steps 600]

The run is ``toco-train --preset demo`` at 192 px with that backbone, bf16 and the flags of ``recipe_flags``. One that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import provenance, provenance_text, save_report
from toco_core.charts import Curve, curve_chart, save_figure
from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_core.text import markdown_table, percent
from toco_train.config import load_config
from toco_train.reports.history_charts import MASKS
from toco_train.runs.history import History, read_history
from toco_train.runs.layout import CONFIG_FILE, METRICS_FILE, SAMPLES_FOLDER
from toco_train.shapes.voc import Recipe, make_dataset

SIZE = 192  # 12 x 12 tokens, as the demo has


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data, train, and write table, chart and images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for data and run")
    parser.add_argument("--backbone", default="vit_base_patch16_224", help="timm name; random weights")
    parser.add_argument("--images", type=int, default=2000, help="synthetic images, a fifth of them to validate with")
    parser.add_argument("--steps", type=int, default=600, help="optimiser steps")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw, and that load")
    parser.add_argument("--train-flags", default="", help="further flags for toco-train, as one string")
    parser.add_argument("--report", type=Path, help="where it goes, without suffix; default: the date in results/")
    arguments = parser.parse_args(argv)
    origin = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "benchmarks.convergence", argv)
    data, run = arguments.out / f"shapes-{SIZE}-{arguments.images}", arguments.out / f"run-{arguments.backbone}"
    if not data.is_dir():
        make_dataset(data, Recipe(images=arguments.images, size=SIZE, seed=0), arguments.workers)
    flags = recipe_flags(arguments.steps) | {"data.num_workers": str(arguments.workers)}
    settings = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "toco_train", "--resume", "--preset", "demo", "--data", str(data),
               "--out", str(run), "--no-pretrained", "--model.backbone", arguments.backbone, *settings,
               *shlex.split(arguments.train_flags)]  # fmt: skip
    status = subprocess.run(command, check=False).returncode
    if status:
        raise TocoError(f"{shlex.join(command)} ended with {status}")
    history = read_history(run / METRICS_FILE)
    path = arguments.report or Path(__file__).parent / "results" / f"{datetime.now(timezone.utc):%Y-%m-%d}-convergence"
    result = {**origin, "config": load_config(None, run / CONFIG_FILE, {}).model_dump(mode="json"),
              "evaluations": history.evaluations, "steps": history.steps}  # fmt: skip
    text = as_markdown(result, path.name)
    print(text)
    save_report(path, result, text)
    curves = [Curve(name, *zip(*scores(history, kind), strict=True)) for kind, name in MASKS.items()]
    save_figure(
        curve_chart(curves, x="step", y="mIoU, %", size=(6.4, 3.6), x_limits=(0, 1.03 * arguments.steps),
                    y_limits=(0, 100)), path,
    )  # fmt: skip
    last = max((run / SAMPLES_FOLDER).glob("step_*.png"))
    shutil.copyfile(last, path.with_name(f"{path.name}-masks.png"))
    return 0


def recipe_flags(steps: int) -> dict[str, str]:
    """Return how the run differs from the demo preset: the same geometry in tokens, phases at the same shares."""
    first, second = steps // 8, 7 * steps // 20
    return {
        "steps": str(steps),
        "batch_size": "24",
        "mixed_precision": "bf16",
        "model.image_size": str(SIZE),
        "model.decoder_channels": "256",
        "contrast.local_crop_size": "64",
        "regularization.sigma_xy": "40",
        "optimizer.lr": "3e-4",
        "optimizer.warmup_steps": str(steps // 12),
        "phases": f"[{{from_step: 0, ptc: false, ctc: false, seg: false, reg: false}}, "
                  f"{{from_step: {first}, seg: false, reg: false}}, {{from_step: {second}}}]",
        "evaluation.every": str(steps // 4),
        "evaluation.max_images": "96",
        "evaluation.batch_size": "24",
    }  # fmt: skip


def scores(history: History, kind: str) -> list[tuple[int, float]]:
    """Return step and mIoU in per cent of each evaluation; of what is not trained yet too."""
    return [(line["step"], 100 * line["evaluation"][kind]["mean_iou"]) for line in history.evaluations]


def as_markdown(result: Mapping[str, Any], figure: str) -> str:
    """Return the table of scores over steps, with what they were measured on."""
    config, evaluations = result["config"], result["evaluations"]
    last = result["steps"][-1]
    rows = [
        [str(line["step"]), str(line["evaluation"]["num_images"]),
         *(percent(line['evaluation'][kind]['mean_iou']) for kind in MASKS)]
        for line in evaluations
    ]  # fmt: skip
    return "\n\n".join([
        f"# Convergence: {config['model']['backbone']} from random weights on the synthetic shapes",
        provenance_text(result),
        f"{config['steps']} steps of {config['batch_size']} images at {config['model']['image_size']} px took "
        f"{last['seconds']:.0f} s with the evaluations on the way. The segmentation is trained from step "
        f"{config['phases'][-1]['from_step']} on; CAMs are given the images' tags, the segmentation is not.",
        markdown_table(["step", "images", *(f"{name} mIoU, %" for name in MASKS.values())], rows),
        f"![mIoU over the steps]({figure}.png)",
        f"![Masks after the last step]({figure}-masks.png)",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("convergence")(main)(None))

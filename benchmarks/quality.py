"""What each part of the method is worth: the demo from a plain CAM to the full method, several seeds each.

    python -m benchmarks.quality --data demo/shapes --out demo/quality [--jobs 1] [--rows full no-contrast]

Each row is ``toco-train --preset demo`` with the weight of some losses set to 0. A run that was interrupted goes on
where it stopped, and a finished one is only checked to have the settings that are asked for.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.harness.provenance import provenance, provenance_text, save_report
from toco_core.charts import save_figure
from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_core.text import markdown_table
from toco_train.analysis.figures import similarity_chart
from toco_train.analysis.token_similarity import BlockSimilarity, run_subject, similarity_by_block
from toco_train.config import load_config
from toco_train.data.opening import open_source
from toco_train.runs.layout import CONFIG_FILE, METRICS_FILE
from toco_train.runs.load import load_run

SETTINGS = ("--evaluation.every", "1000000", "--checkpoint.every", "100")  # scored at the last step alone
_BATCH_SIZE = 12


@dataclass(frozen=True)
class Row:
    """A part of the method: what the table calls it, and which losses have weight 0."""

    title: str
    off: tuple[str, ...]


ROWS = {
    "plain": Row("plain CAM", ("ptc", "ctc", "seg", "reg")),
    "ptc": Row("+ PTC", ("ctc", "seg", "reg")),
    "ctc": Row("+ CTC", ("seg", "reg")),
    "seg": Row("+ segmentation, labels by PAR", ("reg",)),
    "full": Row("full (+ dense energy)", ()),
    "no-ptc": Row("full without PTC", ("ptc",)),
    "no-ctc": Row("full without CTC", ("ctc",)),
    "no-contrast": Row("full without PTC and CTC", ("ptc", "ctc")),
}
LADDER = ("plain", "ptc", "ctc", "seg", "full")

SCORES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "CAM mIoU, %": lambda e: 100 * e["cam"]["mean_iou"],
    "aux CAM mIoU, %": lambda e: 100 * e["aux_cam"]["mean_iou"],
    "segmentation mIoU, %": lambda e: 100 * e["seg"]["mean_iou"],
    "token similarity": lambda e: e["token_similarity"],
}
_SEGMENTATION, _SIMILARITY = "segmentation mIoU, %", "token similarity"


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        evaluation: Scores after the last step, as ``metrics.jsonl`` holds them.
        blocks: Similarity of patch tokens after each block, on the validation split.
    """

    evaluation: Mapping[str, Any]
    blocks: BlockSimilarity


def main(argv: Sequence[str] | None = None) -> int:
    """Train every row with every seed, and write table, figure and numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data set of toco-shapes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (a small network leaves a GPU mostly idle)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(LADDER), help="parts of the method")
    parser.add_argument("--train-flags", default="", help="further flags for toco-train, as one string")
    parser.add_argument("--report", type=Path, help="where it goes, without suffix; default: the date in results/")
    arguments = parser.parse_args(argv)
    flags = shlex.split(arguments.train_flags)
    tasks = [(row, seed) for row in arguments.rows for seed in range(arguments.seeds)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        begin = partial(train, arguments.data, arguments.out, flags=flags)
        pending = pool.map(begin, *zip(*tasks, strict=True))
        runs = list(track(pending, "training", total=len(tasks), console=Console(stderr=True)))
    outcomes: dict[str, list[Outcome]] = {row: [] for row in arguments.rows}
    for (row, _), run in track(list(zip(tasks, runs, strict=True)), "measuring", console=Console(stderr=True)):
        outcomes[row].append(outcome(run, ROWS[row].title))
    origin = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "benchmarks.quality", argv)
    path = arguments.report or Path(__file__).parent / "results" / f"{datetime.now(timezone.utc):%Y-%m-%d}-quality"
    text = report(outcomes, origin, f"{path.name}.png")
    print(text)
    save_report(path, {**origin, "config": _config(runs[0]), "rows": _numbers(outcomes)}, text)
    save_figure(similarity_chart([_together(found) for found in outcomes.values()]), path)
    return 0


def train(data: Path, out: Path, row: str, seed: int, *, flags: Sequence[str]) -> Path:
    """Train one run, from where it stands, and return its folder.

    Raises:
        TocoError: The training failed, was stopped, or the folder holds a run of other settings.
    """
    run = out / f"{row}-seed{seed}"
    off = [word for name in ROWS[row].off for word in (f"--weights.{name}", "0")]
    command = [sys.executable, "-m", "toco_train", "--resume", "--preset", "demo", "--data", str(data), "--out",
               str(run), "--seed", str(seed), *SETTINGS, *off, *flags]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise TocoError(f"{shlex.join(command)} ended with {finished.returncode}: {finished.stderr.strip()[-300:]}")
    return run


def outcome(run: Path, title: str) -> Outcome:
    """Read the last evaluation of a finished run, and measure the similarity of its tokens by block.

    Raises:
        TocoError: The run was stopped before its last evaluation.
    """
    config = load_config(None, run / CONFIG_FILE, {})
    lines = (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1]) if lines else {}
    if "evaluation" not in last:
        raise TocoError(f"the run {run} was stopped before its end: run the same command again to go on")
    model = load_run(run, device="auto")
    samples = open_source(config.data, seed=config.seed).val
    subject = run_subject(model, title, config.cam.scales)
    return Outcome(last["evaluation"], similarity_by_block(subject, samples, _BATCH_SIZE))


def report(outcomes: Mapping[str, Sequence[Outcome]], origin: Mapping[str, Any], figure: str) -> str:
    """Return means, spreads and each run's scores in Markdown, with what they were measured on."""
    means = [
        [ROWS[row].title, _losses(row), *(_spread(name, _values(name, row, found)) for name in SCORES)]
        for row, found in outcomes.items()
    ]
    runs = [
        [ROWS[row].title, str(seed), *(_cell(name, _values(name, row, [one])) for name in SCORES)]
        for row, found in outcomes.items()
        for seed, one in enumerate(found)
    ]
    num_images = next(iter(outcomes.values()))[0].evaluation["num_images"]
    return "\n\n".join([
        "# Quality of each part of the method",
        provenance_text(origin),
        f"`toco-train --preset demo` with the losses named, scored on {num_images} validation images; mean ± standard "
        "deviation over seeds. A plus adds to the row above. CAMs are given the images' tags, the segmentation is not, "
        "and it has no score where nothing trains it. Token similarity is the mean pairwise |cosine| of final patch "
        "tokens, and the figure shows it after each block, the mean over all seeds.",
        markdown_table(["row", "losses", *SCORES], means),
        f"![Similarity of patch tokens after each block]({figure})",
        "## Each run",
        markdown_table(["row", "seed", *SCORES], runs),
    ])  # fmt: skip


def _losses(row: str) -> str:
    return ", ".join(name for name in ("cls", "aux_cls", "ptc", "ctc", "seg", "reg") if name not in ROWS[row].off)


def _values(name: str, row: str, found: Sequence[Outcome]) -> list[float]:
    """Return a score of each run; none where the row does not train what it scores."""
    if name == _SEGMENTATION and "seg" in ROWS[row].off:
        return []
    return [SCORES[name](one.evaluation) for one in found]


def _cell(name: str, values: Sequence[float]) -> str:
    return f"{mean(values):.{_digits(name)}f}" if values else "-"


def _spread(name: str, values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.{_digits(name)}f}" if len(values) > 1 else ""
    return _cell(name, values) + spread


def _digits(name: str) -> int:
    return 3 if name == _SIMILARITY else 1


def _together(found: Sequence[Outcome]) -> BlockSimilarity:
    """Return the similarity of all runs of a row, as of one network."""
    return BlockSimilarity(found[0].blocks.name, np.concatenate([one.blocks.values for one in found]))


def _numbers(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    return {
        row: {
            "title": ROWS[row].title,
            "weights_off": ROWS[row].off,
            "seeds": [{"evaluation": one.evaluation, "similarity_by_block": one.blocks.mean.tolist()} for one in found],
        }
        for row, found in outcomes.items()
    }


def _config(run: Path) -> dict[str, Any]:
    """Return the resolved configuration of the first run; the others differ in seed and weights alone."""
    return load_config(None, run / CONFIG_FILE, {}).model_dump(mode="json")


if __name__ == "__main__":
    sys.exit(run_command("quality")(main)(None))

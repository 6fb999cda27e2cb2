"""The command ``toco-report``: write the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from toco_core.cli import CommandParser, run_command
from toco_train.commands.data_flags import add_data_flags
from toco_train.commands.display import progress_bars
from toco_train.config import load_config
from toco_train.data.source import with_masks
from toco_train.evaluation.evaluate import evaluate
from toco_train.reports.run_report import write_report
from toco_train.runs.layout import CONFIG_FILE, REPORT_FILE
from toco_train.runs.load import load_run
from toco_train.runs.source import open_run_source

PROG = "toco-report"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-report``."""
    parser = CommandParser(
        PROG,
        f"Write {REPORT_FILE} into a run folder, as toco-train does at its end: curves, scores, images, time and "
        "settings, in one page that needs no network. The network is scored anew where images have masks.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train")
    add_data_flags(parser)
    arguments = parser.parse_args(argv)
    model = load_run(arguments.run).to("cuda" if torch.cuda.is_available() else "cpu")
    config = load_config(None, arguments.run / CONFIG_FILE, {})
    source = open_run_source(
        config, arguments.run, arguments.data, no_class=arguments.no_class, group_by=arguments.group_by
    )
    console, evaluation = Console(), None
    if samples := with_masks(source.val):
        with progress_bars(console) as progress:
            task = progress.add_task("evaluating", total=len(samples))
            evaluation = evaluate(
                model,
                samples,
                scales=config.cam.scales,
                background_threshold=config.cam.background,
                batch_size=config.evaluation.batch_size,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    path = write_report(arguments.run, model, config, source, evaluation)
    console.print(f"[bold]report[/] {path}", highlight=False, soft_wrap=True)
    return 0

"""The command ``toco-report``: write the report of a run."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from toco_core.cli import CommandParser, progress_bars, run_command
from toco_core.flags import given_settings
from toco_train.commands.data_flags import add_data_flags
from toco_train.config import DataConfig, load_config
from toco_train.runs.layout import CONFIG_FILE, REPORT_FILE

PROG = "toco-report"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-report``."""
    parser = CommandParser(
        PROG,
        f"Write {REPORT_FILE} into a run folder, as toco-train does at its end: one page with curves, scores, images, "
        "times and settings, which needs no network. Where images have masks, the network is scored again.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train")
    add_data_flags(parser)
    arguments = parser.parse_args(argv)
    from toco_train.data.source import with_masks
    from toco_train.evaluation.evaluate import evaluate
    from toco_train.reports.run_report import write_report
    from toco_train.runs.load import load_run
    from toco_train.runs.source import open_run_source

    model = load_run(arguments.run, device="auto")
    config = load_config(None, arguments.run / CONFIG_FILE, {})
    source = open_run_source(config, arguments.run, given_settings(arguments, DataConfig))
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

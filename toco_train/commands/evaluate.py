"""The command ``toco-eval``: score the masks of a run."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toco_core.cli import CommandParser, progress_bars, run_command
from toco_core.config import parse_config
from toco_core.files import make_output_folder
from toco_core.flags import add_setting, given_settings
from toco_train.commands.data_flags import add_data_flags
from toco_train.commands.display import evaluation_table
from toco_train.config import PROTOCOLS, DataConfig, SegmentConfig, load_config
from toco_train.runs.layout import CONFIG_FILE, EVALUATION_FOLDER

if TYPE_CHECKING:
    from toco_train.reports.evaluation_report import EvaluationReport

PROG = "toco-eval"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-eval``."""
    arguments = _parse(argv)
    values = PROTOCOLS[arguments.protocol].model_dump() | given_settings(arguments, SegmentConfig)
    segment = parse_config(SegmentConfig, values, "the command line")
    from toco_train.evaluation.evaluate import evaluate
    from toco_train.method.crf import require_crf
    from toco_train.reports.evaluation_report import EvaluationReport
    from toco_train.runs.load import load_run
    from toco_train.runs.source import open_run_source

    if arguments.crf:
        require_crf()
    model = load_run(arguments.run, device="auto")
    config = load_config(None, arguments.run / CONFIG_FILE, {})
    source = open_run_source(config, arguments.run, given_settings(arguments, DataConfig))
    folder = arguments.out or arguments.run / EVALUATION_FOLDER
    make_output_folder(folder)
    console = Console()
    with progress_bars(console) as progress:
        task = progress.add_task("evaluating", total=None)
        evaluation = evaluate(
            model,
            source.train if arguments.split == "train" else source.val,
            scales=config.cam.scales,
            background_threshold=config.cam.background,
            segment=segment,
            crf=arguments.crf,
            batch_size=config.evaluation.batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    report = EvaluationReport(
        evaluation,
        run=arguments.run.resolve(),
        data=source.path,
        split=arguments.split,
        classes=source.classes,
        cam_scales=config.cam.scales,
        background=config.cam.background,
        segment=segment,
        sizes=() if segment.own_size else model.sizes,
        crf=arguments.crf,
    )
    paths = report.write(folder)
    _show(console, report, paths)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        PROG,
        "Score the masks of a run on data with ground-truth masks, at the images' own size: IoU, boundary IoU and "
        "pixel accuracy of CAM, auxiliary CAM and segmentation, F1 and average precision of the class heads.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train")
    add_data_flags(parser)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images")
    parser.add_argument("--crf", action="store_true", help="refine all masks with a dense CRF; needs the extra 'crf'")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"report folder (default: RUN/{EVALUATION_FOLDER})")
    test_time = parser.add_argument_group("test time")
    test_time.add_argument(
        "--protocol", choices=tuple(PROTOCOLS), default="served", help="served: the network sees an image as the "
        "served model does, at the nearest of the run's sizes; published: at the image's own size, rounded to patches, "
        "segmented at scales 1 1.25 1.5 with flips, as in the paper",
    )  # fmt: skip
    for name in ("scales", "flip"):
        add_setting(test_time, SegmentConfig, name, default="the protocol's")
    return parser.parse_args(argv)


def _show(console: Console, report: EvaluationReport, paths: Sequence[Path]) -> None:
    """Print the scores of each class, the means, notes on their meaning, and the report's files."""
    from toco_train.reports.evaluation_report import head_rows, mask_rows

    console.print(evaluation_table(report.evaluation, report.classes))
    masks = _table("mask", "mIoU %", "boundary mIoU %", "pixel accuracy %")
    heads = _table("class head", "mAP %", "mean F1 %")
    for table, rows in ((masks, mask_rows(report.evaluation)), (heads, head_rows(report.evaluation))):
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in report.notes():
        name, colon, text = note.partition(": ")
        console.print(Padding(Text.assemble((name, "bold"), colon, text), (0, 1)))
    console.print(f"\n[bold]report[/] {'  '.join(map(str, paths))}", highlight=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, min_width=20)
    for name in others:
        table.add_column(name, justify="right")
    return table

"""The command ``toco-eval``: score the masks of a run."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from toco_core.cli import CommandParser, run_command
from toco_core.config import parse_config
from toco_core.errors import RunError
from toco_core.text import percent
from toco_train.commands.data_flags import add_data_flags
from toco_train.commands.display import progress_bars
from toco_train.config import load_config
from toco_train.evaluation.evaluate import Evaluation, evaluate
from toco_train.inference.predict import LARGEST_SCALE, PROTOCOLS, SMALLEST_SCALE, SegmentConfig
from toco_train.method.crf import require_crf
from toco_train.reports.evaluation_report import EvaluationReport, head_rows, mask_rows
from toco_train.runs.layout import CONFIG_FILE, EVALUATION_FOLDER
from toco_train.runs.load import load_run
from toco_train.runs.source import open_run_source

PROG = "toco-eval"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-eval``."""
    parser = CommandParser(
        PROG,
        "Score the masks of a run on data with ground-truth masks, at the images' own size: IoU, boundary IoU and "
        "pixel accuracy of CAM, auxiliary CAM and segmentation, F1 and average precision of the class heads.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train")
    add_data_flags(parser)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images")
    parser.add_argument(
        "--protocol", choices=tuple(PROTOCOLS), default="served", help="served: the network sees an image as the "
        "served model does, at the nearest of the run's sizes; published: at the image's own size, rounded to patches, "
        "segmented at scales 1 1.25 1.5 with flips, as in the paper",
    )  # fmt: skip
    parser.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="scales of the segmentation, "
        f"{SMALLEST_SCALE:g} to {LARGEST_SCALE:g} times the size that an image is seen at (default: the protocol's)",
    )  # fmt: skip
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="segment each scale flipped, too (default: the protocol's)",
    )
    parser.add_argument("--crf", action="store_true", help="refine all masks by a dense CRF (extra crf)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"where the report goes; default: RUN/{EVALUATION_FOLDER}"
    )
    arguments = parser.parse_args(argv)
    flags = {"scales": arguments.scales, "flip": arguments.flip}
    given = {name: value for name, value in flags.items() if value is not None}
    segment = parse_config(SegmentConfig, PROTOCOLS[arguments.protocol].model_dump() | given, "the test-time setting")
    if arguments.crf:
        require_crf()
    model = load_run(arguments.run)
    config = load_config(None, arguments.run / CONFIG_FILE, {})
    source = open_run_source(
        config, arguments.run, arguments.data, no_class=arguments.no_class, group_by=arguments.group_by
    )
    folder = arguments.out or arguments.run / EVALUATION_FOLDER
    _make(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
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


def _make(folder: Path) -> None:
    """Make the folder of the report: if it cannot be written, the user hears of it before the work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); give another --out") from error


def _show(console: Console, report: EvaluationReport, paths: Sequence[Path]) -> None:
    """Print each class, then the means, then what they mean and where they were written."""
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


def evaluation_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """Return IoU and average precision of every class as a table, in per cent, at most 80 columns wide."""
    table = Table(title=f"IoU in %, {evaluation.num_images} images", box=box.SIMPLE_HEAD)
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=20)
    for name in ("IoU\nCAM", "IoU\naux CAM", "IoU\nsegm.", "boundary\nsegm.", "AP of\nhead", "AP of\naux head"):
        table.add_column(name, justify="right", no_wrap=True)
    masks, heads = (evaluation.cam, evaluation.aux_cam, evaluation.seg), (evaluation.cls, evaluation.aux_cls)
    for label, name in enumerate(("background", *classes)):
        values = [scores.iou[label] for scores in masks] + [evaluation.seg.boundary_iou[label]]
        values += [head.average_precision[label - 1] if label else math.nan for head in heads]
        table.add_row(Text(name), *map(percent, values))
    table.add_section()
    means = [scores.mean_iou for scores in masks] + [evaluation.seg.mean_boundary_iou]
    means += [head.mean_average_precision for head in heads]
    table.add_row("mean", *map(percent, means), style="bold")
    return table

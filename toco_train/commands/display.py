"""How training and scores are shown on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from toco_core.cli import progress_bars
from toco_core.text import percent

if TYPE_CHECKING:
    import torch

    from toco_train.data.source import DataSource
    from toco_train.evaluation.evaluate import Evaluation
    from toco_train.training.checkpoint import Progress


class TrainingDisplay:
    """Shows a run on the terminal: progress with ETA, losses, and mIoU at each evaluation."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._bars = progress_bars(console)
        self._steps = self._bars.add_task("training", total=steps)
        self._evaluation = self._bars.add_task("evaluating", total=None, visible=False)
        self._losses = Text(style="dim")
        self._live = Live(Group(self._bars, self._losses), console=console, refresh_per_second=4)
        self.evaluation: Evaluation | None = None
        self.source: DataSource | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()
        if self.source is not None and not self._console.is_terminal:
            self._console.print()  # Live does not end its last line

    def started(self, source: DataSource, device: torch.device, progress: Progress) -> None:
        """Print the data, the device, and the step that training starts from."""
        self.source = source
        self._bars.reset(self._steps, completed=progress.step)  # else ETA counts them as made now
        self._console.print(
            f"{source.kind} data {source.path}: {len(source.train)} images to train on, {len(source.val)} to validate, "
            f"{len(source.classes)} classes ({', '.join(source.classes)}); device {device}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self._console.print(source.description, style="dim", highlight=False, markup=False, soft_wrap=True)
        for notice in source.notices:
            self._console.print(f"warning: {notice}", style="yellow", highlight=False, markup=False, soft_wrap=True)
        if progress.step:
            self._console.print(f"going on from the checkpoint of step {progress.step}", highlight=False)
        self._live.start()

    def stepped(self, step: int, losses: dict[str, float] | None) -> None:
        """Move the bar."""
        self._bars.update(self._steps, completed=step)
        if losses is not None:
            self._losses.plain = "loss  " + "  ".join(f"{name} {value:.3f}" for name, value in losses.items())

    def evaluating(self, done: int, total: int) -> None:
        """Move the evaluation's bar."""
        self._bars.update(self._evaluation, completed=done, total=total, visible=done < total)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the scores."""
        self.evaluation = evaluation
        self._console.print(
            f"step {step:>6}  mIoU: CAM {evaluation.cam.mean_iou:.3f}  aux CAM {evaluation.aux_cam.mean_iou:.3f}  "
            f"segmentation {evaluation.seg.mean_iou:.3f}  ({evaluation.num_images} images)",
            highlight=False,
        )


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

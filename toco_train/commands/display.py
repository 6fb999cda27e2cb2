"""How a run shows on the terminal."""

from __future__ import annotations

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from toco_train.data.source import DataSource
from toco_train.evaluation.evaluate import Evaluation
from toco_train.training.checkpoint import Progress


def progress_bars(console: Console) -> Bars:
    """Return bars with count, time so far and time to go."""
    return Bars(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )


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
            self._console.print()  # Live leaves the last line open

    def started(self, source: DataSource, device: torch.device, progress: Progress) -> None:
        """Say what is trained on what, and from where on."""
        self.source = source
        self._bars.reset(self._steps, completed=progress.step)  # else ETA counts them as made now
        self._console.print(
            f"{source.kind} data {source.path}: {len(source.train)} images to train on, {len(source.val)} to validate, "
            f"{len(source.classes)} classes ({', '.join(source.classes)}); device {device}",
            highlight=False,
            soft_wrap=True,
        )
        self._console.print(source.description, style="dim", highlight=False, soft_wrap=True)
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

"""Who is told how a run goes."""

from __future__ import annotations

from typing import Protocol

import torch

from toco_train.data.source import DataSource
from toco_train.evaluation.evaluate import Evaluation
from toco_train.training.checkpoint import Progress


class TrainingCallback(Protocol):
    """Is called by the loop; the command shows a run on the terminal this way."""

    def started(self, source: DataSource, device: torch.device, progress: Progress) -> None:
        """Training is about to start, or to continue from a checkpoint."""

    def stepped(self, step: int, losses: dict[str, float] | None) -> None:
        """A step is done; its losses are given every ``log_every`` steps."""

    def evaluating(self, done: int, total: int) -> None:
        """An evaluation has scored ``done`` of ``total`` images."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation is done."""

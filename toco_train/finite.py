"""The check that stops a run before a number that is not finite can reach the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from toco.errors import TrainingError
from toco_train.data.loading import Batch
from toco_train.distributed import gathered, global_mean, rank
from toco_train.run_folder import RunFolder
from toco_train.step import Losses

_NAMES_IN_A_SENTENCE = 12
_LEAST_SCALE = 1.0


@dataclass(frozen=True)
class Measurement:
    """What a step is, on the host and the same in every process.

    Attributes:
        losses: Mean of each loss over micro-batches and processes, unweighted but for ``total``.
        gradient_norm: Euclidean norm of the gradient of the total.
    """

    losses: dict[str, float]
    gradient_norm: float

    @property
    def losses_are_finite(self) -> bool:
        """Whether every loss is a number."""
        return all(math.isfinite(loss) for loss in self.losses.values())


def measure(accelerator: Accelerator, parameters: Iterable[nn.Parameter], losses: Sequence[Losses]) -> Measurement:
    """Bring the losses of a step's micro-batches and the norm of their gradient to the host.

    This is the one time in a step that the host waits for the device: whether the optimiser may touch the weights is
    known only when the backward pass is through.
    """
    own = torch.stack([torch.stack([loss.total, *loss.parts.values()]) for loss in losses]).mean(dim=0)
    accelerator.unscale_gradients()  # of fp16; with any other precision there is nothing to undo
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    *values, gradient_norm = torch.cat([global_mean(own), norm[None]]).tolist()
    return Measurement(dict(zip(("total", *losses[0].parts), values, strict=True)), gradient_norm)


def refuse_what_is_not_finite(
    measurement: Measurement,
    step: int,
    *,
    micro_batches: Sequence[Batch],
    losses: Sequence[Losses],
    scaler: torch.amp.GradScaler | None,
    run: RunFolder,
    classes: Sequence[str],
) -> None:
    """Stop if a loss or the gradient is not finite, and keep the images that made it.

    A gradient that overflows in fp16 is let through: the scaler skips that step and takes a smaller scale for the
    next, until it has none left.

    Raises:
        TrainingError: A loss or the gradient is not finite; the weights were not touched.
        RunError: The images cannot be written.
    """
    if measurement.losses_are_finite:
        if math.isfinite(measurement.gradient_norm):
            return
        if scaler is not None and scaler.get_scale() > _LEAST_SCALE:
            return
        what, suspects = "the gradient", list(micro_batches)
    else:
        pairs = zip(micro_batches, losses, strict=True)
        what, suspects = "a loss", [batch for batch, loss in pairs if not math.isfinite(loss.total)]
    if suspects:
        run.save_batches(step, rank(), suspects, classes)
    names = [name for names in gathered([[n for batch in suspects for n in batch.names]]) for name in names]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in measurement.losses.items())
    raise TrainingError(
        f"{what} is not finite at step {step} ({shown}), and the weights were not touched: look at its images "
        f"({_listed(names)}) in {run.nonfinite_folder}, or begin again with a lower optimizer.lr"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_IN_A_SENTENCE
    return ", ".join(names[:_NAMES_IN_A_SENTENCE]) + (f" and {more} more" if more > 0 else "")

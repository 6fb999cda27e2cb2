"""Stops training before a non-finite value reaches the weights, without making the host wait for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from toco_core.errors import TrainingError
from toco_core.text import listed
from toco_train.data.classes import ClassList
from toco_train.data.loader import Batch
from toco_train.distributed import gathered, global_mean, rank
from toco_train.method.objective import Losses
from toco_train.training.run_folder import RunFolder

_NAMES_IN_A_SENTENCE = 12
_LEAST_SCALE = 1.0


class Measurement:
    """The numbers of a step, the same in every process, while they are copied to the host in the background.

    Args:
        names: Names of the losses.
        numbers: Mean of each loss over micro-batches and processes (only ``total`` is weighted), then the Euclidean
            norm of the total's gradient: float ``[L + 1]``, on the device.
    """

    def __init__(self, names: Sequence[str], numbers: Tensor) -> None:
        self.is_nonfinite = 1 - numbers.isfinite().all().float()
        """1 if a number is not finite, else 0: a scalar on the device."""
        self._names = tuple(names)
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> tuple[dict[str, float], float]:
        """Return the losses and the gradient's norm; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *losses, gradient_norm = self._numbers.tolist()
        return dict(zip(self._names, losses, strict=True)), gradient_norm


def measure(accelerator: Accelerator, parameters: Iterable[nn.Parameter], losses: Sequence[Losses]) -> Measurement:
    """Measure the losses of a step's micro-batches and the norm of their gradient, without waiting for the device."""
    own = torch.stack([torch.stack([loss.total, *loss.parts.values()]) for loss in losses]).mean(dim=0)
    accelerator.unscale_gradients()  # for fp16; does nothing at any other precision
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return Measurement(("total", *losses[0].parts), torch.cat([global_mean(own), norm[None]]))


@dataclass(frozen=True)
class PendingStep:
    """A step whose numbers the host has not read yet."""

    step: int
    learning_rate: float
    measurement: Measurement
    micro_batches: Sequence[Batch]
    losses: Sequence[Losses]


def skip_nonfinite_update(optimizer: Optimizer, measurement: Measurement) -> None:
    """Make a fused optimiser's next step change nothing if the measurement is not finite.

    The device decides, so the host does not wait for the numbers: where ``found_inf`` is 1 the optimiser leaves weights
    and moments as they are. ``GradScaler`` skips a step in the same way.
    """
    setattr(optimizer, "found_inf", measurement.is_nonfinite)  # noqa: B010  (not a declared attribute)


def raise_if_nonfinite(
    pending: PendingStep, *, scaler: torch.amp.GradScaler | None, run: RunFolder, class_list: ClassList
) -> tuple[dict[str, float], float]:
    """Return the losses and the gradient's norm of a step; if one is not finite, save its images and stop.

    A gradient that overflows in fp16 is accepted: the scaler skips that step and lowers its scale for the next, until
    the scale cannot be lowered.

    Raises:
        TrainingError: A loss or the gradient is not finite; the weights were not changed.
        RunError: The images cannot be written.
    """
    losses, gradient_norm = pending.measurement.read()
    if all(math.isfinite(loss) for loss in losses.values()):
        if math.isfinite(gradient_norm) or (scaler is not None and scaler.get_scale() > _LEAST_SCALE):
            return losses, gradient_norm
        what, suspects = "the gradient", list(pending.micro_batches)
    else:
        pairs = zip(pending.micro_batches, pending.losses, strict=True)
        what, suspects = "a loss", [batch for batch, loss in pairs if not math.isfinite(loss.total)]
    if suspects:
        run.save_batches(pending.step, rank(), suspects, class_list)
    names = [name for names in gathered([[n for batch in suspects for n in batch.names]]) for name in names]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise TrainingError(
        f"{what} is not finite at step {pending.step} ({shown}), and the weights were not touched: look at its images "
        f"({listed(names, _NAMES_IN_A_SENTENCE)}) in {run.nonfinite_folder}, or begin again with a lower optimizer.lr"
    )

"""What stops a run before a number that is not finite can reach the weights, without making the host wait for it."""

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
    """What a step is, the same in every process; on its way to the host, which can go on until it reads it.

    Args:
        names: Names of the losses.
        numbers: Mean of each loss over micro-batches and processes, unweighted but for ``total``, and last the
            Euclidean norm of the gradient of the total: float ``[L + 1]``, on the device.
    """

    def __init__(self, names: Sequence[str], numbers: Tensor) -> None:
        self.has_gone_wrong = 1 - numbers.isfinite().all().float()
        """1 if a number is not finite, else 0: a scalar on the device."""
        self._names = tuple(names)
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> tuple[dict[str, float], float]:
        """Return the losses and the gradient's norm, as soon as they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        *losses, gradient_norm = self._numbers.tolist()
        return dict(zip(self._names, losses, strict=True)), gradient_norm


def measure(accelerator: Accelerator, parameters: Iterable[nn.Parameter], losses: Sequence[Losses]) -> Measurement:
    """Take the losses of a step's micro-batches and the norm of their gradient, without waiting for the device."""
    own = torch.stack([torch.stack([loss.total, *loss.parts.values()]) for loss in losses]).mean(dim=0)
    accelerator.unscale_gradients()  # of fp16; with any other precision there is nothing to undo
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return Measurement(("total", *losses[0].parts), torch.cat([global_mean(own), norm[None]]))


@dataclass(frozen=True)
class PendingStep:
    """A step that was taken, but whose numbers the host has not seen."""

    step: int
    learning_rate: float
    measurement: Measurement
    micro_batches: Sequence[Batch]
    losses: Sequence[Losses]


def forbid_update(optimizer: Optimizer, measurement: Measurement) -> None:
    """Keep a fused optimiser's next step from touching the weights if the measurement is not finite.

    The device decides, so the host need not wait for the numbers before it goes on: where ``found_inf`` is 1 the
    optimiser leaves weights and moments alone, which is how ``GradScaler`` skips a step.
    """
    setattr(optimizer, "found_inf", measurement.has_gone_wrong)  # noqa: B010  (not a declared attribute)


def raise_if_nonfinite(
    taken: PendingStep, *, scaler: torch.amp.GradScaler | None, run: RunFolder, class_list: ClassList
) -> tuple[dict[str, float], float]:
    """Return the losses and the gradient's norm of a step; stop if one is not finite, and keep the images that made it.

    A gradient that overflows in fp16 is let through: the scaler skips that step and takes a smaller scale for the
    next, until it has none left.

    Raises:
        TrainingError: A loss or the gradient is not finite; the weights were not touched.
        RunError: The images cannot be written.
    """
    losses, gradient_norm = taken.measurement.read()
    if all(math.isfinite(loss) for loss in losses.values()):
        if math.isfinite(gradient_norm) or (scaler is not None and scaler.get_scale() > _LEAST_SCALE):
            return losses, gradient_norm
        what, suspects = "the gradient", list(taken.micro_batches)
    else:
        pairs = zip(taken.micro_batches, taken.losses, strict=True)
        what, suspects = "a loss", [batch for batch, loss in pairs if not math.isfinite(loss.total)]
    if suspects:
        run.save_batches(taken.step, rank(), suspects, class_list)
    names = [name for names in gathered([[n for batch in suspects for n in batch.names]]) for name in names]
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise TrainingError(
        f"{what} is not finite at step {taken.step} ({shown}), and the weights were not touched: look at its images "
        f"({listed(names, _NAMES_IN_A_SENTENCE)}) in {run.nonfinite_folder}, or begin again with a lower optimizer.lr"
    )

"""The learning rate over a run: a linear warm-up, then a polynomial decay."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from toco_train.config import OptimizerConfig


def warmup_poly(step: int, *, steps: int, warmup_steps: int, warmup_ratio: float, power: float) -> float:
    """Return the factor of the learning rate that a step (from 0) uses.

    Linear from ``warmup_ratio`` to 1 over the warm-up, and then, as published, the value of
    ``(1 - step / steps) ** power`` as if the decay had run from step 0.
    """
    if step < warmup_steps:
        return 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return float(max(0.0, 1 - step / steps) ** power)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int) -> LRScheduler:
    """Return the schedule of a run of ``steps`` steps; the warm-up is at most a tenth of it."""
    warmup_steps = min(config.warmup_steps, steps // 10)
    return LambdaLR(
        optimizer,
        lambda step: warmup_poly(
            step, steps=steps, warmup_steps=warmup_steps, warmup_ratio=config.warmup_ratio, power=config.power
        ),
    )

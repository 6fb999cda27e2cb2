"""AdamW with larger steps for the heads, and the warm-up-then-poly learning rate."""

from __future__ import annotations

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from toco_train.config import OptimizerConfig
from toco_train.models.toco import ToCo


def build_optimizer(model: ToCo, config: OptimizerConfig) -> Optimizer:
    """Return fused AdamW: the backbone at the base rate, everything else at ``head_lr_factor`` times it."""
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    inside = {id(p) for p in model.backbone.parameters()}
    heads = [p for p in model.parameters() if p.requires_grad and id(p) not in inside]
    groups = [
        {"params": backbone, "lr": config.lr},
        {"params": heads, "lr": config.lr * config.head_lr_factor},
    ]
    return AdamW(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def warmup_poly(step: int, *, steps: int, warmup_steps: int, warmup_ratio: float, power: float) -> float:
    """Return the factor of the learning rate that a step (from 0) uses.

    Linear from ``warmup_ratio`` to 1 over the warm-up, and then, as published, the value of
    ``(1 - step / steps) ** power`` as if the decay had run from step 0.
    """
    if step < warmup_steps:
        return 1 - (1 - step / warmup_steps) * (1 - warmup_ratio)
    return float(max(0.0, 1 - step / steps) ** power)


def build_schedule(optimizer: Optimizer, config: OptimizerConfig, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the schedule of a run of ``steps`` steps; the warm-up is at most a tenth of it."""
    warmup_steps = min(config.warmup_steps, steps // 10)
    return LambdaLR(
        optimizer,
        lambda step: warmup_poly(
            step, steps=steps, warmup_steps=warmup_steps, warmup_ratio=config.warmup_ratio, power=config.power
        ),
    )

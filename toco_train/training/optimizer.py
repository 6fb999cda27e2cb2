"""AdamW with a larger learning rate for the heads."""

from __future__ import annotations

from torch.optim import AdamW, Optimizer

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

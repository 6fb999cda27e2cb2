"""The projection head of the class-token contrast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class ProjectionHead(nn.Module):
    """Project class tokens, float ``[..., D]``, to the space of the contrast, float ``[..., K]`` (K = 1024).

    Each of the K outputs is the dot product of a unit vector with a weight vector whose magnitude is fixed at 1,
    so it lies in [-1, 1].

    Source: the DINO head as ToCo uses it (docs/method.md, network).
    """

    def __init__(self, in_dim: int, *, hidden_dim: int = 2048, bottleneck_dim: int = 256, out_dim: int = 1024) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        magnitude = self.last_layer.parametrizations["weight"].original0
        magnitude.data.fill_(1.0)
        magnitude.requires_grad_(False)

    def forward(self, cls_tokens: Tensor) -> Tensor:
        """Return the projections of class tokens."""
        projected: Tensor = self.last_layer(F.normalize(self.mlp(cls_tokens), dim=-1))
        return projected

    @torch.no_grad()
    def ema_update(self, student: ProjectionHead, momentum: float) -> None:
        """Make this head the exponential moving average of another: ``self = momentum * self + (1 - m) * student``."""
        for own, other in zip(self.parameters(), student.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)

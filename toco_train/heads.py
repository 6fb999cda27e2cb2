"""What sits on the backbone: the segmentation decoder and the projection head of the class-token contrast."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class LargeFOV(nn.Module):
    """Segmentation decoder with a large field of view: two dilated 3x3 convolutions and a 1x1 classifier, bias-free.

    Takes patch tokens, float ``[B, D, h, w]``; returns logits, float ``[B, C + 1, h, w]``, background first.

    Source: DeepLab-LargeFOV as in ToCo (METHOD.md, network).
    """

    def __init__(self, in_channels: int, num_labels: int, *, channels: int = 512, dilation: int = 5) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv7 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv8 = nn.Conv2d(channels, num_labels, 1, bias=False)
        for conv in (self.conv6, self.conv7, self.conv8):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, tokens: Tensor) -> Tensor:
        """Return segmentation logits at the tokens' stride."""
        # Tokens lie channel by channel for each place already; convolutions keep that layout, and GPUs prefer it.
        hidden = F.relu(self.conv6(tokens.contiguous(memory_format=torch.channels_last)))
        hidden = F.relu(self.conv7(hidden))
        logits: Tensor = self.conv8(hidden)
        return logits


class ProjectionHead(nn.Module):
    """Project class tokens, float ``[..., D]``, to the space of the contrast, float ``[..., K]`` (K = 1024).

    Each of the K outputs is the dot product of a unit vector with a weight vector whose magnitude is fixed at 1,
    so it lies in [-1, 1].

    Source: the DINO head as ToCo uses it (METHOD.md, network).
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
    def move_towards(self, student: ProjectionHead, momentum: float) -> None:
        """Make this head the exponential moving average of another: ``self = momentum * self + (1 - m) * student``."""
        for own, other in zip(self.parameters(), student.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)

"""The segmentation decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LargeFOV(nn.Module):
    """Segmentation decoder with a large field of view: two dilated 3x3 convolutions and a 1x1 classifier, bias-free.

    Takes patch tokens, float ``[B, D, h, w]``; returns logits, float ``[B, C + 1, h, w]``, background first.

    Source: DeepLab-LargeFOV as in ToCo (docs/method.md, network).
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
        # The tokens are channels last in memory already; convolutions keep that layout, and are faster with it on GPUs.
        hidden = F.relu(self.conv6(tokens.contiguous(memory_format=torch.channels_last)))
        hidden = F.relu(self.conv7(hidden))
        logits: Tensor = self.conv8(hidden)
        return logits

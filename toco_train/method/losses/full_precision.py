"""Losses are computed in float32, also under autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute a loss in float32 even under autocast: its terms nearly cancel, or are small compared with 1."""

    @functools.wraps(loss)
    def compute(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return compute

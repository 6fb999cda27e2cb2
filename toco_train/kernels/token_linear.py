"""The linear layers of a ViT, computed on a CPU by the faster of PyTorch's two libraries."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST_PRODUCT = 200_000_000  # multiply-adds; below it, reordering the weights costs more than is gained


class TokenLinear(nn.Linear):
    """A linear layer that computes large float32 products on a CPU as 1x1 convolutions; equal up to rounding.

    PyTorch computes ``nn.Linear`` with MKL and convolutions with oneDNN, which was faster on an AMD EPYC with AVX2
    (``benchmarks/training_step.py``, ``plain-fp32-onednn`` against ``plain-fp32``).

    Attributes:
        convolves: Whether convolutions may be used. In all other cases (other types and devices, autocast, small
            products, and when compiled or exported, where the graph has a linear layer) it is ``nn.Linear``.
    """

    convolves = True

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, float ``[B, N, in_features]`` or ``[B, in_features]``, to ``[..., out_features]``."""
        if torch.compiler.is_compiling() or not self._can_convolve(tokens):
            return super().forward(tokens)
        return cast("Tensor", _ConvolvedLinear.apply(tokens, self.weight, self.bias))

    def _can_convolve(self, tokens: Tensor) -> bool:
        """Return whether the convolution is possible and faster for these tokens."""
        return (
            self.convolves
            and tokens.dim() == 3
            and tokens.device.type == "cpu"
            and tokens.dtype == self.weight.dtype == torch.float32
            and tokens.shape[:2].numel() * self.weight.numel() >= _LEAST_PRODUCT
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )


class _ConvolvedLinear(torch.autograd.Function):
    """``F.linear`` as a convolution; the weights' gradient is a plain product, which is faster there."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _as_tokens(F.conv2d(_as_pixels(tokens), weight[:, :, None, None], bias), tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (tokens, weight) = grads, ctx.saved_tensors
        for_tokens, for_weight, for_bias = ctx.needs_input_grad
        return (
            _as_tokens(F.conv_transpose2d(_as_pixels(grad), weight[:, :, None, None]), grad) if for_tokens else None,
            grad.flatten(0, 1).T @ tokens.flatten(0, 1) if for_weight else None,
            grad.sum(dim=(0, 1)) if for_bias else None,
        )


def _as_pixels(tokens: Tensor) -> Tensor:
    """View tokens as the pixels of one image with channels last: ``[B, N, D]`` -> ``[1, D, 1, B * N]``."""
    return tokens.reshape(1, 1, -1, tokens.shape[-1]).permute(0, 3, 1, 2)


def _as_tokens(pixels: Tensor, like: Tensor) -> Tensor:
    """View pixels as tokens again: ``[1, D, 1, B * N]`` -> ``[B, N, D]``."""
    return pixels.permute(0, 2, 3, 1).reshape(*like.shape[:2], -1)


def use_token_linear(module: nn.Module) -> None:
    """Turn every ``nn.Linear`` of a module into a ``TokenLinear``, in place; names and weights stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = TokenLinear  # it has no state of its own

"""How large the numbers in a network get on real images: what fp16, which ends at 65,504, could not hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from toco_export.graph import attention_heads, is_plain_attention
from toco_export.onnx.reduced import product_layers
from toco_train.models.toco import ToCo

HEADROOM = 4  # other images than those scanned may go this many times further
FP16_LIMIT = torch.finfo(torch.float16).max / HEADROOM


@contextmanager
def watched_ranges(model: ToCo) -> Iterator[dict[str, float]]:
    """Note, while the block lasts, the largest magnitude that each layer of products meets: input, weights and output.

    The layer that makes queries and keys also answers for the scores that they give: the product of the longest query
    and the longest key bounds every score.

    Args:
        model: The network in fp32.

    Yields:
        Layer names, as ``product_layers`` gives them, to magnitudes; NaN counts as infinite.
    """
    largest: dict[str, float] = defaultdict(float)

    def watch(name: str, bound: Callable[[Tensor], Tensor] | None) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            seen = [inputs[0], output, *([bound(output)] if bound else [])]
            largest[name] = max(largest[name], *map(_magnitude, seen))

        return note

    bounds = {
        f"{name}.qkv": _score_bound(module) for name, module in model.named_modules() if is_plain_attention(module)
    }
    hooks = []
    for name, layer in product_layers(model):
        largest[name] = max(_magnitude(weight.detach()) for weight in layer.parameters())
        hooks.append(layer.register_forward_hook(watch(name, bounds.get(name))))
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


def unsafe_in_fp16(ranges: Mapping[str, float]) -> tuple[str, ...]:
    """Return the layers that must stay in fp32: whose numbers come within ``HEADROOM`` of fp16's end."""
    return tuple(name for name, magnitude in ranges.items() if magnitude > FP16_LIMIT)


def _magnitude(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor)  # one pass and no copy; NaN comes through
    return float(torch.maximum(-low, high).nan_to_num(nan=torch.inf))


def _score_bound(attention: Any) -> Callable[[Tensor], Tensor]:
    """Bound the scores of an attention by the joint projection that it starts from."""

    def bound(joint: Tensor) -> Tensor:
        queries, keys, _ = attention_heads(attention, joint)
        longest: Tensor = queries.norm(dim=-1).amax() * keys.norm(dim=-1).amax()
        return longest

    return bound

"""Weights from a file: read without running code in it, compared key by key, loaded into a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import timm.models
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from toco_core.errors import RunError
from toco_core.text import listed, one_line

MAX_LISTED = 10


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: safetensors, or what ``torch.save`` wrote.

    A pickle is read with ``weights_only=True``: tensors and plain values, never code. As in timm, a state dict may be
    nested in ``state_dict``, ``model`` or their EMA forms, and the prefixes of data-parallel training and compilation
    are removed.

    Raises:
        RunError: The file is missing, is not a checkpoint, or holds code or values that are not tensors.
    """
    if not path.is_file():
        raise RunError(f"weights {path} do not exist; give a safetensors file or a PyTorch state dict (.pth)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol
            state: dict[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
        wrong = next((f"{key!r} is {type(value).__name__}" for key, value in state.items()
                      if not isinstance(value, Tensor)), None if state else "it is empty")  # fmt: skip
    except Exception as error:  # a damaged pickle can raise anything
        reason = one_line(error)
        if "weights_only=True blocked" in str(error):
            reason = "it is damaged or holds other things than tensors; nothing in it was run"
        raise RunError(
            f"weights {path} cannot be read ({reason}); give a safetensors file or a PyTorch state dict (.pth)"
        ) from error
    if wrong is not None:
        raise RunError(f"weights {path} are not a state dict ({wrong}); expected parameter names and tensors")
    return state


def describe_misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe which keys are missing, left over or of another shape; return an empty string if there are none."""
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "left over": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key} {tuple(found[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in sorted(expected.keys() & found.keys())
            if expected[key].shape != found[key].shape
        ],
    }
    return "; ".join(f"{len(keys)} {what} ({listed(keys, MAX_LISTED)})" for what, keys in problems.items() if keys)


def load_backbone_weights(vit: VisionTransformer, path: Path) -> None:
    """Load the weights of a backbone from a file instead of downloading them.

    The classification head is skipped. A position embedding of another grid is resized, as in timm.

    Args:
        vit: The backbone, without a head.
        path: Safetensors or a timm state dict.

    Raises:
        RunError: The file cannot be read, or keys are missing, left over or of another shape (the message lists them).
            The backbone is not changed then.
    """
    state = read_state_dict(path)
    try:
        state = checkpoint_filter_fn(state, vit)
    except (KeyError, IndexError, RuntimeError, ValueError, AssertionError) as error:  # unexpected shapes
        raise RunError(
            f"weights {path} cannot be fitted to the backbone ({one_line(error)}); give those of its model"
        ) from error
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "head_dist."))}
    if misfit := describe_misfit(vit.state_dict(), state):
        raise RunError(
            f"weights {path} do not fit the backbone: {misfit}; give the weights of the model that model.backbone names"
        )
    vit.load_state_dict(state)

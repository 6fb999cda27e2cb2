"""Loads checkpoints of the published implementation."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from toco_core.errors import RunError
from toco_train.models.pretrained import describe_misfit
from toco_train.models.toco import ToCo

_PUBLISHED_IMAGENET_HEAD = "encoder.head."
_PUBLISHED_PREFIXES = {
    "backbone.vit.": "encoder.",
    "teacher_projection.": "proj_head_t.",
    "projection.": "proj_head.",
}
_PUBLISHED_WEIGHT_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


def load_published_weights(model: ToCo, state_dict: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of the published implementation, exactly.

    Args:
        model: Network with the same backbone and number of classes.
        state_dict: The published keys, with or without the ``module.`` prefix of data-parallel training. The ImageNet
            classifier ``encoder.head`` is skipped.

    Raises:
        RunError: A key is missing, left over or of another shape; the model is not changed then.
    """
    found = {key.removeprefix("module."): value for key, value in state_dict.items()}
    found = {key: value for key, value in found.items() if not key.startswith(_PUBLISHED_IMAGENET_HEAD)}
    own = model.state_dict()
    if misfit := describe_misfit({_published_name(name): value for name, value in own.items()}, found):
        raise RunError(
            f"the published checkpoint does not fit this network: {misfit}; "
            "build the network with the backbone and the number of classes that it was trained with"
        )
    model.load_state_dict({name: found[_published_name(name)] for name in own})


def _published_name(ours: str) -> str:
    """Return the published name of one of our keys."""
    for own, theirs in _PUBLISHED_PREFIXES.items():
        if ours.startswith(own):
            ours = theirs + ours.removeprefix(own)
            break
    for own, theirs in _PUBLISHED_WEIGHT_NORM.items():
        ours = ours.replace(own, theirs)
    return ours

"""Class activation maps over several scales.

Shapes: B images, C foreground classes, H x W pixels, h x w tokens, N = h * w. Labels: 0 background, 1..C classes, 255
ignore. A *valid* CAM is one in which only the classes of the image's label count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class GivesActivationMaps(Protocol):
    """What ``multi_scale_cam`` needs of a network."""

    @property
    def patch_size(self) -> int:
        """Image sides must be multiples of it."""

    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CAM and aux CAM before ReLU, each ``[B, C, h, w]``, of images ``[B, 3, H, W]``."""


def present_classes(image_labels: Tensor, max_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Name the classes that each image has, so that no map of an absent one has to be made.

    Args:
        image_labels: Multi-hot, ``[B, C]``.
        max_classes: The most classes that one of the images has; None counts them, for which the host waits.

    Returns:
        Classes, int64 ``[B, K]``, 0..C-1: those of the image first, in ascending order; and which of them it has, bool
        ``[B, K]``. K is ``max_classes``, and 1 where that is 0.
    """
    if max_classes is None:
        max_classes = int(image_labels.sum(dim=1).max())
    present, classes = image_labels.bool().sort(dim=1, descending=True, stable=True)
    most = max(1, max_classes)
    return classes[:, :most], present[:, :most]


@torch.no_grad()
def multi_scale_cam(
    model: GivesActivationMaps,
    images: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    *,
    scale_one: tuple[Tensor, Tensor] | None = None,
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute CAM and aux CAM over several scales, each with its horizontal flip.

    At each scale the maps are resized bilinearly to the image, the larger of the image's and the flipped-back flip's
    is taken, and ReLU applied; scales are summed and each class normalised to [0, 1] by its own minimum and maximum.

    Args:
        model: Network whose sides at every scale are rounded to a multiple of its patch size.
        images: Normalised images, float ``[B, 3, H, W]``.
        scales: Factors of the image size.
        scale_one: CAM and aux CAM before ReLU of the unflipped images at scale 1, each ``[B, C, h, w]``, where the
            caller has them already: that pass is then not run again.
        classes: The classes of each image whose maps are wanted, integer ``[B, K]``, 0..C-1. None: all.

    Returns:
        CAM and aux CAM, each float ``[B, C, H, W]`` (``[B, K, H, W]`` in the order of ``classes``) in [0, 1], without
        gradient.

    Source: docs/method.md, step 1. Same values as published; the pass that the training step has already done is
    reused, and only the maps that count are made as large as the image.
    """
    size = images.shape[-2:]
    totals: list[Tensor] = []
    for scale in scales:
        sides = [max(1, round(side * scale / model.patch_size)) * model.patch_size for side in size]
        scaled = images
        if list(size) != sides:
            scaled = F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        if scale == 1 and scale_one is not None:
            flipped = model.activation_maps(scaled.flip(-1))
            pairs = list(zip(scale_one, flipped, strict=True))
        else:
            maps = model.activation_maps(torch.cat([scaled, scaled.flip(-1)]))
            pairs = [(both[: len(images)], both[len(images) :]) for both in maps]
        for index, (plain, mirrored) in enumerate(pairs):
            together = torch.cat([_of_classes(plain, classes), _of_classes(mirrored, classes).flip(-1)])
            plain, mirrored = F.interpolate(together, size=size, mode="bilinear", align_corners=False).chunk(2)  # noqa: PLW2901
            strongest = torch.maximum(plain, mirrored).relu_()
            if len(totals) <= index:
                totals.append(strongest)
            else:
                totals[index] += strongest
    cam, aux_cam = (_normalise(total) for total in totals)
    return cam, aux_cam


def _of_classes(maps: Tensor, classes: Tensor | None) -> Tensor:
    """Return the maps of some classes in float32: ``[B, C, h, w]`` and ``[B, K]`` -> ``[B, K, h, w]``, contiguous."""
    if classes is not None:
        maps = maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))
    return maps.float().contiguous()


def _normalise(cam: Tensor) -> Tensor:
    """Stretch each class of each image to [0, 1]."""
    cam = cam - cam.amin(dim=(-2, -1), keepdim=True)
    return cam / (cam.amax(dim=(-2, -1), keepdim=True) + 1e-5)


def valid_cam(cam: Tensor, image_labels: Tensor) -> Tensor:
    """Set the classes that an image's label does not name to 0: ``[B, C, H, W]`` and ``[B, C]`` -> ``[B, C, H, W]``."""
    return cam * image_labels[:, :, None, None].to(cam.dtype)

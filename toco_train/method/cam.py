"""Class activation maps (CAM) over several scales, and the masked CAM that labels are made of.

Shapes: B images, C foreground classes, K classes that a map is made of, H x W pixels, h x w tokens, N = h * w. Labels:
0 background, 1..C classes, 255 ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_train.models.vit import scaled_sides


class GivesActivationMaps(Protocol):
    """What ``multi_scale_cam`` needs of a network."""

    @property
    def patch_size(self) -> int:
        """Image sides must be multiples of it."""

    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CAM and aux CAM before ReLU, each ``[B, C, h, w]``, of images ``[B, 3, H, W]``."""


@dataclass(frozen=True)
class MaskedCam:
    """A CAM in which only the classes of the image label count (the "valid CAM"), made by ``mask_cam``.

    Attributes:
        maps: float ``[B, K, H, W]`` in [0, 1]; 0 for a class that the image does not have.
        classes: Class of each map, int64 ``[B, K]``, 0..C-1.
        present: Whether the image has that class, bool ``[B, K]``.
        inside: Whether a pixel is image and not padding, bool ``[B, H, W]``.
    """

    maps: Tensor
    classes: Tensor
    present: Tensor
    inside: Tensor

    def at_tokens(self, patch_size: int) -> MaskedCam:
        """Return the CAM at the tokens' size, ``[B, K, h, w]``; a token is image where all of its pixels are."""
        size = [side // patch_size for side in self.maps.shape[-2:]]
        maps = F.interpolate(self.maps, size=size, mode="bilinear", align_corners=False)
        padding = F.max_pool2d((~self.inside).float(), patch_size)
        return MaskedCam(maps, self.classes, self.present, padding == 0)

    def label_of(self, index: Tensor) -> Tensor:
        """Return the label, 1..C, of the map of an index: int64 ``[B, ...]``, 0..K-1, to the same shape."""
        return self.classes.gather(1, index.flatten(1)).view_as(index) + 1


def mask_cam(
    maps: Tensor, present: Tensor, inside: Tensor | None = None, *, classes: Tensor | None = None
) -> MaskedCam:
    """Set the maps of classes that an image does not have to 0.

    Args:
        maps: float ``[B, K, H, W]`` in [0, 1].
        present: Whether the image has the class of a map, bool or multi-hot ``[B, K]``.
        inside: Whether a pixel is image and not padding, bool ``[B, H, W]``. None: every pixel is.
        classes: Class of each map, int64 ``[B, K]``, 0..C-1. None: the maps are those of all classes in order.

    Source: ToCo (CVPR 2023), section 3.1; docs/method.md, step 1 ("valid CAM").
    """
    if classes is None:
        classes = torch.arange(maps.shape[1], device=maps.device).expand(len(maps), -1)
    if inside is None:
        inside = torch.ones((len(maps), *maps.shape[-2:]), dtype=torch.bool, device=maps.device)
    return MaskedCam(maps * present[:, :, None, None].to(maps.dtype), classes, present.bool(), inside)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie inside each box (top, bottom, left, right): ``[B, 4]`` -> bool ``[B, H, W]``."""
    top, bottom, left, right = boxes.long()[:, :, None, None].unbind(dim=1)
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def present_classes(image_labels: Tensor, max_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the classes that each image has, so that no map of another class is made.

    Args:
        image_labels: Multi-hot, ``[B, C]``.
        max_classes: The largest number of classes that one image has. None: count them, which waits for the device.

    Returns:
        Classes, int64 ``[B, K]``, 0..C-1: those of the image first, in ascending order; and whether the image has
        them, bool ``[B, K]``. K is ``max_classes``, or 1 where that is 0.
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

    At each scale the maps of the image and of its flip (flipped back) are resized bilinearly to the image, and the
    larger of the two is kept after ReLU. The scales are summed, and each class is normalised to [0, 1] by its own
    minimum and maximum.

    Args:
        model: The network; the sides at every scale are rounded to a multiple of its patch size.
        images: Normalised images, float ``[B, 3, H, W]``.
        scales: Factors of the image size.
        scale_one: CAM and aux CAM before ReLU of the images at scale 1, not flipped, each ``[B, C, h, w]``. If given,
            that forward pass is not run again.
        classes: The classes of each image whose maps are wanted, integer ``[B, K]``, 0..C-1. None: all.

    Returns:
        CAM and aux CAM, each float ``[B, C, H, W]`` (``[B, K, H, W]`` in the order of ``classes``) in [0, 1], without
        gradient.

    Source: docs/method.md, step 1. Same values as published; the forward pass that the training step has already run
    is reused, and only the maps that are needed are resized to the image.
    """
    size = images.shape[-2:]
    totals: list[Tensor] = []
    for scale in scales:
        sides = scaled_sides(size, scale, model.patch_size)
        scaled = images
        if size != sides:
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
    """Scale each class of each image to [0, 1]."""
    cam = cam - cam.amin(dim=(-2, -1), keepdim=True)
    return cam / (cam.amax(dim=(-2, -1), keepdim=True) + 1e-5)

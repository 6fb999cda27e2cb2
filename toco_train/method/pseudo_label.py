"""From class activation maps to pseudo labels, for tokens, local crops and the segmentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX
from toco_train.method.cam import valid_cam
from toco_train.method.par import PixelAdaptiveRefinement


def label_from_cam(cam: Tensor, image_labels: Tensor, background_threshold: float) -> Tensor:
    """Return the label of each pixel: the strongest class of the image's label, or background.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        background_threshold: At or below it a pixel is background.

    Returns:
        int64 ``[B, H, W]``, 0..C.
    """
    strongest, label = valid_cam(cam, image_labels).max(dim=1)
    return torch.where(strongest <= background_threshold, 0, label + 1)


def three_way_label(cam: Tensor, image_labels: Tensor, low: float, high: float, boxes: Tensor | None = None) -> Tensor:
    """Return the label of each pixel where the CAM is sure, and 255 where it is not.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: At or below it a pixel is background.
        high: Above it a pixel has the strongest class; between the two it is 255.
        boxes: Part of each image that is image and not padding, integer ``[B, 4]``: top, bottom, left, right in
            pixels, ends excluded. Outside it the label is 255. None: everything is image.

    Returns:
        int64 ``[B, H, W]``.

    Source: ToCo (CVPR 2023), equation 4; docs/method.md, step 2.
    """
    strongest, label = valid_cam(cam, image_labels).max(dim=1)
    label = torch.where(strongest <= high, IGNORE_INDEX, label + 1)
    label = torch.where(strongest <= low, 0, label)
    if boxes is None:
        return label
    return torch.where(inside_boxes(boxes, label.shape[-2], label.shape[-1]), label, IGNORE_INDEX)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie inside each box (top, bottom, left, right): ``[B, 4]`` -> bool ``[B, H, W]``."""
    top, bottom, left, right = boxes.long()[:, :, None, None].unbind(dim=1)
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def roi_mask(cam: Tensor, image_labels: Tensor, low: float, high: float) -> Tensor:
    """Return where local crops may be taken: 0 background, 1 uncertain, 2 sure foreground.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: At or below it a pixel is 0.
        high: At or above it a pixel is 2.

    Returns:
        int64 ``[B, H, W]``.

    Source: ToCo (CVPR 2023), section 3.4; docs/method.md, step 4.
    """
    strongest = valid_cam(cam, image_labels).amax(dim=1)
    return (strongest > low).long() + (strongest >= high).long()


def token_affinity(labels: Tensor) -> Tensor:
    """Return the pseudo relation of each pair of tokens.

    Args:
        labels: Token labels, integer ``[B, h, w]``, 255 unknown.

    Returns:
        uint8 ``[B, N, N]``: 1 same label, 0 different, 255 where either is unknown and on the diagonal.

    Source: ToCo (CVPR 2023), section 3.3; docs/method.md, step 3.
    """
    flat = labels.flatten(1)
    affinity = (flat[:, :, None] == flat[:, None, :]).to(torch.uint8)
    unknown = flat == IGNORE_INDEX
    affinity.masked_fill_(unknown[:, :, None] | unknown[:, None, :], IGNORE_INDEX)
    affinity.diagonal(dim1=1, dim2=2).fill_(IGNORE_INDEX)
    return affinity


@torch.no_grad()
def refine_label(  # noqa: PLR0917  (the order in which the paper names them)
    images: Tensor,
    cam: Tensor,
    image_labels: Tensor,
    low: float,
    high: float,
    boxes: Tensor,
    refinement: PixelAdaptiveRefinement,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Turn a CAM into a pseudo label for segmentation, refined along the edges of the image.

    The valid CAM is refined at half size twice, with a constant background of ``high`` and of ``low``. Where the
    cautious run (high) says foreground the label is that class, where both say background it is 0, else 255.

    Args:
        images: RGB in [0, 1], float ``[B, 3, H, W]``.
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: Background score of the generous run.
        high: Background score of the cautious run.
        boxes: Part of each image that is image, integer ``[B, 4]``: top, bottom, left, right; outside it is 255.
        refinement: The refinement to apply.
        classes: The class of each map, integer ``[B, C]``, where the CAM is that of ``present_classes`` and the labels
            say which of them an image has. None: map and class are the same.

    Returns:
        int64 ``[B, H, W]``: 0, 255, or a class from 1 on.

    Source: docs/method.md, step 5. Same values as published; the affinity of an image is computed once for both runs.
    """
    height, width = images.shape[-2:]
    half = (height // 2, width // 2)
    half_images = F.interpolate(images, size=half, mode="bilinear", align_corners=False)
    scores = F.interpolate(valid_cam(cam, image_labels), size=half, mode="bilinear", align_corners=False)
    known = F.pad(image_labels.bool(), (1, 0), value=True)[:, :, None, None]
    if classes is None:
        classes = torch.arange(cam.shape[1], device=cam.device).expand(len(cam), -1)
    labels = F.pad(classes + 1, (1, 0), value=0)

    runs = [F.pad(scores, (0, 0, 0, 0, 1, 0), value=threshold) for threshold in (high, low)]
    maps = torch.cat([run.masked_fill(~known, -torch.inf).softmax(dim=1) for run in runs], dim=1)
    refined = refinement(half_images, maps)
    # max and not argmax, which is many times slower over this dimension on a CPU
    cautious, generous = (
        labels.gather(
            1, F.interpolate(run, size=(height, width), mode="bilinear", align_corners=False).max(1).indices.flatten(1)
        ).view(-1, height, width)
        for run in refined.chunk(2, dim=1)
    )
    label = torch.where(cautious > 0, cautious, torch.where(generous > 0, IGNORE_INDEX, 0))
    return torch.where(inside_boxes(boxes, height, width), label, IGNORE_INDEX)

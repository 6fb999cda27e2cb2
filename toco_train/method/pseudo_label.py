"""From a masked CAM to pseudo labels: for tokens, for local crops and for the segmentation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toco_core.palette import IGNORE_INDEX
from toco_train.method.cam import MaskedCam
from toco_train.method.par import PixelAdaptiveRefinement


def three_way_label(cam: MaskedCam, low: float, high: float) -> Tensor:
    """Return the label of each pixel: background, a class, or 255 where the CAM is uncertain.

    Args:
        cam: The CAM, ``[B, K, H, W]``.
        low: At or below it a pixel is background.
        high: Above it a pixel has the strongest class; between the two it is 255.

    Returns:
        int64 ``[B, H, W]``: 0, 1..C or 255. Padding is 255.

    Source: ToCo (CVPR 2023), equation 4; docs/method.md, step 2.
    """
    strongest, index = cam.maps.max(dim=1)
    label = torch.where(strongest <= high, IGNORE_INDEX, cam.label_of(index))
    label = torch.where(strongest <= low, 0, label)
    return torch.where(cam.inside, label, IGNORE_INDEX)


def roi_mask(cam: MaskedCam, low: float, high: float) -> Tensor:
    """Return where local crops may be cut: 0 background, 1 uncertain, 2 foreground.

    Args:
        cam: The CAM, ``[B, K, H, W]``.
        low: At or below it a pixel is 0.
        high: At or above it a pixel is 2.

    Returns:
        int64 ``[B, H, W]``.

    Source: ToCo (CVPR 2023), section 3.4; docs/method.md, step 4.
    """
    strongest = cam.maps.amax(dim=1)
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


def agree(cautious: Tensor, generous: Tensor) -> Tensor:
    """Combine the labels of two background scores into one pseudo label.

    Args:
        cautious: Labels with a high background score, integer ``[..., H, W]``, 0..C.
        generous: Labels with a low background score, the same shape.

    Returns:
        int64 ``[..., H, W]``: the cautious class where there is one, 0 where both are background, else 255.

    Source: docs/method.md, step 5.
    """
    return torch.where(cautious > 0, cautious.long(), torch.where(generous > 0, IGNORE_INDEX, 0))


@torch.no_grad()
def refine_label(
    images: Tensor, cam: MaskedCam, low: float, high: float, refinement: PixelAdaptiveRefinement
) -> Tensor:
    """Turn a CAM into a pseudo label for the segmentation, refined along the edges of the image.

    The CAM is refined at half size twice, with a constant background score of ``high`` and of ``low``, and the two
    labels are combined by ``agree``.

    Args:
        images: RGB in [0, 1], float ``[B, 3, H, W]``.
        cam: The CAM of these images, ``[B, K, H, W]``.
        low: Background score of the generous labels.
        high: Background score of the cautious labels.
        refinement: The refinement to apply.

    Returns:
        int64 ``[B, H, W]``: 0, 1..C or 255. Padding is 255.

    Source: docs/method.md, step 5. Same values as published; the affinity of an image is computed once for both.
    """
    height, width = images.shape[-2:]
    half = (height // 2, width // 2)
    half_images = F.interpolate(images, size=half, mode="bilinear", align_corners=False)
    scores = F.interpolate(cam.maps, size=half, mode="bilinear", align_corners=False)
    known = F.pad(cam.present, (1, 0), value=True)[:, :, None, None]
    labels = F.pad(cam.classes + 1, (1, 0), value=0)

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
    return torch.where(cam.inside, agree(cautious, generous), IGNORE_INDEX)

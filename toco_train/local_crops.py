"""Local crops for the class-token contrast, cut where the auxiliary CAM is not sure of the foreground."""

from __future__ import annotations

import torch
from torch import Tensor

_ROOM_FOR_CHOICE = 1.0  # added to a candidate's random score so that every candidate comes before any other pixel


def local_crops(
    images: Tensor, roi: Tensor, *, num_crops: int, crop_size: int, negative_ratio: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Cut local crops and tell which are positives.

    Centres are drawn without replacement where ``roi`` is at most 1 and the crop fits; where fewer than ``num_crops``
    such pixels exist, wherever it fits. Drawn from torch's global generator, without a synchronisation.

    Args:
        images: float ``[B, 3, S, S]``.
        roi: Region mask of the same size, integer ``[B, S, S]``: 0 background, 1 uncertain, 2 foreground.
        num_crops: Crops an image.
        crop_size: Their side in pixels, at most S.
        negative_ratio: A crop whose mean of ``roi`` is at most this is a negative.

    Returns:
        Crops, float ``[B, num_crops, 3, crop_size, crop_size]``, and which are positive, bool ``[B, num_crops]``.

    Source: ToCo (CVPR 2023), section 3.4; METHOD.md, step 4.
    """
    batch, _, height, width = images.shape
    rows, columns = height - crop_size + 1, width - crop_size + 1
    margin = crop_size // 2
    centre = roi[:, margin : margin + rows, margin : margin + columns].flatten(1)
    candidate = centre <= 1
    enough = candidate.sum(dim=1, keepdim=True) >= num_crops
    score = torch.rand(centre.shape, device=images.device) + _ROOM_FOR_CHOICE * (candidate & enough)
    chosen = score.topk(num_crops, dim=1).indices
    span = torch.arange(crop_size, device=images.device)
    row = (chosen // columns)[:, :, None, None] + span[:, None]
    column = (chosen % columns)[:, :, None, None] + span[None, :]
    image = torch.arange(batch, device=images.device)[:, None, None, None]
    crops = images.permute(0, 2, 3, 1)[image, row, column].permute(0, 1, 4, 2, 3)
    positive = roi[image, row, column].float().mean(dim=(2, 3)) > negative_ratio
    return crops, positive

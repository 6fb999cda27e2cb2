"""Local crops for the class-token contrast, cut where the auxiliary CAM is background or uncertain."""

from __future__ import annotations

import torch
from torch import Tensor

_CANDIDATE = 1 << 62  # added to a candidate's random score, so that candidates come before all other pixels


def local_crops(
    images: Tensor, roi: Tensor, seeds: Tensor, *, num_crops: int, crop_size: int, negative_ratio: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Cut local crops and return which of them are positives.

    Centres are drawn without replacement where ``roi`` is at most 1 and the crop fits; if there are fewer than
    ``num_crops`` such pixels, anywhere the crop fits. The centres depend only on the image's ``roi`` and seed, not on
    the rest of the batch, the device or a random generator.

    Cost: about 16 integer operations for each pixel and one top-k, on the device and without a synchronisation. For 4
    images of 448 px and crops of 96 px the random numbers take about 12 ms on one CPU core.

    Args:
        images: float ``[B, 3, S, S]``.
        roi: Region mask of the same size, integer ``[B, S, S]``: 0 background, 1 uncertain, 2 foreground.
        seeds: A random number for each image, int64 ``[B]``.
        num_crops: Number of crops of each image.
        crop_size: Their side in pixels, at most S.
        negative_ratio: A crop whose mean ``roi`` is at most this is a negative.

    Returns:
        Crops, float ``[B, num_crops, 3, crop_size, crop_size]``, and which are positive, bool ``[B, num_crops]``.

    Source: ToCo (CVPR 2023), section 3.4; docs/method.md, step 4.
    """
    batch, _, height, width = images.shape
    rows, columns = height - crop_size + 1, width - crop_size + 1
    margin = crop_size // 2
    centre = roi[:, margin : margin + rows, margin : margin + columns].flatten(1)
    candidate = centre <= 1
    enough = candidate.sum(dim=1, keepdim=True) >= num_crops
    score = _random_numbers(seeds, rows * columns) + _CANDIDATE * (candidate & enough)
    chosen = score.topk(num_crops, dim=1).indices
    span = torch.arange(crop_size, device=images.device)
    row = (chosen // columns)[:, :, None, None] + span[:, None]
    column = (chosen % columns)[:, :, None, None] + span[None, :]
    image = torch.arange(batch, device=images.device)[:, None, None, None]
    crops = images.permute(0, 2, 3, 1)[image, row, column].permute(0, 1, 4, 2, 3)
    positive = roi[image, row, column].float().mean(dim=(2, 3)) > negative_ratio
    return crops, positive


def _random_numbers(seeds: Tensor, number: int) -> Tensor:
    """Return ``number`` random numbers for each seed, int64 ``[B, number]`` in [0, 2^62), the same on every device.

    Source: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): its i-th number is a function of the seed and i.
    """
    state = seeds[:, None] + torch.arange(1, number + 1, device=seeds.device) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted_right(state, shift)) * _signed(factor)
    return _shifted_right(state ^ _shifted_right(state, 31), 2)


def _shifted_right(numbers: Tensor, shift: int) -> Tensor:
    """Shift 64 bits to the right and fill with zeros; ``>>`` alone would repeat the sign."""
    return (numbers >> shift) & ((1 << (64 - shift)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the bits of an unsigned number; their products wrap around in the same way."""
    return number - (1 << 64) if number >> 63 else number

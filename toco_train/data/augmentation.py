"""Augmentation: one geometry per image, shared by its renderings and its box; three photometric renderings.

Views of a training image (docs/method.md, step 4): view 1 is what the network is trained on; view 2 is another crop of
the source; the local rendering is the same crop as view 1 in other colours, from which local crops are cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from toco_train.config import AugmentationConfig


@dataclass(frozen=True)
class Views:
    """The renderings of one image, uint8 ``[3, S, S]`` RGB, S the crop size.

    Attributes:
        view1: The training image.
        view2: A second global view: another crop of the source in other colours.
        local: The geometry of ``view1`` in other colours; local crops are cut from it.
        box: Part of ``view1`` and ``local`` that is image, int64 ``[4]``: top, bottom, left, right in pixels.
    """

    view1: Tensor
    view2: Tensor
    local: Tensor
    box: Tensor


class Augmentation:
    """Draw the views of an image, from torch's global generator alone.

    Geometry and colours are drawn on Pillow's images, whose resampling reads only the part of the source that ends up
    in the crop, and whose way to hue and back takes half the time of that on tensors (benchmarks/data_loading.py).

    Source: docs/method.md, step 4 and recipes. Deviation: the geometry is drawn once per image and shared by view 1,
    the local rendering and the box; the published code flips the local rendering on its own, so that half of the local
    crops came from the wrong place, and never flips the box.
    """

    def __init__(self, config: AugmentationConfig, crop_size: int) -> None:
        self._config = config
        self._crop_size = crop_size
        self._second_crop = v2.RandomResizedCrop(crop_size, scale=config.second_view_area)
        self._flip = v2.RandomHorizontalFlip(config.flip)
        self._colours = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability),
                v2.RandomGrayscale(config.grey),
            ]
        )
        self._solarize = v2.RandomSolarize(threshold=128, p=config.solarize_view2)

    def __call__(self, image: Image.Image) -> Views:
        """Return the views of an RGB image of any size."""
        crop, box = self._random_crop(image)
        return Views(
            view1=self._render(crop, self._config.blur_view1),
            view2=self._solarize(self._render(self._flip(self._second_crop(image)), self._config.blur_view2)),
            local=self._render(crop, self._config.blur_local),
            box=torch.tensor(box),
        )

    def _random_crop(self, image: Image.Image) -> tuple[Image.Image, tuple[int, int, int, int]]:
        """Rescale, flip, pad with black and crop; return the crop and the box of image in it."""
        size, factor = self._crop_size, _uniform(*self._config.rescale)
        if self._config.fit_to_crop:
            factor *= size / max(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
        # Where a side is shorter than the crop the image lies somewhere in it, else the crop lies somewhere in it.
        left, top = (_integer(min(0, side - size), max(0, side - size)) for side in (width, height))
        x0, x1, y0, y1 = max(0, left), min(width, left + size), max(0, top), min(height, top + size)
        crop = Image.new("RGB", (size, size))
        crop.paste(_part_of_resized(image, (width, height), (x0, y0, x1, y1)), (x0 - left, y0 - top))
        box = (y0 - top, y1 - top, x0 - left, x1 - left)
        if _uniform(0, 1) < self._config.flip:
            crop = TF.horizontal_flip(crop)
            box = (*box[:2], size - box[3], size - box[2])
        return crop, box

    def _render(self, image: Image.Image, blur: float) -> Tensor:
        """Draw other colours, and blur with some probability."""
        rendering = TF.pil_to_tensor(self._colours(image))
        return _blurred(rendering, _uniform(*self._config.blur_sigma)) if _uniform(0, 1) < blur else rendering


def _part_of_resized(image: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int]) -> Image.Image:
    """Return part of an image resized to ``size``, at most one grey level off resizing all of it and then cropping."""
    across, down = image.width / size[0], image.height / size[1]
    left, top, right, bottom = part
    source = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=source)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur uint8 ``[3, H, W]`` with a Gaussian that is cut off at three sigma: along rows, then along columns."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.softmax(-0.5 * (offsets / sigma) ** 2, dim=0).expand(3, 1, 1, -1)
    levels = functional.pad(image[None].float(), [radius] * 4, mode="reflect")
    # Channels last: else oneDNN spreads the three channels to sixteen, in scratch memory that is mapped at each call.
    levels = levels.contiguous(memory_format=torch.channels_last)
    for along in (kernel, kernel.transpose(2, 3)):
        levels = functional.conv2d(levels, along, groups=3)
    return levels[0].round_().to(torch.uint8)


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))

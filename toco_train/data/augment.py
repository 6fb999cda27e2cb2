"""Augmentation: one geometry per image, shared by its renderings and its box; three photometric renderings.

Views of a training image (METHOD.md, step 4): view 1 is what the network is trained on; view 2 is another crop of the
source; the local rendering is the same crop as view 1 in other colours, from which local crops are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from toco.config import FrozenModel


class AugmentationConfig(FrozenModel):
    """Random geometry and colours; the defaults are the published recipe."""

    fit_to_crop: bool = Field(False, description="First resize the image so that its longer side is the crop's.")
    rescale: tuple[float, float] = Field((0.5, 2.0), description="Range of the random factor of the image size.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    second_view_area: tuple[float, float] = Field((0.4, 1.0), description="Area of view 2 as a share of the image.")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.2, 0.1), description="Brightness, contrast, saturation, hue jitter."
    )
    jitter_probability: float = Field(0.8, ge=0, le=1, description="Probability of the jitter.")
    grey: float = Field(0.2, ge=0, le=1, description="Probability of a grey rendering.")
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="Range of the blur's sigma, in pixels.")
    blur_view1: float = Field(1.0, ge=0, le=1, description="Probability of blur in view 1.")
    blur_view2: float = Field(0.1, ge=0, le=1, description="Probability of blur in view 2.")
    blur_local: float = Field(0.5, ge=0, le=1, description="Probability of blur in the local rendering.")
    solarize_view2: float = Field(0.2, ge=0, le=1, description="Probability that view 2 is solarised.")


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
    """Draw the views of an image.

    Source: METHOD.md, step 4 and recipes. Deviation: the geometry is drawn once per image and shared by view 1, the
    local rendering and the box; the published code flips the local rendering on its own, so that half of the local
    crops came from the wrong place, and never flips the box.
    """

    def __init__(self, config: AugmentationConfig, crop_size: int) -> None:
        self._config = config
        self._crop_size = crop_size
        self._second_crop = v2.RandomResizedCrop(crop_size, scale=config.second_view_area, antialias=True)
        self._flip = v2.RandomHorizontalFlip(config.flip)
        self._colours = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_probability),
                v2.RandomGrayscale(config.grey),
            ]
        )
        kernel_size = 2 * round(3 * config.blur_sigma[1]) + 1
        self._blur = v2.GaussianBlur(kernel_size, config.blur_sigma)
        self._solarize = v2.RandomSolarize(threshold=128, p=config.solarize_view2)

    def __call__(self, image: Image.Image) -> Views:
        """Return the views of an RGB picture of any size."""
        source = TF.pil_to_tensor(image)
        crop, box = self._random_crop(source)
        return Views(
            view1=self._render(crop, self._config.blur_view1),
            view2=self._solarize(self._render(self._flip(self._second_crop(source)), self._config.blur_view2)),
            local=self._render(crop, self._config.blur_local),
            box=torch.tensor(box),
        )

    def _random_crop(self, image: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Rescale, flip, pad with black and crop; return the crop and the box of image in it."""
        size, factor = self._crop_size, _uniform(*self._config.rescale)
        if self._config.fit_to_crop:
            factor *= size / max(image.shape[-2:])
        height, width = (max(1, round(side * factor)) for side in image.shape[-2:])
        image = self._flip(TF.resize(image, [height, width], antialias=True))
        # Where a side is shorter than the crop the image lies somewhere in it, else the crop lies somewhere in it.
        top, left = (_integer(min(0, side - size), max(0, side - size)) for side in (height, width))
        crop = TF.crop(image, top, left, size, size)
        box = (max(0, -top), min(size, height - top), max(0, -left), min(size, width - left))
        return crop, box

    def _render(self, image: Tensor, blur: float) -> Tensor:
        """Draw other colours, and blur with some probability."""
        image = self._colours(image)
        if _uniform(0, 1) < blur:
            image = self._blur(image)
        return image


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def _integer(low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, ()))

"""Augmentation: one geometry for view, local rendering and box."""

import numpy as np
import pytest
import torch
from PIL import Image

from toco_train.data.augment import Augmentation, AugmentationConfig

PLAIN = AugmentationConfig(
    jitter_probability=0, grey=0, blur_view1=0, blur_view2=0, blur_local=0, solarize_view2=0
)  # fmt: skip


def ramp(height, width):
    """A picture whose red is the row and green the column, and whose blue says "image" (255)."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, np.full_like(rows, 255)], -1).astype(np.uint8))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [(100, 60), (40, 120), (64, 64)])
def test_view_local_rendering_and_box_share_one_geometry(seed, size):
    torch.manual_seed(seed)
    views = Augmentation(PLAIN, 64)(ramp(*size))
    assert torch.equal(views.view1, views.local)
    top, bottom, left, right = views.box.tolist()
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert torch.equal(views.view1[2] > 127, inside), "blue is 255 on the image and 0 on the padding"


def test_flips_happen_about_half_of_the_time():
    torch.manual_seed(0)
    augment = Augmentation(PLAIN.model_copy(update={"rescale": (1.0, 1.0)}), 64)
    flipped = 0
    for _ in range(200):
        green = augment(ramp(64, 64)).view1[1, 0].int()
        flipped += int(green[0] > green[-1])
    assert 75 <= flipped <= 125


def test_scales_cover_the_range_and_no_more():
    torch.manual_seed(0)
    augment = Augmentation(PLAIN.model_copy(update={"rescale": (0.5, 1.0)}), 64)
    heights = []
    for _ in range(200):
        top, bottom, _, _ = augment(ramp(64, 64)).box.tolist()
        heights.append(bottom - top)
    assert 32 <= min(heights) <= 35
    assert 61 <= max(heights) <= 64


def test_fit_to_crop_brings_the_longer_side_of_any_picture_to_the_crop():
    torch.manual_seed(0)
    fit = PLAIN.model_copy(update={"fit_to_crop": True, "rescale": (1.0, 1.0)})
    top, bottom, left, right = Augmentation(fit, 64)(ramp(120, 90)).box.tolist()
    assert (bottom - top, right - left) == (64, 48)


def test_colours_differ_between_renderings_and_geometry_does_not():
    torch.manual_seed(1)
    views = Augmentation(AugmentationConfig(jitter_probability=1, grey=0, rescale=(1.0, 1.0)), 64)(ramp(64, 64))
    assert not torch.equal(views.view1, views.local)
    assert views.view1.dtype == views.view2.dtype == views.local.dtype == torch.uint8
    assert views.view1.shape == views.view2.shape == views.local.shape == (3, 64, 64)


def test_the_same_seed_gives_the_same_views():
    def draw(seed):
        torch.manual_seed(seed)
        return Augmentation(AugmentationConfig(), 64)(ramp(80, 70))

    first, again, other = draw(5), draw(5), draw(6)
    assert torch.equal(first.view1, again.view1)
    assert torch.equal(first.view2, again.view2)
    assert not torch.equal(first.view1, other.view1)


def test_a_picture_of_one_pixel_survives():
    views = Augmentation(AugmentationConfig(), 64)(Image.new("RGB", (1, 1), "red"))
    assert views.view1.shape == (3, 64, 64)

"""Augmentation: one geometry for view, local rendering and box, and the colours of the recipe."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

import toco_train.data.augmentation
from toco_core.config import parse_config
from toco_core.errors import ConfigError
from toco_train.config import AugmentationConfig
from toco_train.data.augmentation import Augmentation

PLAIN = AugmentationConfig(
    jitter_probability=0, grey=0, blur_view1=0, blur_view2=0, blur_local=0, solarize_view2=0
)  # fmt: skip
RED = (200, 100, 50)


def ramp(height, width):
    """An image whose red is the row and green the column, and whose blue says "image" (255)."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, np.full_like(rows, 255)], -1).astype(np.uint8))


def draws(config, image, number, crop_size=16):
    """Views drawn one after another."""
    torch.manual_seed(0)
    augment = Augmentation(config, crop_size)
    return [augment(image) for _ in range(number)]


def test_the_defaults_are_the_published_recipe():
    assert AugmentationConfig().model_dump() == {
        "fit_to_crop": False,
        "rescale": (0.5, 2.0),
        "flip": 0.5,
        "second_view_area": (0.4, 1.0),
        "jitter": (0.4, 0.4, 0.2, 0.1),
        "jitter_probability": 0.8,
        "grey": 0.2,
        "blur_sigma": (0.1, 2.0),
        "blur_view1": 1.0,
        "blur_view2": 0.1,
        "blur_local": 0.5,
        "solarize_view2": 0.2,
    }


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


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [(100, 60), (40, 120), (64, 64)])
def test_every_pixel_in_the_box_shows_the_place_that_one_scale_and_flip_say(seed, size):
    """The colours of the ramp name the row and column that a pixel comes from: both must be straight lines."""
    torch.manual_seed(seed)
    views = Augmentation(PLAIN, 64)(ramp(*size))
    top, bottom, left, right = views.box.tolist()
    slopes = []
    for channel, along, length in ((0, 0, size[0]), (1, 1, size[1])):
        shown = views.local[channel, top:bottom, left:right].double().mean(dim=1 - along) / 2  # source row or column
        inner = shown[3:-3] if len(shown) > 12 else shown  # at the border of the image half pixels are missing
        steps = torch.arange(len(inner), dtype=torch.double)
        slope, start = np.polyfit(steps, inner, 1)
        assert (inner - (start + slope * steps)).abs().max() < 0.6
        assert min(start, start + slope * len(inner)) > -0.5
        assert max(start, start + slope * len(inner)) < length + 0.5
        slopes.append(slope)
    assert slopes[0] > 0, "rows are never turned round"
    assert abs(slopes[1]) == pytest.approx(slopes[0], rel=0.06), "one scale for both sides"
    assert 1 / 2.1 < slopes[0] < 2.1


def test_a_part_of_the_resized_image_is_that_of_resizing_it_whole():
    draw = random.Random(0)
    for _ in range(40):
        noise = np.random.default_rng(draw.randrange(100)).integers(256, size=(30, 40, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((draw.randint(1, 70), draw.randint(1, 70)))
        width, height = draw.randint(1, 140), draw.randint(1, 140)
        left, top = draw.randrange(width), draw.randrange(height)
        right, bottom = draw.randint(left + 1, width), draw.randint(top + 1, height)
        part = toco_train.data.augmentation._part_of_resized(image, (width, height), (left, top, right, bottom))
        whole = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, right, bottom))
        np.testing.assert_allclose(np.asarray(part, dtype=int), np.asarray(whole, dtype=int), atol=1)


def test_a_mark_is_at_one_place_in_view_and_local_rendering_whatever_their_colours():
    pixels = np.full((64, 64, 3), 60, dtype=np.uint8)
    pixels[20:24, 40:44] = 255
    config = AugmentationConfig(rescale=(1.0, 1.0), jitter_probability=1, grey=0.5, blur_sigma=(0.4, 0.5))
    columns = []
    for views in draws(config, Image.fromarray(pixels), 20, crop_size=64):
        places = [(view.sum(dim=0) > view.sum(dim=0).double().mean() + 60).nonzero().double().mean(dim=0)
                  for view in (views.view1, views.local)]  # fmt: skip
        assert torch.allclose(*places, atol=0.3)
        columns.append(places[0][1].item())
    assert min(columns) == pytest.approx(21.5, abs=0.3)  # 63 - 41.5: flipped
    assert max(columns) == pytest.approx(41.5, abs=0.3)


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


def test_fit_to_crop_brings_the_longer_side_of_any_image_to_the_crop():
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


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_images_of_extreme_shapes_survive(size):
    for views in draws(AugmentationConfig(), Image.new("RGB", size, "red"), 5, crop_size=64):
        assert views.view1.shape == views.view2.shape == views.local.shape == (3, 64, 64)


def test_nothing_but_torchs_generator_is_drawn_from():
    states = random.getstate(), np.random.get_state()[1].tolist()
    first = draws(AugmentationConfig(), ramp(30, 40), 8)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(1)
    np.random.seed(1)
    for own, other in zip(first, draws(AugmentationConfig(), ramp(30, 40), 8), strict=True):
        assert torch.equal(own.view1, other.view1)
        assert torch.equal(own.view2, other.view2)
        assert torch.equal(own.local, other.local)


def test_view_2_shows_40_to_100_per_cent_of_the_source_flipped_half_of_the_time():
    areas, flips = [], []
    for views in draws(PLAIN, ramp(100, 100), 150, crop_size=64):
        rows, columns = views.view2[0].double() / 2, views.view2[1].double() / 2
        height, width = (float(part.amax() - part.amin()) + 1 for part in (rows, columns))
        areas.append(height * width / 100**2)
        assert 0.7 < height / width < 1.43
        flips.append(bool(columns[0, 0] > columns[0, -1]))
    assert 0.37 < min(areas) < 0.45
    assert 0.85 < max(areas) <= 1.01
    assert 55 <= sum(flips) <= 95


def shares(config, changed, number=400):
    """How often the views of a plain red image satisfy a condition: view 1, view 2, local rendering."""
    found = [[changed(view) for view in (views.view1, views.view2, views.local)]
             for views in draws(config, Image.new("RGB", (32, 32), RED), number)]  # fmt: skip
    return np.mean(found, axis=0)


COLOURS_ALONE = PLAIN.model_copy(update={"rescale": (1.0, 1.0)})


def test_each_view_is_grey_one_time_in_five():
    config = COLOURS_ALONE.model_copy(update={"grey": AugmentationConfig().grey})
    np.testing.assert_allclose(shares(config, lambda view: bool((view[0] == view[2]).all())), 0.2, atol=0.05)


def test_each_view_is_jittered_four_times_in_five():
    config = COLOURS_ALONE.model_copy(update={"jitter_probability": AugmentationConfig().jitter_probability})
    np.testing.assert_allclose(shares(config, lambda view: tuple(view[:, 0, 0].tolist()) != RED), 0.8, atol=0.06)


def test_view_2_alone_is_solarised_one_time_in_five():
    config = COLOURS_ALONE.model_copy(update={"solarize_view2": AugmentationConfig().solarize_view2})
    solarised = shares(config, lambda view: view[:, 0, 0].tolist() == [255 - 200, 100, 50])
    np.testing.assert_allclose(solarised, [0, 0.2, 0], atol=0.05)
    assert solarised[0] == solarised[2] == 0


def test_view_1_is_always_blurred_view_2_one_time_in_ten_and_the_local_rendering_every_other(monkeypatch):
    sigmas = []

    def marked(image, sigma):
        sigmas.append(sigma)
        return torch.full_like(image, 7)

    monkeypatch.setattr(toco_train.data.augmentation, "_blurred", marked)
    config = AugmentationConfig(solarize_view2=0)
    blurred = shares(config, lambda view: bool((view == 7).all()))
    assert blurred[0] == 1
    np.testing.assert_allclose(blurred, [1, 0.1, 0.5], atol=0.06)
    assert 0.1 <= min(sigmas) < 0.12
    assert 1.98 < max(sigmas) <= 2
    assert np.mean(sigmas) == pytest.approx(1.05, abs=0.06)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.0])
def test_the_blur_is_a_gaussian_of_that_sigma(sigma):
    noise = np.random.default_rng(0).integers(256, size=(40, 48, 3), dtype=np.uint8)
    image = TF.pil_to_tensor(Image.fromarray(noise))
    ours = toco_train.data.augmentation._blurred(image, sigma)
    theirs = TF.gaussian_blur(image, [13, 13], [sigma, sigma])
    assert ours.dtype == torch.uint8
    assert ours.shape == image.shape
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert torch.equal(ours, image) == (sigma == 0.1)


def test_a_blur_without_width_is_refused():
    with pytest.raises(ConfigError, match=r"blur_sigma.0: input should be greater than 0"):
        parse_config(AugmentationConfig, {"blur_sigma": (0, 1)}, "it")

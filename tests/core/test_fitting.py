"""The size at which the network sees an image."""

import numpy as np
import pytest
from PIL import Image

from toco_core.fitting import fit_to_network, nearest_size, network_sizes, own_size


@pytest.mark.parametrize(
    ("image_size", "patch_size", "shorter"),
    [
        # 448 / 4 = 112, 448 / 3 = 149.3, 448 / 2 = 224, 448 / (16/9) = 252, 448 / 1.5 = 298.7, 448 / (4/3) = 336
        (448, 16, [112, 144, 224, 256, 304, 336, 448]),
        (96, 8, [24, 32, 48, 56, 64, 72, 96]),  # the Shapes demo
        (96, 16, [32, 48, 64, 96]),  # 4/3 and 3/2 round to one size, so do 16/9 and 2, 3 and 4
        (32, 16, [16, 32]),
        (60, 8, [16, 24, 32, 40, 48, 64]),  # the longer side is rounded, too
    ],
)
def test_the_sizes_have_the_shapes_of_cameras_lying_and_standing_rounded_to_patches(image_size, patch_size, shorter):
    longest = shorter[-1]
    expected = {(side, longest) for side in shorter} | {(longest, side) for side in shorter}
    assert network_sizes(image_size, patch_size) == tuple(sorted(expected))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (336, 448)),
        ((500, 375), (448, 336)),
        ((333, 500), (304, 448)),
        ((500, 500), (448, 448)),
        ((1, 1000), (112, 448)),
        ((1080, 1920), (256, 448)),
        ((3, 4), (336, 448)),
    ],
)
def test_the_nearest_size_is_the_one_with_the_nearest_aspect_ratio(size, expected):
    assert nearest_size(size, network_sizes(448, 16)) == expected


def test_of_sizes_with_one_aspect_ratio_the_largest_is_taken_in_whatever_order_they_stand():
    sizes = [(96, 128), (192, 256), (48, 64), (64, 64)]
    assert nearest_size((75, 100), sizes) == nearest_size((75, 100), sizes[::-1]) == (192, 256)


def test_a_size_half_way_between_two_does_not_depend_on_their_order():
    sizes = [(64, 96), (96, 64)]
    assert nearest_size((50, 50), sizes) == nearest_size((50, 50), sizes[::-1]) == (64, 96)


def test_an_image_on_its_side_gets_the_size_on_its_side():
    sizes = network_sizes(448, 16)
    for height, width in np.random.default_rng(0).integers(1, 3000, (500, 2)).tolist():
        assert nearest_size((width, height), sizes) == nearest_size((height, width), sizes)[::-1]


def test_an_image_is_resized_once_bilinearly_to_the_nearest_size():
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    fitted = fit_to_network(Image.fromarray(pixels), network_sizes(96, 8))
    expected = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(np.asarray(fitted), np.asarray(expected))


def test_the_own_size_of_an_image_is_rounded_to_at_least_one_patch():
    assert own_size((375, 500), 16) == (368, 496)
    assert own_size((3, 8), 16) == (16, 16)

"""Run lengths and polygons of label maps, and the answer that offers them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from toco_core.palette import VOC_PALETTE
from toco_core.rle import decode_rle, encode_rle
from toco_serve import Segmentation
from toco_serve.client.polygons import mask_to_polygons

REGIONS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """SharedMemoryPool of the size and raggedness of real ones, with holes."""
    noise = np.random.default_rng(seed).normal(size=(height // 8 + 1, width // 8 + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) > 0


def signed_area(ring: np.ndarray) -> float:
    """Shoelace formula with y downwards: positive where the ring runs clockwise on the screen."""
    x, y = ring.astype(np.int64).T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2


def filled(rings: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill rings by the even-odd rule, each ring's pixels counted by their centres."""
    inside = np.zeros(shape, np.bool_)
    for ring in rings:
        canvas = Image.new("1", (4 * shape[1] + 4, 4 * shape[0] + 4))
        ImageDraw.Draw(canvas).polygon([(4 * int(x), 4 * int(y)) for x, y in ring], fill=1)
        inside ^= np.asarray(canvas)[2:-4:4, 2:-4:4]
    return inside


def test_the_run_lengths_of_a_small_region_are_those_worked_out_by_hand():
    region = np.array([[0, 1, 0], [0, 1, 1]], np.bool_)
    # Column by column 0 0 1 1 0 1: runs 2, 2, 1, 1, stated 2, 2, 1, 1 - 2 = -1; '0' + number, -1 being 31 of 5 bits.
    assert encode_rle(region) == {"size": [2, 3], "counts": "221O"}
    np.testing.assert_array_equal(decode_rle({"size": [2, 3], "counts": "221O"}), region)


@given(REGIONS)
@settings(max_examples=300, deadline=None)
def test_run_lengths_are_those_of_pycocotools(region):
    expected = coco.encode(np.asfortranarray(region, np.uint8))
    assert encode_rle(region) == {"size": expected["size"], "counts": expected["counts"].decode()}
    np.testing.assert_array_equal(decode_rle(encode_rle(region)), region)


@pytest.mark.parametrize("size", [(1, 1), (333, 500), (1200, 40), (700, 2000)])
def test_run_lengths_of_real_sizes_are_those_of_pycocotools_and_decode_to_the_region(size):
    for region in (blobs(*size, seed=0), np.ones(size, np.bool_), np.zeros(size, np.bool_)):
        ours = encode_rle(region)
        assert ours["counts"] == coco.encode(np.asfortranarray(region, np.uint8))["counts"].decode()
        np.testing.assert_array_equal(coco.decode(ours), region)
        np.testing.assert_array_equal(decode_rle(ours), region)


@pytest.mark.parametrize("counts", ["221", "2210", "22O1"])
def test_run_lengths_that_do_not_fill_their_size_are_refused(counts):
    with pytest.raises(ValueError):  # noqa: PT011 (numpy's words)
        decode_rle({"size": [2, 3], "counts": counts})


def test_the_outline_of_a_square_with_a_hole_is_the_one_worked_out_by_hand():
    region = np.ones((3, 3), np.bool_)
    region[1, 1] = False
    outer, hole = mask_to_polygons(region)
    assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]]
    assert hole.tolist() == [[1, 1], [1, 2], [2, 2], [2, 1]]
    assert (signed_area(outer), signed_area(hole)) == (9, -1)


def test_pixels_that_touch_at_a_corner_have_outlines_of_their_own():
    falling = np.array([[1, 0], [0, 1]], np.bool_)
    assert [ring.tolist() for ring in mask_to_polygons(falling)] == [
        [[0, 0], [1, 0], [1, 1], [0, 1]],
        [[1, 1], [2, 1], [2, 2], [1, 2]],
    ]
    assert [ring.tolist() for ring in mask_to_polygons(falling[:, ::-1])] == [
        [[1, 0], [2, 0], [2, 1], [1, 1]],
        [[0, 1], [1, 1], [1, 2], [0, 2]],
    ]


def test_an_empty_region_has_no_outline():
    assert mask_to_polygons(np.zeros((4, 5), np.bool_)) == []


@given(REGIONS)
@settings(max_examples=300, deadline=None)
def test_filled_outlines_are_the_region_again(region):
    rings = mask_to_polygons(region)
    np.testing.assert_array_equal(filled(rings, region.shape), region)
    assert sum(map(signed_area, rings)) == region.sum()
    for ring in rings:
        steps = np.roll(ring, -1, axis=0) - ring
        assert ((steps != 0).sum(axis=1) == 1).all(), "each step goes along a row or a column, and somewhere"


def test_filled_outlines_of_a_real_size_are_the_region_again():
    region = blobs(333, 500, seed=1)
    np.testing.assert_array_equal(filled(mask_to_polygons(region), region.shape), region)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_an_answer_gives_the_regions_of_the_classes_that_occur(seed):
    mask = np.random.default_rng(seed).choice(np.array([0, 1, 3], np.uint8), size=(9, 7))
    mask[0, 0], mask[8, 6] = 1, 3
    answer = Segmentation(mask, np.zeros_like(mask), ("cat", "dog", "horse"), VOC_PALETTE[:4])
    assert list(answer.rles()) == list(answer.polygons()) == ["cat", "horse"]
    for name, label in (("cat", 1), ("horse", 3)):
        np.testing.assert_array_equal(coco.decode(answer.rles()[name]), mask == label)
        np.testing.assert_array_equal(filled(answer.polygons()[name], mask.shape), mask == label)


def test_masks_and_overlays_have_the_colours_of_the_palette(tmp_path):
    palette = np.array([[0, 0, 0], [10, 20, 30], [40, 50, 60]], np.uint8)
    answer = Segmentation(np.array([[1, 2]], np.uint8), np.zeros((1, 2), np.uint8), ("cat", "dog"), palette)
    answer.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.convert("RGB").get_flattened_data() == ((10, 20, 30), (40, 50, 60))
    shown = answer.overlay(np.zeros((1, 2, 3), np.uint8), opacity=1)
    assert shown.get_flattened_data() == ((10, 20, 30), (40, 50, 60))

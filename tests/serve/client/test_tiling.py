"""Images larger than the network's own size, in tiles."""

import asyncio
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_model import quadrants

from toco_core.errors import ConfigError, DataError
from toco_serve import AsyncClient
from toco_serve.client.tiling import padded, tiles


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tiles_are_evenly_spread_and_share_their_overlap_in_the_middle():
    # Two rows of 10 over 16 overlap by 4, cut at 8; three columns of 10 over 24 begin at 0, 7 and 14.
    grid = tiles((16, 24), (10, 10), overlap=0.25)
    rows = [(slice(0, 10), slice(0, 8), slice(0, 8)), (slice(6, 16), slice(2, 10), slice(8, 16))]
    columns = [
        (slice(0, 10), slice(0, 8), slice(0, 8)),
        (slice(7, 17), slice(1, 8), slice(8, 15)),
        (slice(14, 24), slice(1, 10), slice(15, 24)),
    ]
    expected = [tuple(zip(row, column, strict=True)) for row in rows for column in columns]
    assert [(tile.source, tile.kept, tile.target) for tile in grid] == expected


SIDES = st.integers(1, 100)


@given(SIDES, SIDES, st.integers(1, 40), st.integers(1, 40), st.floats(0, 0.75))
@settings(deadline=None)
def test_each_pixel_is_decided_once_by_a_tile_that_shows_it_and_tiles_overlap_enough(
    height, width, rows, columns, overlap
):
    grid = tiles((height, width), (rows, columns), overlap)
    place = np.stack(np.mgrid[: max(height, rows), : max(width, columns)], axis=-1)
    times, merged = np.zeros((height, width), int), np.full((height, width, 2), -1)
    for tile in grid:
        assert place[tile.source].shape[:2] == (rows, columns)
        merged[tile.target] = place[tile.source][tile.kept]
        times[tile.target] += 1
    assert (times == 1).all()
    np.testing.assert_array_equal(merged, place[:height, :width])
    for axis, length in ((0, rows), (1, columns)):
        starts = sorted({tile.source[axis].start for tile in grid})
        shared = [start + length - following for start, following in itertools.pairwise(starts)]
        assert all(pixels >= int(overlap * length) for pixels in shared)


def test_an_image_narrower_than_a_tile_is_continued_by_its_rim():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert padded(image, (2, 3)).tolist() == [[[0, 1, 2], [3, 4, 5], [3, 4, 5]]] * 2
    assert padded(image, (1, 1)) is image


@pytest.mark.parametrize("size", [(300, 500), (97, 96), (40, 700), (1000, 33)])
def test_a_network_that_looks_at_single_pixels_answers_in_tiles_as_it_does_untiled(client, network, size):
    image = noise(*size)
    mask, confidence = (output[0] for output in network.run(["mask", "confidence"], {"image": image[None]}))
    answer = client.segment_tiled(image)
    np.testing.assert_array_equal(answer.mask, mask)
    np.testing.assert_array_equal(answer.confidence, confidence)


@pytest.mark.parametrize("size", [(96, 96), (40, 70), (1, 1)])
def test_an_image_that_fits_in_one_tile_is_answered_untiled(client, size):
    answer, untiled = client.segment_tiled(noise(*size)), client.segment(noise(*size))
    np.testing.assert_array_equal(answer.mask, untiled.mask)
    np.testing.assert_array_equal(answer.confidence, untiled.confidence)


def test_the_asyncio_client_answers_in_tiles_too(server, client, tmp_path):
    Image.fromarray(quadrants(150, 333)).save(tmp_path / "image.png")

    async def ask() -> np.ndarray:
        async with AsyncClient(server.grpc_url) as asynchronous:
            return (await asynchronous.segment_tiled(tmp_path / "image.png", overlap=0.5)).mask

    np.testing.assert_array_equal(asyncio.run(ask()), client.segment_tiled(quadrants(150, 333)).mask)


def test_an_overlap_that_is_no_share_and_a_file_that_is_no_image_are_refused(client, tmp_path):
    for overlap in (-0.1, 0.8, float("nan")):
        with pytest.raises(ConfigError) as caught:
            client.segment_tiled(noise(200, 200), overlap=overlap)
        assert str(caught.value) == f"the overlap is {overlap:g}; expected a share of a tile, 0 to 0.75"
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=rf"^{tmp_path}/notes.txt: the image cannot be read: it is text"):
        client.segment_tiled(tmp_path / "notes.txt")

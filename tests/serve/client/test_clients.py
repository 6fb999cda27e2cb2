"""Both clients, sync and asyncio: the same answers and errors, many images."""

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_model import CLASSES, quadrant_labels, quadrants

from toco_core.errors import ConfigError, ServeError
from toco_serve import AsyncClient, Client, EmbeddedTriton, Outcome, Ports, Retry, Segmentation
from toco_serve.errors import UnreachableError

ANY = Ports(0, 0, 0)
BATCH = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Six images of different sizes, of which the fourth is damaged and the last is missing."""
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths[:-1]):
        Image.fromarray(quadrants(40 + 10 * index, 60)).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    return paths


def assert_outcomes_of(photos: list[Path], outcomes: list[Outcome]) -> None:
    assert [outcome.image for outcome in outcomes] == photos
    for index in (0, 1, 2, 4):
        answer = outcomes[index].segmentation
        assert outcomes[index].error is None
        assert answer.mask.shape == (40 + 10 * index, 60)
        assert quadrant_labels(answer.mask) == [0, 1, 2, 3]
    assert outcomes[3].segmentation is None
    assert str(outcomes[3].error).startswith(f"{photos[3]}: the image cannot be read: it is damaged (")
    assert str(outcomes[5].error) == f"cannot read {photos[5]}: no such file or directory; give the path of an image"


def test_the_asyncio_client_gives_the_answers_of_the_other(server, client):
    photograph = quadrants(131, 77)

    async def ask() -> tuple:
        async with AsyncClient(server.grpc_url) as asynchronous:
            together = await asyncio.gather(*(asynchronous.segment(photograph) for _ in range(8)))
            return asynchronous.classes, together, await asynchronous.segment_tensor(BATCH)

    classes, photographs, batch = asyncio.run(ask())
    assert classes == CLASSES
    expected = client.segment(photograph)
    for answer in photographs:
        np.testing.assert_array_equal(answer.mask, expected.mask)
        np.testing.assert_array_equal(answer.confidence, expected.confidence)
    for answer, one in zip(batch, client.segment_tensor(BATCH), strict=True):
        np.testing.assert_array_equal(answer.mask, one.mask)
        np.testing.assert_array_equal(answer.confidence, one.confidence)


NOISE = np.random.default_rng(0).integers(0, 256, (131, 77, 3), dtype=np.uint8)


@pytest.mark.parametrize("answer_format", ["png", "rle"])
@pytest.mark.parametrize("photograph", [NOISE, quadrants(50, 90), np.zeros((40, 30, 3), np.uint8)])
def test_an_answer_that_travels_in_another_format_is_the_same(server, client, photograph, answer_format):
    async def ask() -> Segmentation:
        async with AsyncClient(server.grpc_url, answer_format=answer_format) as asynchronous:
            return await asynchronous.segment(photograph)

    expected = client.segment(photograph)
    with Client(server.grpc_url, answer_format=answer_format) as other:
        for answer in (other.segment(photograph), asyncio.run(ask())):
            assert answer.mask.dtype == answer.confidence.dtype == np.uint8
            assert answer.mask.flags.c_contiguous
            np.testing.assert_array_equal(answer.mask, expected.mask)
            np.testing.assert_array_equal(answer.confidence, expected.confidence)


@pytest.mark.parametrize("name", ["jpg", "", "RLE", "mask_png", "../raw", None, 3])
def test_an_unknown_answer_format_is_refused_before_anything_is_asked(name):
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError) as caught:
            kind("localhost:1", answer_format=name)
        assert str(caught.value) == f"the answer format {name!r} is not known; expected one of raw, png, rle"


def test_the_asyncio_client_raises_the_errors_of_the_other(server, tmp_path):
    async def errors() -> list[str]:
        async with AsyncClient(server.grpc_url) as asynchronous:
            asked = [
                asynchronous.segment(b"hello"),
                asynchronous.segment(tmp_path / "none.jpg"),
                asynchronous.segment_tensor(np.zeros((1, 33, 32, 3), np.uint8)),
                asynchronous.segment_tensor(BATCH, timeout_s=1e-4),
            ]
            return [repr(error) for error in await asyncio.gather(*asked, return_exceptions=True)]

    assert asyncio.run(errors()) == [
        "DataError('the image cannot be read: it is text, expected JPEG, PNG, WebP, BMP or TIFF; replace it')",
        f"DataError('cannot read {tmp_path}/none.jpg: no such file or directory; give the path of an image')",
        "ImageSizeError('image height 33 is not a multiple of the patch size 16; pad to 48')",
        f"DeadlineError('{server.grpc_url} did not answer within 0.0001 s; allow more time or ask for less')",
    ]


def test_an_asyncio_client_that_was_not_opened_says_how_to_open_it():
    with pytest.raises(ServeError) as caught:
        _ = AsyncClient("localhost:1").classes
    assert str(caught.value) == ("the client of localhost:1 is not connected; use it as 'async with AsyncClient(...)'")


def test_an_asyncio_client_without_a_server_gives_one_sentence():
    async def enter() -> None:
        async with AsyncClient("localhost:1"):
            pass

    with pytest.raises(UnreachableError, match=r"^no server answers at localhost:1: start one with toco-serve, or"):
        asyncio.run(enter())


def test_a_cancelled_task_cancels_its_request_and_the_client_goes_on(slow_repository):
    image = quadrants(32, 32)

    async def cancel(url: str) -> float:
        async with AsyncClient(url) as asynchronous:
            requests = [asyncio.create_task(asynchronous.segment_tensor(image[None])) for _ in range(20)]
            await asyncio.sleep(0.2)
            for request in requests[1:]:
                request.cancel()
            await requests[0]
            begun = time.monotonic()
            answer = (await asynchronous.segment_tensor(image[None]))[0]
            assert quadrant_labels(answer.mask) == [0, 1, 2, 3]
            return time.monotonic() - begun

    with EmbeddedTriton(slow_repository, ports=ANY) as server:
        assert asyncio.run(cancel(server.grpc_url)) < 2, "19 requests of half a second each were not cancelled"


def test_many_images_get_their_outcomes_in_order_and_a_bad_one_fails_alone(client, photos):
    assert_outcomes_of(photos, list(client.segment_many(photos, in_flight=3)))


def test_many_images_get_their_outcomes_from_the_asyncio_client_too(server, photos):
    async def ask() -> list[Outcome]:
        async with AsyncClient(server.grpc_url) as asynchronous:
            return [outcome async for outcome in asynchronous.segment_many(photos, in_flight=3)]

    assert_outcomes_of(photos, asyncio.run(ask()))


def test_no_more_images_are_taken_ahead_than_may_be_in_flight(server, client):
    taken: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        for index in itertools.count():
            taken.append(index)
            yield quadrants(32, 32)

    outcomes = client.segment_many(endless(), in_flight=3)
    for num_given in range(1, 4):
        next(outcomes)
        assert len(taken) == num_given + 2
    outcomes.close()

    async def ask() -> None:
        async with AsyncClient(server.grpc_url) as asynchronous:
            outcomes = asynchronous.segment_many(endless(), in_flight=3)
            taken.clear()
            for num_given in range(1, 4):
                await anext(outcomes)
                assert len(taken) == num_given + 2
            await outcomes.aclose()

    asyncio.run(ask())


def test_no_request_in_flight_at_all_is_refused(server, client):
    async def ask() -> None:
        async with AsyncClient(server.grpc_url) as asynchronous:
            await anext(asynchronous.segment_many([], in_flight=0))

    for refused in (lambda: next(client.segment_many([], in_flight=0)), lambda: asyncio.run(ask())):
        with pytest.raises(ConfigError, match=r"^0 requests in flight would be none at all; give 1 or more$"):
            refused()


def test_many_images_end_with_the_server(repository):
    with EmbeddedTriton(repository, ports=ANY) as server, Client(server.grpc_url, retry=Retry(1)) as client:
        outcomes = client.segment_many(itertools.repeat(quadrants(32, 32)), in_flight=2)
        assert next(outcomes).error is None
        server.stop()
        with pytest.raises(UnreachableError):
            list(itertools.islice(outcomes, 100))

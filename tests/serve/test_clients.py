"""Both clients, sync and asyncio: many images, deadlines, repetition, encryption."""

import asyncio
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from certificates import write_certificates
from PIL import Image
from toy_model import CLASSES, quadrant_labels, quadrants, slow_down, write_toy_repository
from tritonclient.utils import InferenceServerException

import toco_serve.triton_process
from toco.errors import ConfigError, DataError, ServeError
from toco_serve import AsyncClient, Client, EmbeddedTriton, Outcome, Ports, Retry, Segmentation, Tls
from toco_serve.exchange import Call, Conversation, Pause, ServedModel, opening
from toco_serve.failures import BackendLostError, BusyError, UnreachableError

ANY = Ports(0, 0, 0)
BATCH = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)


@pytest.fixture
def slow_repository(tmp_path: Path) -> Path:
    """A repository whose model takes half a second, and whose queue of encoded images holds one."""
    repository = write_toy_repository(tmp_path / "repository")
    slow_down(repository, 0.5)
    config = repository / "toco_image/config.pbtxt"
    config.write_text(
        config.read_text().replace("max_queue_size: 64", "max_queue_size: 1").replace("count: 4", "count: 1")
    )
    return repository


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
    assert str(outcomes[3].error).startswith(f"{photos[3]}: the image is damaged (")
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


def test_an_answer_that_travels_as_png_is_the_same(server, client):
    photograph = np.random.default_rng(0).integers(0, 256, (131, 77, 3), dtype=np.uint8)

    async def ask() -> Segmentation:
        async with AsyncClient(server.grpc_url, compressed=True) as asynchronous:
            return await asynchronous.segment(photograph)

    expected = client.segment(photograph)
    assert len(np.unique(expected.mask)) == 4
    with Client(server.grpc_url, compressed=True) as compressed:
        for answer in (compressed.segment(photograph), asyncio.run(ask())):
            assert answer.mask.dtype == answer.confidence.dtype == np.uint8
            np.testing.assert_array_equal(answer.mask, expected.mask)
            np.testing.assert_array_equal(answer.confidence, expected.confidence)


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
        "DataError('the data is 5 bytes of text; a JPEG, PNG, WebP, BMP or TIFF image is expected')",
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


class Conversant:
    """Takes the steps of an exchange with a server that answers as it is told."""

    def __init__(self, *answers: Exception | str, retry: Retry = Retry(), timeout_s: float = 30) -> None:
        self.answers = iter(answers)
        self.calls: list[Call] = []
        self.pauses: list[float] = []
        self._conversation = Conversation("host:1", timeout_s, retry, False, ServedModel(CLASSES, (96, 96), 8))

    def ask(self) -> None:
        exchange = self._conversation.segment_tensor(BATCH, None)
        step = next(exchange)
        while True:
            if isinstance(step, Pause):
                self.pauses.append(step.seconds)
                time.sleep(step.seconds)
                step = exchange.send(None)
                continue
            self.calls.append(step)
            answer = next(self.answers)
            step = exchange.throw(answer) if isinstance(answer, Exception) else exchange.send(answer)


def answered(status: str, message: str) -> InferenceServerException:
    return InferenceServerException(message, status=f"StatusCode.{status}")


GONE = answered("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: Connection refused (111)")
CLOSED = answered("UNAVAILABLE", "recvmsg:Connection reset by peer")
FULL = answered("UNAVAILABLE", "Exceeds maximum queue size")
LOST = answered(
    "INTERNAL", "Failed to process the request(s) for model instance 'toco_0', Stub process is not healthy."
)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (GONE, UnreachableError, "no server answers at host:1: start one with toco-serve, or give the address of one "
         "that runs"),
        (CLOSED, UnreachableError, "host:1 closed the connection: it stopped, or it expects TLS or another "
         "certificate of this client"),
        (FULL, BusyError, "host:1 is busy (Exceeds maximum queue size); ask again later, or send less at once"),
        (LOST, BackendLostError, "the process that runs the model at host:1 ended; restart the server if that lasts"),
    ],
    ids=["gone", "closed", "full", "lost"],
)  # fmt: skip
def test_what_may_pass_is_asked_again_with_growing_pauses_and_then_reported(answer, error, message):
    conversant = Conversant(*[answer] * 4, retry=Retry(max_attempts=4, first_pause_s=0.01, longest_pause_s=0.03))
    with pytest.raises(error) as caught:
        conversant.ask()
    assert str(caught.value) == message
    assert len(conversant.calls) == 4
    for pause, bound in zip(conversant.pauses, [0.01, 0.02, 0.03], strict=True):
        assert bound / 2 <= pause <= bound


@pytest.mark.parametrize(
    "answer",
    [
        answered("INVALID_ARGUMENT", "DataError: the data is empty"),
        answered("INVALID_ARGUMENT", "[request id: <id_unknown>] inference request batch-size must be <= 8"),
        answered("DEADLINE_EXCEEDED", "Deadline Exceeded"),
        answered("UNAVAILABLE", "Request timeout expired"),
        answered("UNAVAILABLE", "last error: UNKNOWN: Tls handshake failed: CERTIFICATE_VERIFY_FAILED"),
        answered("INTERNAL", "onnx runtime error 6"),
    ],
    ids=lambda answer: answer.message()[:20],
)
def test_what_will_not_pass_is_asked_once(answer):
    conversant = Conversant(answer)
    with pytest.raises((DataError, ServeError)):
        conversant.ask()
    assert len(conversant.calls) == 1
    assert conversant.pauses == []


def test_each_attempt_is_given_the_time_that_is_left_and_none_begins_after_it():
    conversant = Conversant(GONE, GONE, GONE, timeout_s=0.5, retry=Retry(10, first_pause_s=0.2, longest_pause_s=1))
    with pytest.raises(UnreachableError):  # after 0.1 to 0.2 s and 0.2 to 0.4 s; 0.4 to 0.8 s more do not fit
        conversant.ask()
    allowed = [call.arguments["client_timeout"] for call in conversant.calls]
    assert 2 <= len(allowed) == len(conversant.pauses) + 1 <= 3
    for left, before, pause in zip(allowed[1:], allowed, conversant.pauses, strict=False):
        assert left <= before - pause
    assert [call.arguments["timeout"] for call in conversant.calls] == [int(left * 1e6) for left in allowed]


def test_opening_asks_once_and_takes_a_silent_server_for_none():
    exchange = opening("host:1", 30)
    assert next(exchange).arguments["client_timeout"] == 5
    with pytest.raises(UnreachableError, match=r"^no server answers at host:1"):
        exchange.throw(answered("DEADLINE_EXCEEDED", "Deadline Exceeded"))


def test_a_full_queue_is_a_clear_error_at_once_and_a_patient_client_gets_through(slow_repository):
    data = io.BytesIO()
    Image.fromarray(quadrants(32, 32)).save(data, format="PNG")

    def outcomes_of(client: Client, number: int) -> list[str]:
        outcomes: list[str] = []

        def ask() -> None:
            try:
                outcomes.append(str(quadrant_labels(client.segment(data.getvalue()).mask)))
            except BusyError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    with EmbeddedTriton(slow_repository, ports=ANY) as server:
        busy = f"{server.grpc_url} is busy (Exceeds maximum queue size); ask again later, or send less at once"
        with Client(server.grpc_url, retry=Retry(max_attempts=1)) as impatient:
            outcomes = outcomes_of(impatient, 8)
        assert set(outcomes) == {"[0, 1, 2, 3]", busy}
        with Client(server.grpc_url, retry=Retry(max_attempts=100)) as patient:
            assert outcomes_of(patient, 8) == ["[0, 1, 2, 3]"] * 8


def test_a_server_that_is_killed_and_started_again_costs_a_retrying_client_nothing_but_time(repository):
    image = quadrants(75, 51)
    first = EmbeddedTriton(repository, ports=ANY)
    first.start()
    with Client(first.grpc_url, retry=Retry(max_attempts=50)) as client:
        expected = client.segment(image).mask
        first.stop()
        second = EmbeddedTriton(repository, ports=first.ports)
        starting = threading.Timer(0.5, second.start)
        starting.start()
        try:
            np.testing.assert_array_equal(client.segment(image).mask, expected)
        finally:
            starting.join()
            second.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder)
    return folder


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def encrypted(request, repository: Path, certificates: Path) -> Iterator[tuple[str, str]]:
    """A real Triton that speaks TLS alone, and asks who the client is or does not; gives which, and its address."""
    original: Callable[..., list[str]] = toco_serve.triton_process.embedded_arguments
    which = {"TLS": "--grpc-use-ssl=true", "mTLS": "--grpc-use-ssl-mutual=true"}[request.param]
    files = {"server-cert": "server.pem", "server-key": "server.key", "root-cert": "ca.pem"}
    options = [which, *(f"--grpc-{name}={certificates / file}" for name, file in files.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toco_serve.triton_process, "embedded_arguments", lambda *given: [*original(*given), *options])
        with EmbeddedTriton(repository, ports=ANY) as server:
            yield request.param, f"localhost:{server.ports.grpc}"


def test_an_encrypted_server_is_asked_with_the_certificates_that_it_wants(encrypted, certificates):
    kind, url = encrypted
    with_key = Tls(certificates / "ca.pem", certificates / "client.key", certificates / "client.pem")
    tls = with_key if kind == "mTLS" else Tls(certificates / "ca.pem")

    async def ask() -> list[int]:
        async with AsyncClient(url, tls=tls) as asynchronous:
            return quadrant_labels((await asynchronous.segment(quadrants(64, 64))).mask)

    with Client(url, tls=tls) as client:
        assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 1, 2, 3]
    assert asyncio.run(ask()) == [0, 1, 2, 3]


def test_a_server_of_another_signer_and_a_client_without_tls_are_refused(encrypted, certificates):
    _, url = encrypted
    for root in (certificates / "stranger.pem", None):
        with pytest.raises(ServeError) as untrusted:
            Client(url, tls=Tls(root))
        assert str(untrusted.value).startswith(f"no encrypted connection to {url} (")
        assert "CERTIFICATE_VERIFY_FAILED" in str(untrusted.value)
    with pytest.raises(UnreachableError) as plain:
        Client(url)
    assert str(plain.value) == (
        f"{url} closed the connection: it stopped, or it expects TLS or another certificate of this client"
    )


@pytest.mark.parametrize("encrypted", ["mTLS"], indirect=True)
def test_a_client_that_the_server_does_not_know_is_refused_by_it(encrypted, certificates):
    _, url = encrypted
    for names in ((None, None), ("stranger.key", "stranger.pem")):
        key, chain = (name and certificates / name for name in names)
        with pytest.raises(UnreachableError, match="closed the connection"):
            Client(url, tls=Tls(certificates / "ca.pem", key, chain))


def test_certificates_that_cannot_be_used_are_refused_before_a_connection_is_made(tmp_path):
    (tmp_path / "key.der").write_bytes(bytes(20))
    refused = {
        Tls(tmp_path / "none.pem"): f"cannot read {tmp_path}/none.pem: no such file or directory; give a PEM file",
        Tls(tmp_path / "key.der"): (
            f"{tmp_path}/key.der is no PEM file: it has no line that starts with -----BEGIN; convert it with openssl"
        ),
        Tls(None, tmp_path / "key.pem"): (
            "a client's private key and its certificate belong together; give both, or neither"
        ),
    }
    for tls, message in refused.items():
        with pytest.raises(ConfigError) as caught:
            Client("localhost:1", tls=tls)
        assert str(caught.value) == message

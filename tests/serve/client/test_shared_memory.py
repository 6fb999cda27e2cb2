"""Tensors that reach the server through shared memory: the same answers, and nothing left behind."""

import asyncio
import errno
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toy_model import slow_down, write_toy_repository
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from toco_core.errors import ImageSizeError, ServeError
from toco_serve import AsyncClient, Client, EmbeddedTriton, Ports, Retry, Segmentation
from toco_serve.commands.serve import main as serve
from toco_serve.errors import DeadlineError, TransientError, error_from_triton

ANY = Ports(0, 0, 0)


def noise(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def files() -> list[str]:
    return sorted(path.name for path in Path("/dev/shm").glob("toco-client-*"))


def registered(server: EmbeddedTriton) -> list[str]:
    return sorted(InferenceServerClient(server.grpc_url).get_system_shared_memory_status().regions)


def assert_same(answers: tuple[Segmentation, ...], expected: tuple[Segmentation, ...]) -> None:
    for answer, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(answer.mask, other.mask)
        np.testing.assert_array_equal(answer.confidence, other.confidence)


@pytest.fixture(scope="module")
def sharing(repository: Path) -> Iterator[EmbeddedTriton]:
    """A server that lets clients share memory."""
    with EmbeddedTriton(repository, ports=ANY, shared_memory=True) as running:
        yield running


@pytest.fixture
def slow_sharing(tmp_path: Path) -> Iterator[EmbeddedTriton]:
    """One whose network takes half a second."""
    repository = write_toy_repository(tmp_path / "repository")
    slow_down(repository, 0.5)
    with EmbeddedTriton(repository, ports=ANY, shared_memory=True) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert files() == []


def test_answers_are_those_of_a_client_without_shared_memory_and_its_end_leaves_nothing(sharing, client):
    batches = [noise(1, 96, 96), noise(3, 64, 512), noise(8, 32, 48), noise(2, 96, 96)[:, ::-1], noise(2, 96, 96)[:1]]
    large = noise(1, 200, 333)[0]
    with Client(sharing.grpc_url, shared_memory=True) as sharer:
        for batch in batches:
            assert_same(sharer.segment_tensor(batch), client.segment_tensor(batch))
        assert_same((sharer.segment_tiled(large), sharer.segment(large)),
                    (client.segment_tiled(large), client.segment(large)))  # fmt: skip
        assert len(files()) == 1, "requests one after another share one region"
        assert set(files()) <= set(registered(sharing))
    assert registered(sharing) == []


def test_the_asyncio_client_gives_the_same_answers_and_leaves_nothing(sharing, client):
    batches = [noise(1, 96, 96, seed) for seed in range(8)]

    async def ask() -> list[tuple[Segmentation, ...]]:
        async with AsyncClient(sharing.grpc_url, shared_memory=True) as sharer:
            answers = await asyncio.gather(*map(sharer.segment_tensor, batches))
            assert len(files()) == 8, "each request in flight has a region of its own"
            return answers

    for answers, batch in zip(asyncio.run(ask()), batches, strict=True):
        assert_same(answers, client.segment_tensor(batch))
    assert registered(sharing) == []


def test_threads_that_share_a_client_get_the_answers_to_their_own_images(sharing, client):
    wrong: list[int] = []

    def ask(sharer: Client, seed: int) -> None:
        for turn in range(20):
            batch = noise(1 + turn % 3, 32 * (1 + turn % 2), 64, seed + 100 * turn)
            expected, (answer, *_) = client.segment_tensor(batch)[0], sharer.segment_tensor(batch)
            wrong.append(int((answer.mask != expected.mask).sum() + (answer.confidence != expected.confidence).sum()))

    with Client(sharing.grpc_url, shared_memory=True) as sharer:
        threads = [threading.Thread(target=ask, args=(sharer, seed)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(files()) <= 6
    assert wrong == [0] * 120
    assert registered(sharing) == []


def test_a_server_that_is_started_again_is_told_of_the_memory_within_one_more_attempt(repository, client):
    batches = [noise(1, 96, 96, seed) for seed in range(4)]
    first = EmbeddedTriton(repository, ports=ANY, shared_memory=True)
    first.start()
    with Client(first.grpc_url, shared_memory=True, retry=Retry(2)) as sharer:
        threads = [threading.Thread(target=sharer.segment_tensor, args=(batch,)) for batch in batches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first.stop()
        with EmbeddedTriton(repository, ports=first.ports, shared_memory=True) as second:
            sharer.segment(noise(1, 40, 40)[0], timeout_s=20)  # connected again, which a lost request may take
            for batch in batches:
                assert_same(sharer.segment_tensor(batch), client.segment_tensor(batch))
            assert registered(second) == files()


def test_a_roll_out_costs_no_request(repository, client):
    batch = noise(2, 96, 96)
    expected = client.segment_tensor(batch)
    with EmbeddedTriton(repository, ports=ANY, shared_memory=True) as server:
        with Client(server.grpc_url, shared_memory=True) as sharer:
            stop = threading.Event()
            answers: list[tuple[Segmentation, ...]] = []

            def ask() -> None:
                while not stop.is_set():
                    answers.append(sharer.segment_tensor(batch))

            thread = threading.Thread(target=ask)
            thread.start()
            server.roll_out()
            before = len(answers)
            while thread.is_alive() and len(answers) < before + 20:
                time.sleep(0.02)
            stop.set()
            thread.join()
        assert len(answers) >= before + 20
    for answer in answers:
        assert_same(answer, expected)


def test_a_region_whose_request_ran_out_of_time_is_used_no_more(slow_sharing, client):
    given_up, batch = noise(1, 96, 96, 1), noise(1, 96, 96, 2)
    with Client(slow_sharing.grpc_url, shared_memory=True) as sharer:
        before = files()
        with pytest.raises(DeadlineError):
            sharer.segment_tensor(given_up, timeout_s=0.2)
        assert files() == [], "the server reads it still"
        assert_same(sharer.segment_tensor(batch), client.segment_tensor(batch))
        assert len(files()) == 1
        assert files() != before
        with pytest.raises(ImageSizeError):  # the next region: by now the server lets go of the first
            sharer.segment_tensor(noise(1, 33, 96))
        assert_same(sharer.segment_tensor(batch), client.segment_tensor(batch))
        assert registered(slow_sharing) == files()
    assert registered(slow_sharing) == []


def test_a_region_whose_task_was_cancelled_is_used_no_more(slow_sharing, client):
    batch = noise(1, 96, 96, 2)

    async def ask() -> tuple[Segmentation, ...]:
        async with AsyncClient(slow_sharing.grpc_url, shared_memory=True) as sharer:
            task = asyncio.create_task(sharer.segment_tensor(noise(1, 96, 96, 1)))
            await asyncio.sleep(0.2)
            before = files()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert files() == []
            answer = await sharer.segment_tensor(batch)
            assert len(files()) == 1
            assert files() != before
            return answer

    assert_same(asyncio.run(ask()), client.segment_tensor(batch))
    assert registered(slow_sharing) == []


def test_a_client_that_ends_with_a_request_in_hand_leaves_the_server_no_region(slow_sharing):
    async def give_up() -> list[str]:
        async with AsyncClient(slow_sharing.grpc_url, shared_memory=True) as sharer:
            task = asyncio.create_task(sharer.segment_tensor(noise(1, 96, 96)))
            await asyncio.sleep(0.3)
            in_use = registered(slow_sharing)
            with pytest.raises(InferenceServerException, match="currently in use"):
                InferenceServerClient(slow_sharing.grpc_url).unregister_system_shared_memory(*in_use)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return in_use

    assert len(asyncio.run(give_up())) == 1
    assert registered(slow_sharing) == []


def test_a_server_that_shares_no_memory_is_a_clear_error_when_the_client_is_made(server, sharing):
    expected = (
        "{} shares no memory with this client: that takes toco-serve --shared-memory, started by the same user on this "
        "machine; leave shared_memory out where it cannot be had"
    )

    async def enter() -> None:
        async with AsyncClient(server.grpc_url, shared_memory=True):
            pass

    for refused in (lambda: Client(server.grpc_url, shared_memory=True), lambda: asyncio.run(enter())):
        with pytest.raises(ServeError) as caught:
            refused()
        assert str(caught.value) == expected.format(server.grpc_url)
        assert not isinstance(caught.value, TransientError)
    with pytest.raises(InferenceServerException) as unseen:  # what a server of another machine says
        InferenceServerClient(sharing.grpc_url).register_system_shared_memory("elsewhere", "/toco-client-elsewhere", 9)
    assert str(error_from_triton(unseen.value, "host:1", 1)) == expected.format("host:1")


def test_shared_memory_opens_no_other_door(sharing):
    triton = InferenceServerClient(sharing.grpc_url)
    for call, arguments in (("load_model", ("toco",)), ("update_trace_settings", ("toco",)), ("get_log_settings", ())):
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            getattr(triton, call)(*arguments)
    with pytest.raises(urllib.error.HTTPError, match="Forbidden"):
        urllib.request.urlopen(f"{sharing.http_url}/v2/systemsharedmemory/status")


def test_no_room_for_shared_memory_is_one_sentence(sharing, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Client(sharing.grpc_url, shared_memory=True) as sharer:
        monkeypatch.setattr("os.posix_fallocate", full)
        with pytest.raises(ServeError) as caught:
            sharer.segment_tensor(noise(2, 96, 96))
    assert str(caught.value) == "/dev/shm has no room for 55296 bytes; make it larger, or leave shared_memory out"


def test_the_container_never_shares_memory(repository, capsys):
    assert serve([str(repository), "--docker", "--shared-memory"]) == 2
    assert capsys.readouterr().err == (
        "toco-serve: error: --shared-memory goes without --docker: a container has memory of its own; leave it out\n"
    )
    assert serve([str(repository), "--docker"]) == 0
    commands = capsys.readouterr().out
    assert "--grpc-restricted-protocol=model-repository,trace,logging,shared-memory:toco-admin=" in commands
    assert "--http-restricted-api=model-repository,trace,logging,shared-memory:toco-admin=" in commands

"""Faults, hostile input and load: nothing is lost, and nothing is answered wrongly.

Every answer is compared with that of the same network, and the same decoding, in this process.
"""

import asyncio
import contextlib
import io
import json
import os
import random
import socket
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import grpc
import numpy as np
import onnxruntime
import psutil
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from processes import stubs_of
from toy_model import slow_down, write_toy_repository
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from toco_core.errors import DataError, ServeError
from toco_serve import AsyncClient, Client, EmbeddedTriton, Ports, Retry
from toco_serve.errors import BusyError

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # that damaged images are damaged
]

ANY = Ports(0, 0, 0)
LOAD_S = float(os.environ.get("TOCO_CHAOS_S", "15"))
PATIENT = Retry(max_attempts=200, longest_pause_s=0.5)


def photograph(seed: int) -> np.ndarray:
    """Blurred noise of a size and with labels of its own."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(20, 200, 2)
    small = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((int(width), int(height)), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


class InProcess:
    """What a server should answer, worked out here."""

    def __init__(self, served: ModuleType, network: onnxruntime.InferenceSession, repository: Path) -> None:
        config = text_format.Parse((repository / "toco_image/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        parameters = {name: value.string_value for name, value in config.parameters.items()}
        self._served, self._network = served, network
        self._limits = (int(parameters["max_image_bytes"]), int(parameters["max_image_pixels"]))
        self._buckets = [(height, width) for height, width in json.loads(parameters["buckets"])]

    def mask(self, data: bytes) -> np.ndarray:
        """Answer encoded bytes, or raise the served model's ``RefusedImageError``."""
        image, size = self._served.decode(data, self._buckets, *self._limits)
        (mask,) = self._network.run(["mask"], {"image": image[None]})
        return np.asarray(Image.fromarray(mask[0]).resize(size, Image.Resampling.NEAREST))

    def outcome(self, data: bytes) -> bytes | str:
        try:
            return self.mask(data).tobytes()
        except self._served.RefusedImageError as error:
            return f"the image cannot be read: {error}"


@pytest.fixture(scope="module")
def in_process(served, network, repository) -> InProcess:
    return InProcess(served, network, repository)


class Load:
    """Clients that ask for photographs from threads of their own, over and over, and compare every answer."""

    def __init__(self, url: str, in_process: InProcess, num_clients: int, retry: Retry = PATIENT) -> None:
        photographs = [encode(photograph(seed)) for seed in range(24)]
        self.expected = [(data, in_process.mask(data)) for data in photographs]
        self.num_answers = 0
        self.wrong = 0
        self.failures: Counter[str] = Counter()
        self._url, self._retry, self._num_clients = url, retry, num_clients
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in range(self._num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, num_more: int) -> None:
        """Wait until that many more answers have come."""
        wanted, deadline = self.num_answers + num_more, time.monotonic() + 60
        while self.num_answers < wanted:
            assert time.monotonic() < deadline, f"{self.num_answers} answers, {self.failures}"
            time.sleep(0.02)

    def assert_nothing_lost(self) -> None:
        assert self.failures == {}
        assert self.wrong == 0
        assert self.num_answers > 0

    def _ask(self, seed: int) -> None:
        order = random.Random(seed)
        with Client(self._url, retry=self._retry) as client:
            while not self._stop.is_set():
                data, mask = order.choice(self.expected)
                try:
                    right = np.array_equal(client.segment(data).mask, mask)
                except Exception as error:
                    with self._lock:
                        self.failures[f"{type(error).__name__}: {error}"] += 1
                else:
                    with self._lock:
                        self.num_answers += 1
                        self.wrong += not right


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Damage an encoded image in one to four of the ways in which files are damaged, by accident and on purpose."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(max(1, len(content)))
        match chance.randrange(8):
            case 0:
                del content[at:]
            case 1:
                content[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                del content[at : at + chance.randint(1, 64)]
            case 3:
                content[at:at] = chance.randbytes(chance.randint(1, 64))
            case 4:
                content[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff"])
            case 5:
                header = chance.randrange(min(64, max(1, len(content))))  # where sizes are declared
                content[header : header + 2] = chance.choice([b"\xff\xff", b"\x00\x00", b"\x7f\xff"])
            case 6:
                content += content[at:]
            case 7:
                content[at : at + 8] = content[at : at + 8][::-1]
    return bytes(content)


def test_300_damaged_images_get_the_answer_or_the_error_that_they_get_in_process(server, in_process):
    chance = random.Random(0)
    whole = [encode(photograph(seed), kind) for seed, kind in enumerate(("JPEG", "PNG", "WEBP", "BMP", "TIFF"))]
    damaged = [mutated(whole[index % 5], chance) for index in range(300)]
    expected = [in_process.outcome(data) for data in damaged]
    refused = sum(isinstance(outcome, str) for outcome in expected)
    assert refused >= 100, "the mutator does too little"
    with Load(server.grpc_url, in_process, num_clients=2) as load, Client(server.grpc_url) as client:
        for outcome, wanted in zip(client.segment_many(damaged), expected, strict=True):
            if outcome.error is None:
                assert outcome.segmentation.mask.tobytes() == wanted
            else:
                assert type(outcome.error) is DataError
                assert str(outcome.error) == wanted
        load.wait_for(10)
    load.assert_nothing_lost()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_an_image_that_declares_far_more_pixels_than_it_has_is_refused_without_the_memory_for_them(
    server, kind, client
):
    data = bytearray(encode(np.zeros((64, 64, 3), np.uint8), kind))
    declared = {
        "JPEG": lambda: data.find(b"\xff\xc0") + 5,
        "PNG": lambda: 16,
        "WEBP": lambda: data.find(b"\x9d\x01\x2a") + 3,
        "BMP": lambda: 18,
        "TIFF": lambda: None,
    }[kind]()
    if kind == "TIFF":  # width and height are entries 256 and 257 of the directory, short or long
        for tag in (256, 257):
            at = data.find(tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + (64).to_bytes(4, "little"))
            at = at if at >= 0 else data.find(tag.to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00")
            data[at + 2 : at + 12] = b"\x04\x00\x01\x00\x00\x00" + (60_000).to_bytes(4, "little")
    elif kind == "PNG":
        data[declared : declared + 8] = (60_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif kind == "JPEG":
        data[declared : declared + 4] = b"\xea\x60" * 2
    elif kind == "WEBP":
        data[declared : declared + 4] = b"\xff\x3f" * 2
    else:
        data[declared : declared + 8] = (60_000).to_bytes(4, "little") * 2
    peak = max(process.memory_info().rss for process in stubs_of(server, "toco_image"))
    with pytest.raises(DataError, match=r"expected at most 33,554,432 pixels; resize it$"):
        client.segment(bytes(data))
    assert max(process.memory_info().rss for process in stubs_of(server, "toco_image")) < peak + 32 * 2**20


SIDES = st.sampled_from([-1, 0, 1, 3, 4, 16, 32, 33, 48, 10_000, 2**31, 2**62])
ZEROS = bytes(32 * 32 * 3)
OVERFLOW = (
    "batch size 2147483648 for 'toco_0_0', max allowed is 8"  # Triton calls it INTERNAL: 2**31 x 2**62 wraps to 0
)

tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            [("toco", "image"), ("toco_image", "image_bytes")] * 3 + [("toco", ""), ("toco", "mask")]
        ),
        "datatype": st.sampled_from(["UINT8", "BYTES"] * 3 + ["INT8", "FP32", "BOOL", "INT64", "NONSENSE", ""]),
        "shape": st.one_of(
            st.sampled_from([[1], [1, 32, 32, 3]]),
            st.tuples(st.sampled_from([-1, 0, 1, 2, 9, 2**31]), SIDES, SIDES, st.sampled_from([3, 1])).map(list),
            st.lists(SIDES, max_size=5),
        ),
        "contents": st.lists(st.one_of(st.binary(max_size=64), st.sampled_from([ZEROS, b"\xff" * 4])), max_size=2),
    }
)


def test_malformed_tensors_are_refused_and_good_requests_beside_them_succeed(server, in_process, network):
    """What the protocol can say and the models cannot take: any shape, type, name, and number of bytes."""
    (blank,) = network.run(["mask"], {"image": np.zeros((1, 32, 32, 3), np.uint8)})
    outcomes: Counter[str] = Counter()

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(tensors)
    def ask(tensor):
        model, name = tensor["name"]
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name=name, datatype=tensor["datatype"], shape=tensor["shape"])
        request.raw_input_contents.extend(tensor["contents"])
        try:
            reply = stub.ModelInfer(request, timeout=10)
        except grpc.RpcError as error:
            outcomes["INVALID_ARGUMENT" if OVERFLOW in error.details() else error.code().name] += 1
        else:
            assert list(reply.outputs[0].shape) == [1, 32, 32]
            assert reply.raw_output_contents[0] == blank.tobytes()
            outcomes["answered"] += 1

    with grpc.insecure_channel(server.grpc_url) as channel, Load(server.grpc_url, in_process, num_clients=2) as load:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        ask()
        load.wait_for(10)
    load.assert_nothing_lost()
    assert outcomes.keys() <= {"INVALID_ARGUMENT", "answered"}
    assert outcomes["INVALID_ARGUMENT"] >= 250


@pytest.mark.parametrize("model", ["toco", "toco_image"])
def test_a_model_process_that_is_killed_under_load_loses_nothing(repository, in_process, model):
    with EmbeddedTriton(repository, ports=ANY) as server, Load(server.grpc_url, in_process, num_clients=8) as load:
        load.wait_for(50)
        time.sleep(1.5)  # the supervisor looks once a second
        stubs_of(server, model)[0].kill()
        load.wait_for(200)
    load.assert_nothing_lost()


def test_a_server_that_is_killed_and_started_again_under_load_loses_nothing(repository, in_process):
    with EmbeddedTriton(repository, ports=ANY) as first, Load(first.grpc_url, in_process, num_clients=8) as load:
        load.wait_for(50)
        psutil.Process(first.pid).children()[0].kill()
        with pytest.raises(ServeError, match="killed by SIGKILL"):
            first.wait()
        first.stop()
        with EmbeddedTriton(repository, ports=first.ports) as second:
            load.wait_for(200)
            assert second.ports == first.ports
            load.__exit__()  # before the second ends
    load.assert_nothing_lost()


def resident(server: EmbeddedTriton) -> int:
    """Memory of the server's processes, in bytes, what they share counted once, with the fewest requests in hand."""
    tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    samples = []
    for _ in range(10):
        samples.append(sum(process.memory_full_info().pss for process in tree))
        time.sleep(0.1)
    return min(samples)


def test_64_clients_at_once_are_all_answered_rightly_and_memory_stays(repository, in_process):
    with EmbeddedTriton(repository, ports=ANY) as server, Load(server.grpc_url, in_process, num_clients=64) as load:
        load.wait_for(500)
        time.sleep(LOAD_S / 3)
        before = resident(server)
        time.sleep(LOAD_S)
        growth = resident(server) / before - 1
        load.__exit__()
    load.assert_nothing_lost()
    assert growth < 0.05


def test_half_sent_slow_and_cancelled_requests_hold_nobody_up(server, in_process):
    data = encode(photograph(0))
    expected = in_process.mask(data)
    chance = random.Random(0)

    async def give_up() -> int:
        """Cancel half of 400 requests, at any point of their way; return how many were not answered by then."""
        num_cancelled = 0
        async with AsyncClient(server.grpc_url, retry=PATIENT) as client:
            for _ in range(10):
                requests = [asyncio.create_task(client.segment(data)) for _ in range(40)]
                await asyncio.sleep(chance.uniform(0, 0.05))
                num_cancelled += sum([request.cancel() for request in requests[::2]])
                for answer in await asyncio.gather(*requests[1::2]):
                    np.testing.assert_array_equal(answer.mask, expected)
        return num_cancelled

    begun = {
        server.ports.grpc: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",  # half of the first frame
        server.ports.http: b"POST /v2/models/toco/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n{",
    }
    with contextlib.ExitStack() as held, Load(server.grpc_url, in_process, num_clients=2) as load:
        for port, content in list(begun.items()) * 20:
            connection = held.enter_context(socket.create_connection(("127.0.0.1", port)))
            with contextlib.suppress(ConnectionError):  # the server may have had enough
                for byte in content[:-1]:
                    connection.send(bytes([byte]))
        assert asyncio.run(give_up()) > 100
        load.wait_for(50)
    load.assert_nothing_lost()


def test_a_full_queue_says_busy_within_the_deadline_and_answers_rightly_what_it_took(tmp_path, in_process):
    repository = write_toy_repository(tmp_path / "repository")
    slow_down(repository, 0.2)
    config = repository / "toco_image/config.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 64", "max_queue_size: 4"))
    data = encode(photograph(0))
    expected = in_process.mask(data)
    outcomes: Counter[str] = Counter()

    def ask(client: Client) -> None:
        for _ in range(3):
            begun = time.monotonic()
            try:
                right = np.array_equal(client.segment(data, timeout_s=5).mask, expected)
                outcomes["right" if right else "wrong"] += 1
            except BusyError:
                outcomes["busy"] += 1
            if time.monotonic() - begun > 5.5:
                outcomes["late"] += 1

    with EmbeddedTriton(repository, ports=ANY) as server, Client(server.grpc_url, retry=Retry(1)) as client:
        threads = [threading.Thread(target=ask, args=(client,)) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes.keys() == {"right", "busy"}
    assert outcomes.total() == 96

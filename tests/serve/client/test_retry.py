"""Deadlines, and what is asked again: against a server of words, and against Triton."""

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image
from toy_model import CLASSES, PALETTE, quadrant_labels, quadrants
from tritonclient.utils import InferenceServerException

from toco_core.errors import DataError, ServeError
from toco_serve import Client, EmbeddedTriton, Ports, Retry
from toco_serve.client.protocol import Call, Conversation, Pause, ServerInfo, connect
from toco_serve.errors import BackendLostError, BusyError, UnreachableError

ANY = Ports(0, 0, 0)
BATCH = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)


class Conversant:
    """Takes the steps of an exchange with a server that answers as it is told."""

    def __init__(self, *answers: Exception | str, retry: Retry = Retry(), timeout_s: float = 30) -> None:
        self.answers = iter(answers)
        self.calls: list[Call] = []
        self.pauses: list[float] = []
        served = ServerInfo(CLASSES, np.array(PALETTE, np.uint8), (96, 96), 8)
        self._conversation = Conversation("host:1", timeout_s, retry, "raw", None, served)

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
    exchange = connect("host:1", 30, None)
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

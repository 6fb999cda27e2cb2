"""What keeps a service up: dead model processes are replaced, and new models rolled out."""

import threading
import time

import numpy as np
import psutil
import pytest
from processes import Footprint, stubs_of
from toy_model import artefact, quadrant_labels, quadrants, toy_manifest, write_toy_repository

from toco_core.errors import ServeError
from toco_core.manifest import write_manifest
from toco_serve import Client, EmbeddedTriton, Ports, Retry
from toco_serve.server.http import responds
from toco_serve.server.supervisor import MAX_LOSSES

ANY = Ports(0, 0, 0)


@pytest.mark.parametrize("model", ["toco", "toco_image"])
def test_a_models_process_that_dies_makes_a_new_triton_and_a_retrying_client_waits_for_it(repository, tmp_path, model):
    image = quadrants(75, 51)
    log = tmp_path / "triton.log"
    with (
        EmbeddedTriton(repository, ports=ANY, log_file=log) as server,
        Client(server.grpc_url, retry=Retry(max_attempts=50)) as client,
    ):
        expected = client.segment(image).mask
        time.sleep(1.5)  # the supervisor looks once a second
        for process in stubs_of(server, model):
            process.kill()
        np.testing.assert_array_equal(client.segment(image).mask, expected)
        assert "a model's process ended: Triton is started again\n" in log.read_text()
        footprint = Footprint(server.pid)
    assert footprint.left() == []


def kill_when_ready(server: EmbeddedTriton, killed: set[int]) -> None:
    """Kill the processes of the model ``toco`` as soon as the server is ready with others than those killed before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        processes = [process for process in stubs_of(server, "toco") if process.pid not in killed]
        if processes and responds(server.ports.metrics, "/metrics") and responds(server.ports.http, "/v2/health/ready"):
            break
        time.sleep(0.05)
    assert processes
    for process in processes:
        killed.add(process.pid)
        process.kill()


def test_a_model_whose_process_dies_again_and_again_ends_the_server_with_a_reason(repository):
    killed: set[int] = set()
    with EmbeddedTriton(repository, ports=ANY) as server:
        for _ in range(MAX_LOSSES):
            kill_when_ready(server, killed)
        with pytest.raises(ServeError) as caught:
            server.wait(60)
        assert str(caught.value) == ("Triton ended by itself: a model's process ended 5 times in 60 s; start it again")


def test_a_roll_out_serves_the_new_model_without_a_failed_request(own_repository, tmp_path):
    second = write_toy_repository(tmp_path / "second", order=(0, 2, 1, 3))
    image = quadrants(64, 64)
    answers: list[list[int]] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def ask(client: Client) -> None:
        while not stop.is_set():
            try:
                answers.append(quadrant_labels(client.segment(image).mask))
            except Exception as error:
                failures.append(error)

    with EmbeddedTriton(own_repository, ports=ANY, log_file=tmp_path / "log") as server:
        first, port = server.pid, server.ports.grpc
        with Client(server.grpc_url) as client:
            threads = [threading.Thread(target=ask, args=(client,)) for _ in range(6)]
            for thread in threads:
                thread.start()
            server.roll_out(second)
            num_then = len(answers)
            time.sleep(0.5)
            stop.set()
            for thread in threads:
                thread.join()
            assert quadrant_labels(client.segment(image).mask) == [0, 2, 1, 3]
        assert failures == []
        assert answers[0] == [0, 1, 2, 3]
        assert all(labels in ([0, 1, 2, 3], [0, 2, 1, 3]) for labels in answers)
        assert answers[num_then + 6 :], "clients went on asking"
        assert all(labels == [0, 2, 1, 3] for labels in answers[num_then + 6 :])
        assert not psutil.pid_exists(first)
        assert server.ports.grpc == port
        footprint = Footprint(server.pid)
        assert (tmp_path / "log.1").exists()
    assert footprint.left() == []


def test_a_roll_out_that_fails_leaves_what_was_served(own_repository, tmp_path):
    broken = write_toy_repository(tmp_path / "broken")
    path = broken / "toco/1/model.onnx"
    path.write_bytes(b"no graph at all")
    with EmbeddedTriton(own_repository, ports=ANY) as server:
        with pytest.raises(ServeError, match="its SHA-256 differs"):
            server.roll_out(broken)
        write_manifest(broken, toy_manifest(path, artefacts=(artefact(path),)))
        with pytest.raises(ServeError, match="model 'toco' does not load: InvalidProtobuf"):
            server.roll_out(broken)
        other = write_toy_repository(tmp_path / "other", classes=("green", "red", "bright, very"))
        with pytest.raises(ServeError) as caught:
            server.roll_out(other)
        assert str(caught.value) == (
            f"{other} has other classes than the served model, and connected clients would use the wrong names; "
            "stop the server and start it again"
        )
        assert server.repository == own_repository
        with Client(server.grpc_url) as client:
            assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 1, 2, 3]

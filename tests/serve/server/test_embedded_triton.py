"""Starting, watching and stopping Triton on this machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from processes import Footprint
from toy_model import artefact, quadrant_labels, quadrants, slow_down, toy_manifest, write_toy_repository
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

import toco_serve
from toco_core.errors import ServeError
from toco_core.manifest import MANIFEST_FILE, read_manifest, write_manifest
from toco_serve import Client, EmbeddedTriton, Ports
from toco_serve.errors import UnreachableError
from toco_serve.server.ports import port_error
from toco_serve.server.triton_log import failure_reason, port_taken

ANY = Ports(0, 0, 0)


def error_of_starting(repository: Path, **options: object) -> str:
    with pytest.raises(ServeError) as caught, EmbeddedTriton(repository, **{"ports": ANY, **options}):
        pass
    return str(caught.value)


def test_the_server_listens_on_the_loopback_address_only(server):
    ports = {server.ports.grpc, server.ports.http, server.ports.metrics}
    triton = next(p for p in psutil.Process(server.pid).children() if "tritonserver" in p.cmdline()[0])
    listening = {c.laddr for c in triton.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert {address.port for address in listening} == ports
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("load_model", ("toco",)),
        ("unload_model", ("toco",)),
        ("get_system_shared_memory_status", ()),
        ("update_trace_settings", ("toco",)),
        ("update_log_settings", ({"log_verbose_level": 1},)),
    ],
)
def test_clients_can_change_neither_models_nor_shared_memory_nor_logging(server, call, arguments):
    triton = InferenceServerClient(server.grpc_url)
    with pytest.raises(InferenceServerException, match="This protocol is restricted, expecting header"):
        getattr(triton, call)(*arguments)


def test_triton_reads_the_configuration_for_a_backend_that_is_not_here_and_misses_that_alone(tmp_path, monkeypatch):
    repository = write_toy_repository(tmp_path / "repository", backend="onnxruntime", tensorrt_provider=True)
    monkeypatch.setattr(toco_serve.server.embedded, "checked_manifest", read_manifest)  # which would refuse the backend
    error = error_of_starting(repository)
    assert "model 'toco' does not load: unable to find backend library for backend 'onnxruntime'" in error


def test_a_server_ends_with_its_block_and_leaves_nothing(repository):
    with EmbeddedTriton(repository, ports=ANY) as server:
        footprint = Footprint(server.pid)
    assert footprint.left() == []
    with pytest.raises(ServeError, match="not running"):
        _ = server.pid


@pytest.mark.parametrize("model", ["toco", "toco_image"])
def test_requests_in_hand_are_answered_before_the_server_ends(own_repository, model):
    slow_down(own_repository, 0.5)
    image = quadrants(32, 32)
    with EmbeddedTriton(own_repository, ports=ANY) as server, Client(server.grpc_url) as client:
        ask = {"toco": lambda: client.segment_tensor(image[None])[0], "toco_image": lambda: client.segment(image)}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask[model])
            time.sleep(0.2)
            server.stop()
        assert quadrant_labels(answer.result().mask) == [0, 1, 2, 3]
        with pytest.raises(UnreachableError):
            client.segment(image)


def test_a_server_outlives_the_thread_that_started_it(repository):
    server = EmbeddedTriton(repository, ports=ANY)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.5)
        with Client(server.grpc_url) as client:
            assert client.segment(quadrants(32, 32)).mask.shape == (32, 32)
    finally:
        server.stop()


def test_a_killed_owner_takes_its_server_along(repository):
    code = (
        "import sys, time; from toco_serve import EmbeddedTriton, Ports\n"
        "with EmbeddedTriton(sys.argv[1], ports=Ports(0, 0, 0)) as s: print(s.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, repository], stdout=subprocess.PIPE, text=True) as owner:
        footprint = Footprint(int(owner.stdout.readline()))
        owner.kill()
    assert footprint.left_after(5) == []


def test_a_server_that_dies_by_itself_is_reported_and_leaves_nothing(repository):
    with EmbeddedTriton(repository, ports=ANY) as server:
        footprint = Footprint(server.pid)
        triton = next(p for p in footprint.processes if "tritonserver" in p.cmdline()[0])
        os.kill(triton.pid, signal.SIGKILL)
        with pytest.raises(ServeError) as caught:
            server.wait()
        assert str(caught.value) == "Triton ended by itself: it was killed by SIGKILL; start it again"
        assert footprint.left() == []


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_a_taken_port_is_named_with_the_option_that_changes_it(repository, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = Ports(**{"grpc": 0, "http": 0, "metrics": 0, name: port})
        message = error_of_starting(repository, ports=ports)
    expected = (
        f"port {port} is taken by another program: stop that, or give another with --{name}-port (0: any free one)"
    )
    assert message == expected


def test_a_port_that_is_taken_while_triton_starts_gets_the_same_message():
    log = "main.cc:245] \"failed to start GRPC service: Unavailable - Socket '127.0.0.1:18001' already in use \""
    assert port_taken(log) == 18001
    assert str(port_error(18001, Ports(grpc=18001))).startswith("port 18001 is taken by another program")


def test_a_number_that_is_no_port_is_refused(repository):
    message = error_of_starting(repository, ports=Ports(70000, 0, 0))
    assert message == "70000 is not a port; expected 1 to 65535, or 0 for any free one"


def test_one_port_for_two_uses_is_refused(repository):
    message = error_of_starting(repository, ports=Ports(18001, 18001, 0))
    assert message == "gRPC, HTTP and metrics cannot share a port (got [18001, 18001]); give each its own, or 0"


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(repository, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert error_of_starting(repository) == (
        "Triton is not installed: pip install nvidia-pytriton (Linux on x86-64 only); "
        "for production use NVIDIA's container nvcr.io/nvidia/tritonserver, 26.06 or newer"
    )


def test_a_python_version_without_a_stub_is_refused_with_those_that_have_one(repository, monkeypatch):
    other = SimpleNamespace(version_info=SimpleNamespace(major=3, minor=7))
    monkeypatch.setattr("toco_serve.server.wheel.sys", other)
    assert error_of_starting(repository) == (
        "the installed nvidia-pytriton cannot run models on Python 3.7: it has parts for "
        "3.8, 3.9, 3.10, 3.11, 3.12, 3.13; use one of these Pythons"
    )


def test_a_numpy_with_which_triton_answers_nothing_is_refused(repository, monkeypatch):
    monkeypatch.setattr("toco_serve.server.wheel.numpy_version", "2.5.2")
    message = error_of_starting(repository)
    assert "NumPy 2.5.2" in message
    assert "pip install 'numpy<2'" in message


def test_a_python_without_a_shared_library_is_refused(repository, monkeypatch):
    monkeypatch.setattr("toco_serve.server.wheel.sysconfig", SimpleNamespace(get_config_var=lambda name: "/nowhere"))
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    assert error_of_starting(repository).endswith("or use a Python built with --enable-shared")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    assert error_of_starting(tmp_path) == (
        f"{tmp_path} is not a model repository: it has no {MANIFEST_FILE}; make one with toco-export"
    )


def test_a_corrupted_artefact_is_refused_by_its_checksum(own_repository):
    path = own_repository / "toco/1/model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert error_of_starting(own_repository) == (
        f"{path} is not the file that was exported: its SHA-256 differs; export the run again"
    )


def test_a_missing_artefact_is_named(own_repository):
    path = own_repository / "toco/1/model.onnx"
    path.unlink()
    assert error_of_starting(own_repository) == f"{path} is missing, but the manifest lists it; export the run again"


def test_a_model_that_does_not_load_is_reported_with_tritons_reason_in_one_line(own_repository):
    path = own_repository / "toco/1/model.onnx"
    path.write_bytes(b"no graph at all")
    write_manifest(own_repository, toy_manifest(path, artefacts=(artefact(path),)))
    message = error_of_starting(own_repository)
    assert message.startswith(f"Triton cannot serve {own_repository}: model 'toco' does not load: InvalidProtobuf: ")
    assert message.endswith("Protobuf parsing failed")
    assert "\n" not in message


def test_a_malformed_configuration_is_reported_with_its_place(own_repository):
    with (own_repository / "toco/config.pbtxt").open("a") as config:
        config.write("colour: 3\n")
    assert error_of_starting(own_repository) == (
        f"Triton cannot serve {own_repository}: model 'toco' does not load: "
        '107:7: Message type "inference.ModelConfig" has no field named "colour"'
    )


def test_a_server_that_is_not_ready_in_time_is_stopped(repository):
    before = {p.pid for p in psutil.Process().children()}
    message = error_of_starting(repository, ready_timeout_s=0.2)
    assert message.startswith("Triton is not ready after 0.2 s; give it longer (--ready-timeout)")
    assert {p.pid for p in psutil.Process().children()} == before


def test_the_log_file_gets_what_triton_prints(repository, tmp_path):
    with EmbeddedTriton(repository, ports=ANY, log_file=tmp_path / "triton.log"):
        pass
    assert "Started GRPCInferenceService at 127.0.0.1" in (tmp_path / "triton.log").read_text()
    assert error_of_starting(repository, log_file=tmp_path / "no" / "triton.log") == (
        f"cannot write the log file {tmp_path}/no/triton.log: No such file or directory; give another path"
    )


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "E1122 12:00:00.000001 7 model_lifecycle.cc:642] \"failed to load 'toco' version 1: Internal: "
            "ModuleNotFoundError: No module named 'onnxruntime'\\n\\nAt:\\n  /r/toco/1/model.py(16): <module>\\n\"",
            "model 'toco' does not load: ModuleNotFoundError: No module named 'onnxruntime'",
        ),
        (
            "E1122 12:00:00.000001 7 model_lifecycle.cc:642] \"failed to load 'toco' version 1: Invalid argument: "
            'instance group toco_0 has 0 instances"',
            "model 'toco' does not load: instance group toco_0 has 0 instances",
        ),
        (
            'E1122 12:00:00.000001 7 server.cc:241] "CudaDriverHelper has not been initialized."\n'
            "error: creating server: Internal - failed to load all models\n",
            "creating server: Internal - failed to load all models",
        ),
        ("", "it gave no reason"),
    ],
    ids=["traceback", "status", "last error", "silence"],
)
def test_the_reason_of_a_failure_is_read_from_the_log(log, reason):
    assert failure_reason(log) == reason


def test_importing_the_package_loads_neither_torch_nor_grpc_nor_matplotlib():
    code = "import sys, toco_serve; print(sorted({'torch', 'matplotlib', 'grpc', 'toco_train'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_part_of_the_package_loads_torch_or_the_training_or_the_export_package():
    root = Path(toco_serve.__file__).parent
    names = [".".join(p.relative_to(root).with_suffix("").parts) for p in root.rglob("*.py")]
    code = f"import sys\nfor name in {names}: __import__('toco_serve.' + name)\n"
    code += "print(sorted({'torch', 'matplotlib', 'toco_train', 'toco_export'} & sys.modules.keys()))"
    assert len(names) >= 9
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_last_log_is_kept(repository, tmp_path):
    (tmp_path / "triton.log").write_text("of yesterday")
    with EmbeddedTriton(repository, ports=ANY, log_file=tmp_path / "triton.log"):
        pass
    assert (tmp_path / "triton.log.1").read_text() == "of yesterday"

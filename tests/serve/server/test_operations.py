"""Running a server: status, roll-out by signal, addresses that are refused, NVIDIA's container."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import write_certificates
from toy_model import quadrant_labels, quadrants, write_toy_repository

from toco_core.manifest import read_manifest, write_manifest
from toco_serve import Client, EmbeddedTriton, Ports, Tls
from toco_serve.commands.serve import main as serve
from toco_serve.server import container, process

ANY = Ports(0, 0, 0)


def status(server: EmbeddedTriton, *options: str) -> int:
    ports = ["--http-port", str(server.ports.http), "--metrics-port", str(server.ports.metrics)]
    return serve(["status", *ports, *options])


def test_status_counts_what_each_model_answered_and_how_fast(repository, capsys):
    with EmbeddedTriton(repository, ports=ANY) as server, Client(server.grpc_url) as client:
        for _ in range(5):
            client.segment(quadrants(50, 70))
        assert status(server, "--json", "--watch", "0.1") == 0
        report = json.loads(capsys.readouterr().out)
        assert status(server, "--watch", "0.1") == 0
    assert (report["version"], report["ready"]) == ("2.51.0", True)
    toco, toco_image = report["models"]
    assert (toco["name"], toco["version"], toco["ready"]) == ("toco", "1", True)
    assert (toco_image["name"], toco_image["version"], toco_image["ready"]) == ("toco_image", "1", True)
    for model in (toco, toco_image):
        assert (model["waiting"], model["failed"], model["images_per_s"]) == (0, 0, 0)
        assert 0 < model["latency_p50_ms"] <= model["latency_p99_ms"] < 10_000
    assert toco_image["requests"] == 5
    shown = capsys.readouterr().out
    assert "Triton 2.51.0: ready" in shown
    assert re.search(r"toco_image +1 +yes +0 +5 +0 +0\.0 +[\d.]+ +[\d.]+ ", shown)


def test_status_without_a_server_gives_one_sentence_and_status_2(capsys):
    assert serve(["status", "--http-port", "1"]) == 2
    assert capsys.readouterr().err == (
        "toco-serve: error: no server answers at 127.0.0.1:1: start one with toco-serve, or give --http-port and "
        "--metrics-port of one that runs\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_other_machines_reach_is_refused(repository, host, capsys):
    assert serve([str(repository), "--host", host]) == 2
    assert capsys.readouterr().err == (
        "toco-serve: error: the Triton of nvidia-pytriton lacks the security fixes since release 24.10 and serves "
        f"127.0.0.1 only, not {host}; for a network run what toco-serve --docker prints\n"
    )


def test_sighup_rolls_out_what_the_repository_holds_by_then_or_says_why_not(tmp_path):
    repository = write_toy_repository(tmp_path / "repository")
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [str(Path(sys.executable).with_name("toco-serve")), str(repository), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as serving:

        def shown_until(words: str) -> str:
            shown = ""
            while words not in shown:
                line = serving.stdout.readline()
                assert line, shown
                shown += line
            return shown

        url = re.search(r"--url (\S+) ", shown_until("Ctrl-C stops it"))[1]
        with Client(url) as client:
            assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 1, 2, 3]
            write_toy_repository(repository, order=(0, 2, 1, 3))
            serving.send_signal(signal.SIGHUP)
            assert url in shown_until("Ctrl-C stops it")
            assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 2, 1, 3]
            (repository / "manifest.json").unlink()
            serving.send_signal(signal.SIGHUP)
            assert "has no manifest.json; make one with toco-export; the current" in shown_until(
                "models stay in service"
            )
            assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 2, 1, 3]
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(15) == 0


def printed(capsys, *arguments: str) -> tuple[str, list[str]]:
    """Return the build command and the words of the run command that toco-serve prints."""
    assert serve([*arguments]) == 0
    build, run = capsys.readouterr().out.split("\ndocker run ")
    return build, shlex.split(run)


def test_the_container_gets_no_more_rights_and_doors_than_it_needs(repository, capsys):
    build, run = printed(capsys, str(repository), "--docker", "--grpc-port", "9001")
    assert (
        "FROM nvcr.io/nvidia/tritonserver:26.06-py3\nRUN pip install --no-cache-dir onnxruntime-gpu pillow==" in build
    )
    for words in (
        ["--gpus", "all"],
        ["--read-only", "--tmpfs", "/tmp"],
        ["--cap-drop", "ALL"],
        ["--security-opt", "no-new-privileges"],
        ["--volume", f"{repository}:/models:ro"],
    ):
        assert any(run[i : i + len(words)] == words for i in range(len(run))), words
    user = run[run.index("--user") + 1]
    assert user == (f"{os.getuid()}:{os.getgid()}" if os.getuid() else "1000:1000")
    published = [run[i + 1] for i, word in enumerate(run) if word == "--publish"]
    assert published == ["127.0.0.1:9001:8001", "127.0.0.1:8000:8000", "127.0.0.1:8002:8002"]
    assert "--model-control-mode=none" in run
    assert "--disable-auto-complete-config" in run
    assert "--gpus" not in printed(capsys, str(repository), "--docker", "cpu")[1]


def test_the_container_gets_tensorrt_rtx_where_an_engine_of_it_is_served_on_a_gpu(tmp_path, capsys):
    def packages(*options: str, **changes: object) -> str:
        versions = {"onnxruntime": "1.31.1", "tensorrt_rtx": "1.7.1.116"}
        folder = write_toy_repository(tmp_path / "rtx", versions=versions, **changes)
        return printed(capsys, str(folder), "--docker", *options)[0]

    assert "onnxruntime-gpu==1.31.1 pillow==" in packages()
    assert " tensorrt-rtx-cu13==1.7.1.116\n" in packages()
    assert "rtx" not in packages("cpu").splitlines()[2]
    assert "rtx" not in packages(backend="onnxruntime").splitlines()[2]


def for_tensorrt(repository: Path, tmp_path: Path, container: str | None) -> str:
    """Return a copy of a repository whose manifest says that an engine of TensorRT is served."""
    copied = shutil.copytree(repository, tmp_path / "engines")
    manifest = read_manifest(copied)
    update = {"backend": "tensorrt", "container": container, "versions": manifest.versions | {"tensorrt": "11.1.0"}}
    write_manifest(copied, manifest.model_copy(update=update))
    return str(copied)


def test_an_engine_is_served_from_the_image_that_built_it_and_no_other(repository, tmp_path, capsys):
    build, run = printed(capsys, for_tensorrt(repository, tmp_path, "26.07"), "--docker")
    assert build.startswith("docker build --tag toco-triton:26.07-py3")
    assert "FROM nvcr.io/nvidia/tritonserver:26.07-py3" in build
    assert "toco-triton:26.07-py3" in run


def test_an_engine_of_another_tensorrt_is_refused_before_anything_is_loaded(repository, tmp_path, capsys):
    folder = for_tensorrt(repository, tmp_path, None)
    assert serve([folder, "--docker"]) == 2
    assert "the engine was built by TensorRT 11.1.0 outside of NVIDIA's image" in capsys.readouterr().err
    assert serve([folder]) == 2
    error = capsys.readouterr().err
    assert "is for Triton's backend tensorrt with TensorRT 11.1.0, which the Triton of this machine does not" in error


def test_with_certificates_grpc_alone_is_open_to_other_machines(repository, tmp_path, capsys):
    write_certificates(tmp_path)
    _, run = printed(capsys, str(repository), "--docker", "--tls", str(tmp_path))
    published = [run[i + 1] for i, word in enumerate(run) if word == "--publish"]
    assert published == ["8001:8001", "127.0.0.1:8000:8000", "127.0.0.1:8002:8002"]
    mounted = [run[i + 1] for i, word in enumerate(run) if word == "--volume"]
    files = [f"{tmp_path}/{name}:/tls/{name}:ro" for name in ("server.pem", "server.key", "ca.pem")]
    assert mounted == [f"{repository}:/models:ro", *files], "the other keys of the folder stay outside"
    assert "--grpc-use-ssl-mutual=true" in run
    (tmp_path / "ca.pem").unlink()
    assert "--grpc-use-ssl=true" in printed(capsys, str(repository), "--docker", "--tls", str(tmp_path))[1]
    (tmp_path / "server.key").unlink()
    assert serve([str(repository), "--docker", "--tls", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"toco-serve: error: {tmp_path} holds no server.key; put the server's certificate there as server.pem and its "
        "key as server.key\n"
    )


def test_certificates_without_the_container_are_refused(repository, tmp_path, capsys):
    assert serve([str(repository), "--tls", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "toco-serve: error: --tls goes with --docker: on 127.0.0.1 nothing is encrypted; leave it out\n"
    )


def test_triton_takes_the_containers_arguments_and_serves_with_them(repository, tmp_path, monkeypatch):
    """The container itself cannot run here: its arguments are given to the Triton that can, paths and ports changed."""
    write_certificates(tmp_path)
    embedded = process.embedded_arguments

    def inside(*given: object, **more: object) -> list[str]:
        kept = r"--(backend|\w+-address|\w+-port|reuse|model-repo)"
        ours = [a for a in embedded(*given, **more) if re.match(kept, a)]
        theirs = [a for a in container.container_arguments(tmp_path) if not re.match(r"--(\w+-port|model-repo)", a)]
        return [*ours, *(a.replace(container.TLS, str(tmp_path)) for a in theirs)]

    monkeypatch.setattr(process, "embedded_arguments", inside)
    tls = Tls(tmp_path / "ca.pem", tmp_path / "client.key", tmp_path / "client.pem")
    with EmbeddedTriton(repository, ports=ANY) as server, Client(f"localhost:{server.ports.grpc}", tls=tls) as client:
        assert quadrant_labels(client.segment(quadrants(64, 64)).mask) == [0, 1, 2, 3]

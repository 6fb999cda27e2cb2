"""Engines built in NVIDIA's image: docker is played by a script, the image by what it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from toco_core.errors import ConfigError, ExportError
from toco_core.manifest import Profile, Shape, read_manifest
from toco_export.cli import main
from toco_export.config import ExportConfig, resolve_backend
from toco_export.pipeline.run import choose_engine
from toco_export.tensorrt.builder import BuildOptions, EngineLibraryError
from toco_export.tensorrt.container import build_in_container, container_command, require_docker

PROFILE = Profile(
    min=Shape(batch=1, height=32, width=32),
    opt=Shape(batch=1, height=64, width=96),
    max=Shape(batch=8, height=128, width=128),
)
LAYERS = {"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"Name": "x", "Datatype": "Half"}], "Outputs": []}]}
DOCKER = """#!/bin/sh
[ "$1" = version ] && exit {daemon}
for word; do case "$word" in
  --volume) ;;
  *:/engine) folder="${{word%:/engine}}" ;;
  --saveEngine=*) engine="$folder/${{word##*/}}" ;;
esac; done
echo "$@" > {log}
echo "[11/25/2026-10:00:00] [I] TensorRT version: 11.1.0"
echo "trouble in the builder" >&2
[ {status} = 0 ] && echo plan > "$engine" && cat > "$engine.json" <<'END'
{layers}
END
exit {status}
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts a docker on the path, which ends with a status; its arguments go to ``log``."""

    def install(status: int = 0, daemon: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script, log = folder / "docker", tmp_path / "log"
        script.write_text(DOCKER.format(status=status, daemon=daemon, log=log, layers=json.dumps(LAYERS)))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return log

    return install


def test_the_command_names_image_sizes_and_nothing_outside_the_folder(tmp_path: Path):
    options = BuildOptions(2.0, tmp_path / "cache" / "timings", portable=True)
    command = container_command(tmp_path / "a.onnx", tmp_path / "a.plan", PROFILE, "26.06", options)
    image = command.index("nvcr.io/nvidia/tritonserver:26.06-py3")
    assert command[: image + 2] == [
        "docker", "run", "--rm", "--gpus", "all", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}",
        "--volume", f"{tmp_path}:/engine", "--volume", f"{tmp_path}/cache:/timings",
        "nvcr.io/nvidia/tritonserver:26.06-py3", "/usr/src/tensorrt/bin/trtexec",
    ]  # fmt: skip
    assert set(command[image + 2 :]) == {
        "--onnx=/engine/a.onnx",
        "--saveEngine=/engine/a.plan",
        "--minShapes=image:1x32x32x3",
        "--optShapes=image:1x64x96x3",
        "--maxShapes=image:8x128x128x3",
        "--memPoolSize=workspace:2048",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=/engine/a.plan.json",
        "--timingCacheFile=/timings/timings",
        "--stronglyTyped",
        "--skipInference",
        "--versionCompatible",
        "--hardwareCompatibilityLevel=ampere+",
    }
    plain = container_command(tmp_path / "a.onnx", tmp_path / "a.plan", PROFILE, "26.06", BuildOptions())
    assert not any("memPoolSize" in argument for argument in plain), "trtexec's own limit is the GPU's memory"


def test_version_and_precision_are_read_from_what_the_image_says(docker, tmp_path: Path):
    docker()
    report = build_in_container(
        tmp_path / "a.onnx",
        tmp_path / "a.plan",
        PROFILE,
        release="26.06",
        progress=lambda _: None,
        options=BuildOptions(),
    )
    assert (report.module, report.version) == ("tensorrt", "11.1.0")
    assert report.product_types == {"fp16": 1}
    assert not (tmp_path / "a.plan.json").exists()


def test_a_build_that_fails_says_why_and_how_to_see_more(docker, tmp_path: Path):
    docker(status=1)
    with pytest.raises(
        ExportError, match=r"failed \(status 1\): trouble in the builder; run it by hand .*: docker run"
    ):
        build_in_container(
            tmp_path / "a.onnx", tmp_path / "a.plan", PROFILE, release="26.06", progress=lambda _: None,
            options=BuildOptions(),
        )  # fmt: skip


def test_without_docker_the_command_is_printed(docker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    docker(daemon=1)
    with pytest.raises(
        EngineLibraryError, match=r"needs docker, which does not run here .* docker run --rm --gpus all"
    ):
        require_docker("26.06")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(EngineLibraryError, match=r"needs docker, which is not here; .* docker run --rm --gpus all"):
        require_docker("26.06")


@pytest.mark.usefixtures("traced_before")
def test_an_export_with_a_container_is_served_by_tritons_tensorrt(docker, run_folder: Path, tmp_path: Path):
    log = docker()
    repository = tmp_path / "repository"
    assert (
        main([str(run_folder), "--precision", "fp16", "--in-container", "26.06", "--repository", str(repository)]) == 0
    )
    assert "--onnx=/engine/model.fp16.onnx" in log.read_text()
    manifest = read_manifest(repository)
    assert (manifest.backend, manifest.container, manifest.versions["tensorrt"]) == ("tensorrt", "26.06", "11.1.0")
    config = text_format.Parse((repository / "toco/config.pbtxt").read_text(), triton.ModelConfig())
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.fp16.plan")
    assert not (repository / "toco/1/model.py").exists()


def test_what_does_not_go_together_is_refused(docker, capsys: pytest.CaptureFixture[str], run_folder: Path):
    docker()
    assert choose_engine(ExportConfig(in_container="26.06")) == "tensorrt"
    with pytest.raises(ConfigError, match="--in-container builds engines of TensorRT; leave --target onnx out"):
        choose_engine(ExportConfig(in_container="26.06", target="onnx"))
    with pytest.raises(ConfigError, match="--backend tensorrt serves an engine of TensorRT; add --target tensorrt"):
        resolve_backend(ExportConfig(backend="tensorrt"), "tensorrt-rtx")
    assert main([str(run_folder), "--in-container", "latest"]) == 2
    expected = "in_container: not a release of Triton; give year and month, such as 26.06 (got 'latest')"
    assert expected in capsys.readouterr().err


def test_auto_serves_with_python_unless_there_is_an_engine_of_tensorrt():
    assert resolve_backend(ExportConfig(), None) == resolve_backend(ExportConfig(), "tensorrt-rtx") == "python"
    assert resolve_backend(ExportConfig(), "tensorrt") == "tensorrt"
    assert resolve_backend(ExportConfig(backend="onnxruntime"), "tensorrt") == "onnxruntime"
    assert resolve_backend(ExportConfig(backend="onnxruntime-tensorrt"), None) == "onnxruntime"

"""Which engine is built, and what serves where none is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from toco_core.manifest import read_manifest
from toco_export.cli import main
from toco_export.config import ExportConfig
from toco_export.pipeline.run import choose_engine


def test_auto_builds_no_engine_where_no_library_is(monkeypatch: pytest.MonkeyPatch):
    assert choose_engine(ExportConfig(target="auto")) == "tensorrt-rtx"
    assert choose_engine(ExportConfig(target="onnx")) is None
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert choose_engine(ExportConfig(target="auto")) is None


@pytest.mark.parametrize(
    ("backend", "engine"),
    [("auto", "tensorrt"), ("tensorrt", "tensorrt"), ("python", "tensorrt-rtx"), ("onnxruntime", None),
     ("onnxruntime-tensorrt", None)],
)  # fmt: skip
def test_auto_builds_what_the_backend_runs(backend: str, engine: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_engine(ExportConfig(backend=backend)) == engine


@pytest.mark.usefixtures("traced_before")
def test_auto_without_a_library_keeps_the_onnx_files_and_says_what_an_engine_needs(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    repository = tmp_path / "repository"
    assert main([str(run_folder), "--fp16", "--repository", str(repository)]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "no engine without tensorrt_rtx: pip install tensorrt-rtx-cu13" in output
    assert {artefact.format for artefact in read_manifest(repository).artefacts} == {"onnx"}


@pytest.mark.usefixtures("traced_before")
def test_without_an_engine_only_fp32_onnx_is_exported(run_folder: Path, tmp_path: Path):
    repository = tmp_path / "repository"
    assert main([str(run_folder), "--target", "onnx", "--repository", str(repository)]) == 0
    manifest = read_manifest(repository)
    assert [artefact.file for artefact in manifest.artefacts] == ["model.onnx"]
    assert "tensorrt_rtx" not in manifest.versions
    assert {parity.file for parity in manifest.parity} == {"model.onnx"}


@pytest.mark.usefixtures("traced_before")
def test_tensorrt_inside_onnx_runtime_gets_the_memory_that_the_user_allows(run_folder: Path, tmp_path: Path):
    repository = tmp_path / "repository"
    backend = ["--backend", "onnxruntime-tensorrt", "--workspace-gib", "2"]
    assert main([str(run_folder), *backend, "--repository", str(repository)]) == 0
    manifest = read_manifest(repository)
    assert (manifest.backend, manifest.tensorrt_provider, manifest.tensorrt_workspace_gib) == ("onnxruntime", True, 2)
    config = text_format.Parse((repository / "toco/config.pbtxt").read_text(), triton.ModelConfig())
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["max_workspace_size_bytes"] == "2147483648"
    profile = manifest.profile.max
    assert accelerator.parameters["trt_profile_max_shapes"] == f"image:8x{profile.height}x{profile.width}x3"

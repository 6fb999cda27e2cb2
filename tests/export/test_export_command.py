from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import tensorrt_rtx
import torch
import yaml
from small_run import Exported, save_perturbed

import toco
from toco.manifest import MANIFEST_FILE, Profile, Shape, read_manifest, sha256_of
from toco_export import pipeline
from toco_export.cli import main
from toco_export.engine import EngineReport

TracedBefore = Callable[[Path], None]


@pytest.fixture
def old_repository(tmp_path: Path) -> Path:
    """A model repository of an earlier export, as far as it matters here."""
    folder = tmp_path / "repository"
    (folder / "toco" / "1").mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text("of the earlier export")
    (folder / "toco" / "1" / "model.onnx").write_text("of the earlier export")
    return folder


def assert_untouched(folder: Path) -> None:
    """The earlier repository stands as it was, and nothing else was left beside it."""
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert files == dict.fromkeys((MANIFEST_FILE, "toco/1/model.onnx"), "of the earlier export")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_fp16_export_shows_its_stages_and_figures(exported: Exported):
    stages = [line.split()[0] for line in exported.output.splitlines() if " s  " in line]
    assert stages == ["load", "trace", "half", "build", "verify", "place"]
    assert "model.rtx, fp16" in exported.output
    assert exported.output.count("32x48") == 3 * 2


def test_the_manifest_describes_every_artefact_with_its_checksum(exported: Exported):
    manifest = read_manifest(exported.repository)
    found = {(artefact.file, artefact.format, artefact.precision) for artefact in manifest.artefacts}
    assert found == {
        ("model.onnx", "onnx", "fp32"),
        ("model.fp16.onnx", "onnx", "fp16"),
        ("model.rtx", "tensorrt-rtx", "fp16"),
    }
    for artefact in manifest.artefacts:
        path = exported.artefacts / artefact.file
        assert (artefact.num_bytes, artefact.sha256) == (path.stat().st_size, sha256_of(path))
    sizes = {artefact.file: artefact.num_bytes for artefact in manifest.artefacts}
    assert sizes["model.fp16.onnx"] < 0.6 * sizes["model.onnx"]


def test_the_manifest_describes_network_profile_versions_and_agreement(exported: Exported):
    manifest = read_manifest(exported.repository)
    assert manifest.classes == ("a", "b", "c")
    assert manifest.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert (manifest.patch_size, manifest.image_size, manifest.opset) == (8, 64, 20)
    assert manifest.backbone == "ViT with patch 8, width 64, depth 4, 4 heads"
    assert manifest.profile == Profile(
        min=Shape(batch=1, height=32, width=32),
        opt=Shape(batch=1, height=64, width=64),
        max=Shape(batch=8, height=128, width=128),
    )
    assert manifest.versions["toco"] == toco.__version__
    assert manifest.versions["python"] == sys.version.split()[0]
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.versions["onnxruntime"] == onnxruntime.__version__
    assert manifest.versions["tensorrt_rtx"] == tensorrt_rtx.__version__
    assert manifest.versions.keys() >= {"timm", "onnx"}
    assert {parity.file for parity in manifest.parity} == {"model.onnx", "model.fp16.onnx", "torch-fp16"}
    assert len(manifest.parity) == 3 * 6
    assert all(parity.mask_agreement >= 0.995 for parity in manifest.parity)


def test_without_fp16_only_fp32_onnx_is_exported(run_folder: Path, tmp_path: Path, traced_before: TracedBefore):
    repository = tmp_path / "repository"
    assert main([str(run_folder), "--repository", str(repository)]) == 0
    manifest = read_manifest(repository)
    assert [artefact.file for artefact in manifest.artefacts] == ["model.onnx"]
    assert "tensorrt_rtx" not in manifest.versions
    assert {parity.file for parity in manifest.parity} == {"model.onnx"}


@pytest.fixture
def perturbed(exported: Exported, tmp_path_factory: pytest.TempPathFactory, traced_before: TracedBefore) -> None:
    """Let the export trace to a file with other weights than the run's."""
    wrong = tmp_path_factory.mktemp("wrong") / "model.onnx"
    traced_before(save_perturbed(exported.artefacts / "model.onnx", wrong))


@pytest.mark.usefixtures("perturbed")
def test_perturbed_weights_end_with_status_1_and_leave_the_previous_repository(
    run_folder: Path, old_repository: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(run_folder), "--repository", str(old_repository)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("toco-export: error: verify failed: model.onnx at ")
    assert "expected at least 99.9%" in error
    assert error.count("\n") == 1
    assert_untouched(old_repository)


def test_a_missing_engine_library_keeps_the_onnx_files_and_says_what_to_install(
    run_folder: Path,
    tmp_path: Path,
    traced_before: TracedBefore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    repository = tmp_path / "repository"
    assert main([str(run_folder), "--fp16", "--repository", str(repository)]) == 2
    error = capsys.readouterr().err
    assert "pip install tensorrt-rtx-cu13" in error
    assert f"{repository} holds the ONNX files alone" in error
    assert error.count("\n") == 1
    artefacts = read_manifest(repository).artefacts
    assert [artefact.file for artefact in artefacts] == ["model.onnx", "model.fp16.onnx"]
    assert all((repository / "toco" / "1" / artefact.file).is_file() for artefact in artefacts)


def test_an_engine_that_came_out_in_fp32_fails_the_export(
    run_folder: Path,
    old_repository: Path,
    traced_before: TracedBefore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(pipeline, "build_engine", lambda *_, **__: EngineReport("fp32", (), "tensorrt_rtx", "9.9"))
    assert main([str(run_folder), "--fp16", "--repository", str(old_repository)]) == 2
    assert "build failed: the engine came out in fp32, expected fp16: tensorrt_rtx 9.9" in capsys.readouterr().err
    assert_untouched(old_repository)


@pytest.mark.parametrize("stage", ["measure_parity", "write_repository", "product_precision"])
def test_an_interrupted_export_leaves_the_previous_repository(
    run_folder: Path,
    old_repository: Path,
    traced_before: TracedBefore,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, stage, interrupt)
    assert main([str(run_folder), "--repository", str(old_repository)]) == 130
    assert_untouched(old_repository)


def test_a_new_export_replaces_the_previous_one(run_folder: Path, old_repository: Path, traced_before: TracedBefore):
    assert main([str(run_folder), "--repository", str(old_repository)]) == 0
    assert read_manifest(old_repository).classes == ("a", "b", "c")
    assert [path.name for path in old_repository.parent.iterdir()] == ["repository"]


def test_a_folder_that_is_no_model_repository_is_not_replaced(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main([str(run_folder), "--repository", str(tmp_path)]) == 2
    assert "is not a model repository: it has no manifest.json, and would be replaced" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_run_folder_without_a_model_is_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"toco-export: error: load failed: {tmp_path} is not a finished run: it has no config.yaml; "
        "give the folder that toco-train --out wrote\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_an_image_size_that_does_not_fit_the_patches_is_refused_before_any_work(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["model"]["image_size"] = 60
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "model.safetensors").symlink_to(run_folder / "model.safetensors")
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "image size 60 is not a multiple of the patch size 8; set image_size in its config.yaml to 64" in error


def test_images_given_on_the_command_line_replace_those_of_the_run(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(run_folder), "--images", str(tmp_path)]) == 2
    assert f"load failed: {tmp_path} holds no image" in capsys.readouterr().err

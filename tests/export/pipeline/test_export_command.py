from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import tensorrt_rtx
import torch
import yaml
from safetensors.torch import save_file
from small_run import PALETTE, Exported, save_perturbed

import toco_core
from toco_core.fitting import network_sizes
from toco_core.manifest import MANIFEST_FILE, Profile, Shape, read_manifest, sha256_of
from toco_export.cli import main
from toco_export.pipeline import export, loading
from toco_export.tensorrt.engine_report import EngineLayer, EngineReport

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
    assert stages == ["load", "observe", "trace", "simplify", "convert", "build", "verify", "place"]
    assert "model.fp16.rtx, fp16" in exported.output
    assert exported.output.count("16x64") == 3 * 2


def test_the_manifest_describes_every_artefact_with_its_checksum(exported: Exported):
    manifest = read_manifest(exported.repository)
    found = {(artefact.file, artefact.format, artefact.precision) for artefact in manifest.artefacts}
    assert found == {
        ("model.onnx", "onnx", "fp32"),
        ("model.fp16.onnx", "onnx", "fp16"),
        ("model.fp16.rtx", "tensorrt-rtx", "fp16"),
    }
    for artefact in manifest.artefacts:
        path = exported.artefacts / artefact.file
        assert (artefact.num_bytes, artefact.sha256) == (path.stat().st_size, sha256_of(path))
    sizes = {artefact.file: artefact.num_bytes for artefact in manifest.artefacts}
    assert sizes["model.fp16.onnx"] < 0.6 * sizes["model.onnx"]


def test_the_manifest_describes_network_profile_versions_and_agreement(exported: Exported):
    manifest = read_manifest(exported.repository)
    assert manifest.classes == ("a", "b", "c")
    assert manifest.palette == PALETTE
    assert (manifest.patch_size, manifest.image_size, manifest.opset) == (8, 64, 20)
    assert manifest.backbone == "ViT with patch 8, width 64, depth 4, 4 heads"
    assert manifest.profile == Profile(
        min=Shape(batch=1, height=16, width=16),  # the shortest side of the run's sizes
        opt=Shape(batch=1, height=64, width=64),
        max=Shape(batch=8, height=128, width=128),
    )
    assert manifest.versions["toco"] == toco_core.__version__
    assert manifest.versions["python"] == sys.version.split()[0]
    assert manifest.versions["torch"] == torch.__version__
    assert manifest.versions["onnxruntime"] == onnxruntime.__version__
    assert manifest.versions["tensorrt_rtx"] == tensorrt_rtx.__version__
    assert manifest.versions.keys() >= {"timm", "onnx"}
    assert (manifest.sizes, manifest.size_scores) == (network_sizes(64, 8), None)
    assert {(parity.shape.height, parity.shape.width) for parity in manifest.parity} == {(16, 64), (64, 16), (64, 64)}
    assert {parity.file for parity in manifest.parity} == {"model.onnx", "model.fp16.onnx", "torch-fp16"}
    assert len(manifest.parity) == 3 * 6
    assert all(parity.mask_agreement >= 0.997 for parity in manifest.parity)


@pytest.fixture
def perturbed(exported: Exported, tmp_path_factory: pytest.TempPathFactory, traced_before: TracedBefore) -> None:
    """Let the export trace to a file with other weights than the run's."""
    wrong = tmp_path_factory.mktemp("wrong") / "model.onnx"
    traced_before(save_perturbed(exported.artefacts / "model.onnx", wrong))


@pytest.mark.usefixtures("perturbed")
def test_perturbed_weights_end_with_status_1_and_leave_the_previous_repository(
    run_folder: Path, old_repository: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(run_folder), "--target", "onnx", "--repository", str(old_repository)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("toco-export: error: verify failed: model.onnx at ")
    assert "expected at least 99.95%" in error
    assert error.count("\n") == 1
    failed = old_repository.with_name("repository.failed")
    assert {path.name for path in failed.iterdir()} == {"export_report.html", "export_report.md", "reproduce.py"}
    assert "**FAIL: 2 of the checks below**" in (failed / "export_report.md").read_text()
    shutil.rmtree(failed)
    assert_untouched(old_repository)


def test_a_missing_engine_library_is_refused_before_any_work_with_what_to_install(
    run_folder: Path, old_repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    arguments = [str(run_folder), "--fp16", "--target", "tensorrt-rtx", "--repository", str(old_repository)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("toco-export: error: load failed: building an engine for tensorrt-rtx needs")
    assert error.endswith(": pip install tensorrt-rtx-cu13\n")
    assert_untouched(old_repository)


def test_an_engine_that_came_out_in_fp32_fails_the_export(
    run_folder: Path,
    old_repository: Path,
    traced_before: TracedBefore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    report = EngineReport((EngineLayer("a", "gemm", ("Float",)),), "tensorrt_rtx", "9.9")
    monkeypatch.setattr(export, "build_engine", lambda *_, **__: report)
    assert main([str(run_folder), "--fp16", "--repository", str(old_repository)]) == 2
    error = capsys.readouterr().err
    assert "build failed: the matrix products of model.fp16.rtx are 1 in fp32, expected fp16" in error
    script = (old_repository.with_name("repository.failed") / "reproduce.py").read_text()
    compile(script, "reproduce.py", "exec")
    shutil.rmtree(old_repository.with_name("repository.failed"))
    assert_untouched(old_repository)


@pytest.mark.slow
def test_the_script_of_a_failure_shows_it_again_with_its_traceback(
    run_folder: Path, tmp_path: Path, traced_before: TracedBefore, monkeypatch: pytest.MonkeyPatch
):
    repository = tmp_path / "repository"
    monkeypatch.setattr(export, "count_product_types", lambda _: Counter())
    assert main([str(run_folder), "--target", "onnx", "--repository", str(repository)]) == 2
    script = tmp_path / "repository.failed" / "reproduce.py"
    assert "the matrix products of model.onnx are not to be found" in script.read_text()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # the defect was in this process alone
    assert read_manifest(repository).classes == ("a", "b", "c")
    assert not script.parent.exists(), "an export that ends well clears what failed before"


@pytest.mark.parametrize("stage", ["verify", "simplify", "count_product_types"])
def test_an_interrupted_export_leaves_the_previous_repository(
    run_folder: Path,
    old_repository: Path,
    traced_before: TracedBefore,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
):
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, stage, interrupt)
    assert main([str(run_folder), "--target", "onnx", "--repository", str(old_repository)]) == 130
    assert_untouched(old_repository)


def test_a_killed_export_leaves_the_previous_repository_and_the_next_one_removes_its_leftovers(
    run_folder: Path, old_repository: Path, traced_before: TracedBefore
):
    code = (
        "import os, signal, sys; from toco_export.pipeline import export; from toco_export.cli import main\n"
        "export.trace_onnx = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main([sys.argv[1], '--target', 'onnx', '--repository', sys.argv[2]])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run_folder), str(old_repository)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (old_repository / MANIFEST_FILE).read_text() == "of the earlier export"
    assert len(list(old_repository.parent.iterdir())) == 2, "the kill left something to remove"
    assert main([str(run_folder), "--target", "onnx", "--repository", str(old_repository)]) == 0
    assert [path.name for path in old_repository.parent.iterdir()] == ["repository"]


def test_a_new_export_replaces_the_previous_one(run_folder: Path, old_repository: Path, traced_before: TracedBefore):
    assert main([str(run_folder), "--target", "onnx", "--repository", str(old_repository)]) == 0
    assert read_manifest(old_repository).classes == ("a", "b", "c")
    assert [path.name for path in old_repository.parent.iterdir()] == ["repository"]


def test_a_disk_that_takes_no_more_is_one_sentence_and_leaves_the_previous_repository(
    run_folder: Path, old_repository: Path, exported: Exported
):
    code = (
        "import resource, signal, sys, onnx_ir\n"
        "from toco_export.pipeline import export\n"
        "from toco_export.cli import main\n"
        "export.trace_onnx = lambda *_: onnx_ir.load(sys.argv[3])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.exit(main([sys.argv[1], '--target', 'onnx', '--repository', sys.argv[2]]))"
    )
    arguments = [str(run_folder), str(old_repository), str(exported.artefacts / "model.onnx")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "toco-export: error: simplify failed: a file cannot be written (File too large); make room, or give another "
        "place with --repository\n"
    )
    shutil.rmtree(old_repository.with_name("repository.failed"), ignore_errors=True)
    assert_untouched(old_repository)


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


def copy_of(run_folder: Path, folder: Path, **model: Any) -> Path:
    """A run whose configuration says something else of the same weights."""
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["model"] |= model
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.safetensors").symlink_to(run_folder / "model.safetensors")
    return folder


def test_classes_that_are_not_as_many_as_the_weights_have_are_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = copy_of(run_folder, tmp_path, classes=["a", "b"])
    assert main([str(run)]) == 2
    assert capsys.readouterr().err == (
        f"toco-export: error: load failed: {run / 'config.yaml'} names 2 classes, but model.safetensors beside it has "
        "3; take both files from the same run\n"
    )


def test_classes_of_another_run_lend_no_colours(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = copy_of(run_folder, tmp_path)
    (run / "classes.yaml").write_text("classes: [a, b, z]")
    assert main([str(run)]) == 2
    assert f"{run / 'classes.yaml'} and config.yaml beside it name different classes" in capsys.readouterr().err


def test_a_checkpoint_in_the_place_of_a_run_is_sent_to_toco_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = tmp_path / "published.pth"
    checkpoint.write_bytes(b"weights")
    assert main([str(checkpoint)]) == 2
    assert (
        f"is a file, expected a run folder; make one of a published checkpoint with toco-import {checkpoint} RUN"
        in (capsys.readouterr().err)
    )


def test_weights_of_something_else_are_refused(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = copy_of(run_folder, tmp_path)
    (run / "model.safetensors").unlink()
    save_file({"head.weight": torch.zeros(3)}, run / "model.safetensors")
    assert main([str(run)]) == 2
    assert "holds no ToCo network (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opt", "1x60"], "--opt has the height 60, which is not a multiple of the patch size 8; give 56 or 64"),
        (["--max", "8x64x100"], "--max has the width 100, which is not a multiple of the patch size 8; give 96 or 104"),
        (["--max", "8x56"], "the height of --min, --opt, --max is 16, 64, 56; give them in rising order"),
    ],
)
def test_shapes_that_cannot_be_are_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main([str(run_folder), "--repository", str(tmp_path / "r"), *arguments]) == 2
    assert capsys.readouterr().err == f"toco-export: error: load failed: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_shape_that_is_none_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(run_folder), "--opt", "448"]) == 2
    assert (
        "opt: not a batch and size; give BATCHxSIDE or BATCHxHEIGHTxWIDTH, such as 8x448 (got '448')"
        in capsys.readouterr().err
    )


def test_a_read_only_place_is_refused_before_any_work(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(loading.os, "access", lambda *_: False)  # root may write everywhere
    assert main([str(run_folder), "--repository", str(tmp_path / "r")]) == 2
    assert f"cannot write {tmp_path / 'r'}: {tmp_path} is read-only or no folder" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_any_work(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    assert main([str(run_folder), "--fp16", "--repository", str(tmp_path / "r")]) == 2
    assert f"{tmp_path} has 2 MB left, and the export takes about 2 MB" in capsys.readouterr().err


def test_a_static_export_is_served_at_its_one_size(run_folder: Path, tmp_path: Path):
    repository = tmp_path / "repository"
    arguments = ["--static", "--opt", "1x48x64", "--target", "onnx", "--repository", str(repository)]
    assert main([str(run_folder), *arguments]) == 0
    profile = read_manifest(repository).profile
    assert profile.opt == profile.min == Shape(batch=1, height=48, width=64)
    assert profile.max == Shape(batch=8, height=48, width=64)
    assert "[[48, 64]]" in (repository / "toco_image" / "config.pbtxt").read_text()
    assert {(p.shape.height, p.shape.width) for p in read_manifest(repository).parity} == {(48, 64)}

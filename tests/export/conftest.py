"""One run folder and one full export of it, which many tests look at."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from small_run import CONFIG, PALETTE, Exported, colour_blocks, fit_to_colours

from toco_export.cli import main
from toco_export.pipeline import export
from toco_train.data.classes import ClassList, write_classes
from toco_train.models.toco import ToCo
from toco_train.runs.load import load_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as toco-train leaves it, with the images that it was "trained" on."""
    data = tmp_path_factory.mktemp("data")
    images, _ = colour_blocks(np.random.default_rng(1), 8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(data / f"{index}.png")
    run = tmp_path_factory.mktemp("run")
    save_file(
        {name: value.contiguous() for name, value in fit_to_colours().state_dict().items()}, run / "model.safetensors"
    )
    config = {"model": CONFIG.model_dump(mode="json"), "data": {"path": str(data)}}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_classes(run / "classes.yaml", ClassList(classes=CONFIG.classes, palette=PALETTE))
    return run


@pytest.fixture(scope="session")
def model(run_folder: Path) -> ToCo:
    return load_run(run_folder)


@pytest.fixture(scope="session")
def images(run_folder: Path) -> np.ndarray:
    """Images that the network was not fitted to, uint8 [6, 64, 64, 3]."""
    return colour_blocks(np.random.default_rng(2), 6)[0]


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Exported:
    """The one full export: everything that takes seconds happens here."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        status = main([str(run_folder), "--fp16"])
    assert status == 0, errors.getvalue()
    return Exported(run_folder / "repository", output.getvalue())


@pytest.fixture
def traced_before(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let the export take the graph of the full export instead of tracing again; call it to name another."""
    sources = {"fp32": exported.artefacts / "model.onnx"}
    monkeypatch.setattr(export, "trace_onnx", lambda *_: ir.load(sources["fp32"]))
    return lambda source: sources.update(fp32=source)

"""An export that does not serve all of the run's sizes says so and scores the network with those that are left."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from small_run import CONFIG, colour_blocks

from toco_core.fitting import network_sizes
from toco_core.manifest import read_manifest
from toco_core.palette import save_mask
from toco_export.cli import main
from toco_train.config import load_config
from toco_train.evaluation.evaluate import evaluate
from toco_train.runs.load import load_run
from toco_train.runs.source import open_run_source

DROPPED = ", ".join(f"{height}x{width}" for height, width in network_sizes(64, 8) if (height, width) != (64, 64))


@pytest.fixture
def run_with_masks(run_folder: Path, tmp_path: Path) -> Path:
    """The run, with data of its own: lying images with masks."""
    data = tmp_path / "data"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    images, labels = colour_blocks(np.random.default_rng(5), 20)
    rows = []
    for index, (image, label) in enumerate(zip(images[:, :32], labels[:, :32], strict=True)):
        Image.fromarray(image).save(data / "images" / f"{index:02}.png")
        save_mask(data / "masks" / f"{index:02}.png", label.astype(np.uint8))
        rows.append(",".join([f"{index:02}.png", *("abc"[name - 1] for name in np.unique(label) if name)]))
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    run.mkdir()
    config = {"model": CONFIG.model_dump(mode="json"), "data": {"path": str(data)}}
    config["contrast"] = {"local_crop_size": 32}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "model.safetensors").symlink_to(run_folder / "model.safetensors")
    return run


@pytest.mark.usefixtures("traced_before")
def test_an_export_of_one_size_scores_the_run_with_it_and_with_its_own_sizes(
    run_with_masks: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(run_with_masks), "--static", "--target", "onnx"]) == 0
    config, model = load_config(None, run_with_masks / "config.yaml", {}), load_run(run_with_masks)
    source = open_run_source(config, run_with_masks, {})
    served, own = (
        evaluate(model, source.val, scales=(1.0,), background_threshold=0.5, sizes=sizes).seg.mean_iou
        for sizes in ([(64, 64)], None)
    )
    manifest = read_manifest(run_with_masks / "repository")
    assert manifest.sizes == ((64, 64),)
    assert manifest.size_scores is not None
    assert (manifest.size_scores.served, manifest.size_scores.run) == pytest.approx((served, own))
    assert manifest.size_scores.num_images == len(source.val)
    assert served != own
    sentence = (
        f"Not served, of the run's 11 sizes: {DROPPED}; images are fitted to 64x64: mIoU of the segmentation "
        f"{served:.1%}, with all of the run's sizes {own:.1%} ({len(source.val)} images)."
    )
    output = capsys.readouterr().out
    report = (run_with_masks / "repository" / "export_report.md").read_text()
    assert sentence in output
    assert report.count(sentence) == 1
    assert sentence in unescape((run_with_masks / "repository" / "export_report.html").read_text())
    buckets = (run_with_masks / "repository" / "toco_image" / "config.pbtxt").read_text()
    assert json.dumps([[64, 64]]) in buckets


@pytest.mark.usefixtures("traced_before")
def test_without_masks_the_export_says_that_the_score_was_not_computed_and_why(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    repository = tmp_path / "repository"
    assert main([str(run_folder), "--static", "--target", "onnx", "--repository", str(repository)]) == 0
    sentence = (
        f"Not served, of the run's 11 sizes: {DROPPED}; images are fitted to 64x64, and the score with these was not "
        "computed: it needs the run's data, with masks."
    )
    assert f"{sentence} (" in capsys.readouterr().out
    report = (repository / "export_report.md").read_text()
    assert sentence in report
    assert str(run_folder) not in report
    assert read_manifest(repository).size_scores is None

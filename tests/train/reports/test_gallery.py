"""The images of a report."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_core.palette import VOC_PALETTE
from toco_train.config import CamConfig
from toco_train.data.masks import LabelMask
from toco_train.data.source import Sample
from toco_train.inference import predict as prediction
from toco_train.inference.pseudo_labels import LabelConfig, Labeller
from toco_train.reports.gallery import Exhibit, choose, exhibit_images


def test_an_exhibit_is_read_once_and_takes_six_passes_of_the_backbone(tiny_model, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample, read, passes = Sample("a", tmp_path / "a.png", (2, 4)), [], []
    read_image, forward = prediction.read_image, type(tiny_model.backbone).forward
    monkeypatch.setattr(prediction, "read_image", lambda path: read.append(path) or read_image(path))
    monkeypatch.setattr(
        type(tiny_model.backbone), "forward", lambda self, images: passes.extend(images) or forward(self, images)
    )
    exhibits = exhibit_images(tiny_model, [Exhibit("images", sample, 0.5)], CamConfig(), VOC_PALETTE[:6])
    with torch.no_grad():
        (images, shown), *others = exhibits
    assert others == []
    assert read == [sample.image]
    assert len(passes) == 6, "three scales, each with its flip"
    assert list(images) == ["image", "aux CAM", "CAM", "pseudo label", "predicted mask"]
    assert {image.shape for image in images.values()} == {(40, 60, 3)}
    assert {2, 4} <= shown


def test_the_pseudo_label_of_an_exhibit_is_that_of_toco_label(tiny_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    sample, cam = Sample("a", tmp_path / "a.png", (2, 4)), CamConfig()
    labeller = Labeller(tiny_model, LabelConfig(scales=cam.scales, low=cam.low, high=cam.high))
    from_prediction = labeller.label(next(prediction.predict(tiny_model, [sample], cam.scales, 1)))
    from_sample = labeller(sample)
    np.testing.assert_array_equal(from_prediction.mask, from_sample.mask)
    np.testing.assert_array_equal(from_prediction.confidence, from_sample.confidence)


def _chosen(tmp_path, iou):
    """Return group and name of what is chosen of images with these IoU."""
    (tmp_path / "mask.png").touch()
    samples = [Sample(str(index), Path("x"), (), LabelMask(tmp_path / "mask.png")) for index in range(len(iou))]
    source = type("Source", (), {"val": (*samples, Sample("no mask", Path("x"), ())), "train": ()})
    return [(exhibit.group, exhibit.sample.name) for exhibit in choose(source, iou)]


def test_best_typical_and_worst_are_chosen_by_iou(tmp_path):
    chosen = _chosen(tmp_path, [0.1, 0.9, 0.5, math.nan, 0.8, 0.2, 0.6, 0.7, 0.3, 0.4, 0.55])
    assert chosen == [
        ("best", "1"), ("best", "4"), ("best", "7"),
        ("typical", "6"), ("typical", "10"), ("typical", "2"),
        ("worst", "0"), ("worst", "5"), ("worst", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("iou", "expected"),
    [([0.5], [("best", "0")]), ([0.2, 0.8], [("best", "1"), ("worst", "0")]), ([math.nan], []),
     ([0.2, 0.8, 0.5], [("best", "1"), ("typical", "2"), ("worst", "0")])],
)  # fmt: skip
def test_few_images_are_shown_once_each(tmp_path, iou, expected):
    assert _chosen(tmp_path, iou) == expected

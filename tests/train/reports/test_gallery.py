"""The images of a report."""

import numpy as np
import torch
from PIL import Image

from toco_core.palette import VOC_PALETTE
from toco_train.config import CamConfig
from toco_train.data.source import Sample
from toco_train.inference import predict as prediction
from toco_train.inference.pseudo_labels import LabelConfig, Labeller
from toco_train.reports.gallery import Exhibit, exhibit_images


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

"""Evaluation, labelling, parity and the served model see an image at the same size."""

import io
import json

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from toy_model import toy_manifest, write_toy_onnx
from tritonclient.grpc import model_config_pb2 as triton

from toco_export.parity.images import load_images
from toco_export.repository import artefact_folder, complete_repository
from toco_train.config import ModelConfig, ViTSpec
from toco_train.data.source import Sample
from toco_train.inference.predict import predict
from toco_train.models.toco import ToCo

CONFIG = ModelConfig(
    backbone=ViTSpec(image_size=64, patch_size=16, width=16, depth=3, num_heads=2),
    pretrained=False,
    classes=("red", "green", "bright, very"),
    image_size=128,
    decoder_channels=4,
)


@pytest.fixture(scope="module")
def model() -> ToCo:
    torch.manual_seed(0)
    return ToCo(CONFIG).eval()


def buckets(model, tmp_path):
    """Return the sizes that the configuration of a repository of the network names."""
    onnx_file = artefact_folder(tmp_path) / "model.onnx"
    onnx_file.parent.mkdir(parents=True)
    write_toy_onnx(onnx_file)
    complete_repository(tmp_path, toy_manifest(onnx_file, sizes=model.sizes))
    config = text_format.Parse((tmp_path / "toco_image/config.pbtxt").read_text(), triton.ModelConfig())
    return [tuple(size) for size in json.loads(config.parameters["buckets"].string_value)]


def test_500_random_images_get_one_size_from_evaluation_parity_and_the_served_model(model, served, tmp_path):
    served_sizes = buckets(model, tmp_path / "repository")
    samples, expected = [], []
    for index, (width, height) in enumerate(np.random.default_rng(0).integers(1, 300, (500, 2)).tolist()):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height)).save(buffer, "PNG")
        path = tmp_path / f"{index}.png"
        path.write_bytes(buffer.getvalue())
        samples.append(Sample(str(index), path, (1,)))
        expected.append(served.decode(buffer.getvalue(), served_sizes, 10**6, 10**6)[0].shape[:2])
    parity = [image.shape[:2] for image in load_images([sample.image for sample in samples], model.sizes)]
    evaluation = [tuple(prediction.cam.shape[1:]) for prediction in predict(model, samples, (1.0,), 50)]
    assert parity == evaluation == expected
    assert set(expected) == set(model.sizes), "every size is somebody's"

"""The published network, ViT-B/16 with VOC's 21 labels, from image labels to masks over gRPC."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from toco_core.fitting import nearest_size, network_sizes
from toco_core.manifest import read_manifest
from toco_export.cli import main as toco_export
from toco_serve import Client, EmbeddedTriton, Ports
from toco_train.commands.evaluate import main as toco_eval
from toco_train.commands.shapes import main as toco_shapes
from toco_train.commands.train import main as toco_train
from toco_train.data.readers.voc import VOC_CLASSES
from toco_train.data.source import Sample
from toco_train.inference.predict import label_map, predict
from toco_train.runs.load import load_run

VOC_SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "voc-sample"
SHAPES_AS_VOC = dict(zip(("turtle", "crab", "camera", "gift", "daisy", "grape"), VOC_CLASSES, strict=False))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Shapes under the names of VOC's first six classes, which have the same labels."""
    folder = tmp_path_factory.mktemp("voc") / "VOC2012"
    assert toco_shapes([str(folder), "--images", "16", "--size", "224"]) == 0
    (folder / "classes.yaml").unlink()
    for annotation in (folder / "Annotations").iterdir():
        text = annotation.read_text()
        for shape, name in SHAPES_AS_VOC.items():
            text = text.replace(f"<name>{shape}</name>", f"<name>{name}</name>")
        annotation.write_text(text)
    return folder


@pytest.mark.slow
def test_vit_b_with_21_labels_goes_from_image_labels_to_masks_over_grpc(voc, tmp_path):
    run, repository = tmp_path / "run", tmp_path / "repository"
    small = ["--no-pretrained", "--model.image_size", "224", "--steps", "2", "--batch_size", "2", "--log_every", "1",
             "--phases", "[{from_step: 0}]", "--evaluation.every", "2", "--data.num_workers", "0"]  # fmt: skip
    assert toco_train(["--preset", "voc-vit-b", "--data", str(voc), "--out", str(run), *small]) == 0
    assert toco_export([str(run), "--fp16", "--repository", str(repository)]) == 0

    manifest = read_manifest(repository)
    assert manifest.classes == VOC_CLASSES
    assert {(a.format, a.precision) for a in manifest.artefacts} == {
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("tensorrt-rtx", "fp16"),
    }
    sizes = {(p.shape.height, p.shape.width) for p in manifest.parity}
    assert len(sizes) >= 3
    assert any(height != width for height, width in sizes)
    assert len({p.shape.batch for p in manifest.parity}) >= 2

    assert manifest.sizes == network_sizes(224, 16)
    assert manifest.size_scores is None
    session = onnxruntime.InferenceSession(repository / "toco" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    photographs = sorted((VOC_SAMPLE if VOC_SAMPLE.is_dir() else voc).glob("JPEGImages/*.jpg"))[:3]
    with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as triton, Client(triton.grpc_url) as client:
        assert client.classes == VOC_CLASSES
        for photograph in photographs:
            with Image.open(photograph) as image:
                pixels = np.asarray(image.convert("RGB").resize((320, 224)))[None]
                assert client.segment(photograph).mask.shape == (image.height, image.width)
            served = client.segment_tensor(pixels)[0]
            mask, confidence = session.run(["mask", "confidence"], {"image": pixels})
            assert np.array_equal(served.mask, mask[0])
            assert np.array_equal(served.confidence, confidence[0])
        assert_served_as_evaluated(client, load_run(run), [*not_square(voc, tmp_path), *photographs])


def assert_served_as_evaluated(client, model, photographs):
    """Check that photographs which are not square get the mask over gRPC that the evaluation scores.

    The served mask has the size that the image was fitted to and is resized to the image's own; the evaluation resizes
    the logits. So they are compared at the fitted size, and where that is the image's own, nothing differs.
    """
    samples = [Sample(path.stem, path, ()) for path in photographs]
    for sample, prediction in zip(samples, predict(model, samples, (), 4), strict=True):
        fitted = nearest_size(prediction.size, model.sizes)
        mask = prediction.seg_mask()
        if fitted != prediction.size:
            mask = label_map(prediction.seg_logits, range(model.num_classes + 1), fitted)
        expected = Image.fromarray(mask.numpy()).resize(prediction.size[::-1], Image.Resampling.NEAREST)
        agreement = np.mean(client.segment(sample.image).mask == np.asarray(expected))
        assert agreement >= 0.999, f"{sample.name}, {prediction.size}: {agreement:.3%}"


def not_square(voc, folder):
    """Write photographs that are not square: some at a size of the network, some larger, one much larger.

    The last is no JPEG: one so large is decoded at a fraction of its size when it is served, and that alone changes
    0.24 % of the labels of this network, whose classes are almost tied.
    """
    paths = []
    shapes = sorted(voc.glob("JPEGImages/*.jpg"))
    for index, (width, height, scale) in enumerate(
        [(224, 160, 1), (128, 224, 1), (224, 112, 1), (224, 144, 1), (150, 224, 1.7), (224, 170, 5)]
    ):
        path = folder / (f"{index}.jpg" if scale < 2 else f"{index}.png")
        with Image.open(shapes[index]) as image:
            image.crop((0, 0, width, height)).resize((round(width * scale), round(height * scale))).save(path)
        paths.append(path)
    return paths


@pytest.mark.skipif(not VOC_SAMPLE.is_dir(), reason="the VOC sample is not here")
@pytest.mark.slow
def test_real_voc_photographs_are_evaluated(voc, tmp_path, capsys):
    data = shutil.copytree(VOC_SAMPLE, tmp_path / "voc-sample")
    spec = "{image_size: 64, patch_size: 16, width: 48, depth: 4, num_heads: 3}"
    small = ["--no-pretrained", "--model.backbone", spec, "--model.image_size", "64", "--steps", "1"]
    small += ["--contrast.local_crop_size", "32", "--data.num_workers", "0"]
    assert toco_train(["--preset", "voc-vit-b", "--data", str(voc), "--out", str(tmp_path / "run"), *small]) == 0
    capsys.readouterr()
    assert toco_eval([str(tmp_path / "run"), "--data", str(data)]) == 0
    assert "IoU in %, 3 images" in capsys.readouterr().out

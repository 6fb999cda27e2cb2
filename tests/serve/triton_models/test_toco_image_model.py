"""The code of the model ``toco_image`` as it lies in a repository, with a network that answers by rule."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from pycocotools import mask as coco

SIZES = [[64, 96], [96, 96], [96, 64]]
NAMES = ["mask", "confidence", "mask_png", "confidence_png", "mask_rle"]


class Error(SimpleNamespace):
    INVALID_ARG = "invalid"

    def __init__(self, message: str, code: str = "internal") -> None:
        super().__init__(message=message, code=code)


class Network:
    """Stands in for Triton: the mask is the red channel modulo 4, the confidence the green channel."""

    def __init__(self) -> None:
        self.asked: list[SimpleNamespace] = []
        self.error: Error | None = None

    def request(self, **asked: Any) -> SimpleNamespace:
        self.asked.append(SimpleNamespace(**asked))
        [(name, image)] = asked["inputs"]
        assert name == "image"
        reply = SimpleNamespace(
            outputs={"mask": image[..., 0] % 4, "confidence": image[..., 1]},
            has_error=lambda: self.error is not None,
            error=lambda: self.error,
        )

        async def run() -> SimpleNamespace:
            return reply

        return SimpleNamespace(async_exec=run)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def code(repository: Path, network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The model's code in a repository, beside the files that are copied there."""
    limit = Image.MAX_IMAGE_PIXELS
    file = repository / "toco_image/1/model.py"
    utils = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        TritonError=Error,
        PreferredMemory=lambda memory: ("memory", memory),
        TRITONSERVER_MEMORY_CPU="cpu",
        InferenceRequest=network.request,
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(tensors=dict(tensors), error=error),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: [request.inputs[name]]),
        get_output_tensor_by_name=lambda reply, name: SimpleNamespace(as_numpy=lambda: reply.outputs[name]),
    )
    beside = {path.stem for path in file.parent.glob("*.py")}
    for name in beside:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    monkeypatch.syspath_prepend(file.parent)
    spec = importlib.util.spec_from_file_location("toco_image_of_a_repository", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in beside:
        sys.modules.pop(name, None)
    Image.MAX_IMAGE_PIXELS = limit


def started(code: ModuleType, *, max_bytes: int = 10**6, max_pixels: int = 10**6) -> Any:
    """Start the model as Triton does."""
    parameters = {"buckets": json.dumps(SIZES), "max_image_bytes": max_bytes, "max_image_pixels": max_pixels}
    config = {"parameters": {name: {"string_value": str(value)} for name, value in parameters.items()}}
    model = code.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})
    return model


def answers(model: Any, *images: bytes, names: list[str] = NAMES) -> list[Any]:
    requests = [
        SimpleNamespace(inputs={"image_bytes": image}, requested_output_names=lambda: names) for image in images
    ]
    found: list[Any] = asyncio.run(model.execute(requests))
    return found


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (96, 64)])
def test_an_image_of_a_size_of_the_network_is_asked_and_answered_pixel_by_pixel(code, network, size):
    image = pixels(*size)
    [answer] = answers(started(code), encoded(image))
    assert answer.error is None
    [asked] = network.asked
    assert (asked.model_name, asked.requested_output_names) == ("toco", ["mask", "confidence"])
    assert asked.preferred_memory == ("memory", "cpu")
    np.testing.assert_array_equal(asked.inputs[0][1], image[None])
    np.testing.assert_array_equal(answer.tensors["mask"], image[..., 0] % 4)
    np.testing.assert_array_equal(answer.tensors["confidence"], image[..., 1])


def test_an_answer_is_resized_to_the_image_labels_by_the_nearest_and_confidence_between(code, network):
    image = pixels(50, 110)
    [answer] = answers(started(code), encoded(image))
    small = network.asked[0].inputs[0][1][0]
    assert small.shape == (64, 96, 3)
    np.testing.assert_array_equal(small, Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR))
    mask, confidence = (
        Image.fromarray(np.ascontiguousarray(channel)) for channel in (small[..., 0] % 4, small[..., 1])
    )
    np.testing.assert_array_equal(answer.tensors["mask"], mask.resize((110, 50), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(answer.tensors["confidence"], confidence.resize((110, 50), Image.Resampling.BILINEAR))


def test_the_other_forms_hold_the_same_pixels(code):
    [answer] = answers(started(code), encoded(pixels(90, 100)))
    assert set(answer.tensors) == set(NAMES)
    mask, confidence = answer.tensors["mask"], answer.tensors["confidence"]
    assert mask.shape == confidence.shape == (90, 100)
    for name, expected in (("mask_png", mask), ("confidence_png", confidence)):
        assert (answer.tensors[name].dtype, answer.tensors[name].shape) == (np.object_, (1,))
        np.testing.assert_array_equal(decoded(answer.tensors[name][0]), expected)
    regions = json.loads(answer.tensors["mask_rle"][0])
    assert list(regions) == ["1", "2", "3"]
    for label, region in regions.items():
        np.testing.assert_array_equal(coco.decode(region), mask == int(label))


def test_run_lengths_name_the_labels_that_occur_and_not_the_background(code):
    def labels_of(values: list[list[int]]) -> list[str]:
        return list(json.loads(code.run_lengths(Image.fromarray(np.array(values, np.uint8)))))

    assert labels_of([[0, 0], [0, 0]]) == []
    assert labels_of([[0, 7], [255, 7]]) == ["7", "255"]
    assert labels_of([[1, 1], [1, 1]]) == ["1"]


def test_only_the_outputs_that_are_asked_for_are_made(code):
    [answer] = answers(started(code), encoded(pixels(40, 40)), names=["mask_png"])
    assert set(answer.tensors) == {"mask_png"}


def test_a_bad_image_among_good_ones_fails_alone_as_the_clients_fault(code, network):
    good = encoded(pixels(64, 96))
    first, bad, last = answers(started(code), good, b"hello", good)
    assert first.error is None
    assert last.error is None
    assert bad.error.code == "invalid"
    assert bad.error.message.startswith("DataError: ")
    assert len(network.asked) == 2


def test_an_error_of_the_network_is_passed_on(code, network):
    network.error = Error("no room")
    [answer] = answers(started(code), encoded(pixels(64, 96)))
    assert answer.error is network.error
    assert answer.tensors == {}


def test_limits_of_bytes_and_pixels_are_themselves_allowed(code):
    image = encoded(pixels(30, 50))
    allowed = started(code, max_bytes=len(image), max_pixels=1500)
    assert answers(allowed, image)[0].error is None
    for limits in ({"max_bytes": len(image) - 1}, {"max_pixels": 1499}):
        [refused] = answers(started(code, **limits), image)
        assert refused.error.code == "invalid"
    assert answers(started(code, max_pixels=1499), encoded(pixels(30, 49)))[0].error is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_answered_as_it_is_looked_at(code, network, orientation):
    stored = pixels(64, 96)
    exif = Image.Exif()
    exif[0x0112] = orientation
    [answer] = answers(started(code), encoded(stored, exif=exif))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(network.asked[0].inputs[0][1][0], upright)
    np.testing.assert_array_equal(answer.tensors["mask"], upright[..., 0] % 4)


@pytest.mark.parametrize(
    ("height", "width", "asked"), [(900, 1200, (192, 144)), (1200, 900, (144, 192)), (1000, 1000, (192, 192))]
)
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_networks_size(code, monkeypatch, height, width, asked):
    drafts: list[Any] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def recorded(image: Any, mode: str, size: tuple[int, int]) -> Any:
        drafts.append((mode, size))
        return draft(image, mode, size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", recorded)
    [answer] = answers(started(code, max_pixels=10**7), encoded(pixels(height, width), "JPEG"))
    assert answer.error is None
    assert answer.tensors["mask"].shape == (height, width)
    assert drafts == [("RGB", asked)]

"""One reader: training, check, labelling, calibration, client and served model read the same pixels of every kind of
image, and refuse the same images for the same reason.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.image_kinds import KINDS, NOISE, RGB, SMOOTH, Kind
from tests.train.conftest import tiny_config
from toco_core.errors import DataError
from toco_core.images import MAX_IMAGE_PIXELS, read_image
from toco_core.rgb import RefusedImageError, open_image, orientation, to_rgb
from toco_export.parity.images import load_images
from toco_serve.client.images import encoded, rgb_pixels
from toco_train.analysis.token_similarity import look_at
from toco_train.data.augmentation import Views
from toco_train.data.check import Examined, examine_all
from toco_train.data.classes import ClassList
from toco_train.data.loader import training_batches
from toco_train.data.source import DataSource, Sample
from toco_train.inference.predict import predict
from toco_train.models.toco import ToCo

READ = [kind for kind in KINDS if kind.reason is None]
REFUSED = [kind for kind in KINDS if kind.reason is not None]

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # of damaged metadata


@pytest.fixture
def path(kind: Kind, tmp_path: Path) -> Path:
    """The file of an image."""
    file = tmp_path / f"image{kind.suffix}"
    file.write_bytes(kind.content)
    return file


def source_of(path: Path) -> DataSource:
    sample = Sample("image", path, (1,))
    return DataSource("folder", path.parent, ClassList(classes=("a",)), (sample,), (), "")


def as_trained(path: Path) -> np.ndarray:
    """The image that training gets, before augmentation."""

    def whole(image: Image.Image) -> Views:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
        return Views(pixels, pixels, pixels, torch.zeros(4))

    batch = next(training_batches(source_of(path), whole, batch_size=1, num_workers=0, seed=0))
    return batch.view1[0].permute(1, 2, 0).numpy()


def as_analysed(path: Path) -> np.ndarray:
    return np.asarray(look_at((), Sample("image", path, (1,)), (0.5, 0.5)).image)


def as_calibrated(path: Path) -> np.ndarray:
    width, height = upright_size(path)
    return load_images([path], [(height, width)])[0]


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height at which nothing is resized; those of a refused image do not matter."""
    try:
        return read_image(path).size
    except DataError:
        return 8, 8


def checked(path: Path) -> Examined:
    (examined,) = examine_all(source_of(path), tiny_px=1, num_workers=1)
    return examined


@functools.cache
def network() -> ToCo:
    return ToCo(tiny_config()).eval()


def labelled(path: Path) -> np.ndarray:
    """The image that labels are made for."""
    return np.asarray(next(predict(network(), [Sample("image", path, (1,))], (1.0,), 1)).image)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "training": as_trained,
    "analysis": as_analysed,
    "calibration": as_calibrated,
    "client, a file": rgb_pixels,
    "client, its content": lambda path: rgb_pixels(path.read_bytes()),
}


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_every_reader_gives_the_same_pixels(kind, path, served, tmp_path):
    with warnings.catch_warnings():
        if kind.name.startswith("png-"):
            warnings.simplefilter("error")
        pixels = np.asarray(read_image(path))
    if kind.pixels is not None:
        assert pixels.shape == kind.pixels.shape
        assert np.abs(pixels.astype(int) - kind.pixels).max() <= kind.tolerance
    for name, read in READERS.items():
        assert np.array_equal(read(path), pixels), name
    answer, size = served.decode(encoded(path), [pixels.shape[:2]], 10**6, MAX_IMAGE_PIXELS)
    assert np.array_equal(answer, pixels), "served"
    assert size == pixels.shape[1::-1]
    Image.fromarray(pixels).save(tmp_path / "same.png")
    assert checked(path).digest == checked(tmp_path / "same.png").digest, "check"


def test_labels_are_made_for_the_pixels_that_training_reads(tmp_path):
    samples = []
    for kind in READ:
        file = tmp_path / f"{kind.name}{kind.suffix}"
        file.write_bytes(kind.content)
        samples.append(Sample(kind.name, file, (1,)))
    for sample, prediction in zip(samples, predict(network(), samples, (1.0,), len(samples)), strict=True):
        assert np.array_equal(prediction.image, read_image(sample.image)), sample.name


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.name)
def test_every_reader_refuses_the_same_images_for_the_same_reason(kind, path, served):
    readers = {"reading": read_image, "labelling": labelled, **READERS}
    sentences = {}
    for name, read in readers.items():
        with pytest.raises(DataError) as caught:
            read(path)
        sentences[name] = str(caught.value)
    sentences["check"] = checked(path).problem
    with pytest.raises(RefusedImageError) as refused:
        served.decode(encoded(path), [(8, 8)], 10**6, MAX_IMAGE_PIXELS)
    reason = str(refused.value)
    assert reason.startswith(kind.reason)
    assert re.fullmatch(r"it[^\n;]+; (replace|convert|resize) it", reason)
    for name, sentence in sentences.items():
        if name.startswith("client"):
            assert sentence == f"the image cannot be read: {reason}", name
        else:
            assert sentence == f"image {path} cannot be read: {reason} or remove it from the data", name


def test_asking_for_the_orientation_of_a_damaged_png_does_not_hide_its_error():
    (changed,) = (kind.content for kind in KINDS if kind.name == "png-one-byte-changed")
    with pytest.raises(RefusedImageError, match=r"^it is damaged \(broken data stream"):  # noqa: SIM117
        with open_image(io.BytesIO(changed), MAX_IMAGE_PIXELS) as image:
            orientation(image)


IN_MEMORY = {
    "1": (Image.fromarray(RGB[..., 0] > 127), (RGB[..., :1] > 127) * 255, 0),
    "L": (Image.fromarray(NOISE[..., 0]), NOISE[..., :1], 0),
    "LA": (Image.fromarray(NOISE[..., :2]), NOISE[..., :1], 0),
    "La": (Image.fromarray(np.dstack([RGB[..., 0], np.full(RGB.shape[:2], 255, np.uint8)])).convert("La"),
           RGB[..., :1], 0),
    "P": (Image.fromarray(SMOOTH).quantize(256), SMOOTH, 24),
    "RGB": (Image.fromarray(RGB), RGB, 0),
    "RGBA": (Image.fromarray(NOISE), RGB, 0),
    "RGBa": (Image.fromarray(NOISE | np.array([0, 0, 0, 255], np.uint8)).convert("RGBa"), RGB, 0),
    "RGBX": (Image.fromarray(RGB).convert("RGBX"), RGB, 0),
    "CMYK": (Image.fromarray(SMOOTH).convert("CMYK"), SMOOTH, 2),
    "YCbCr": (Image.fromarray(SMOOTH).convert("YCbCr"), SMOOTH, 3),
    "HSV": (Image.fromarray(SMOOTH).convert("HSV"), SMOOTH, 6),
    "I;16": (Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16)), [[[0], [0], [1], [255]]], 0),
    "I;16B": (Image.frombytes("I;16B", (4, 1), b"\0\0\0\xff\1\0\xff\xff"), [[[0], [0], [1], [255]]], 0),
    "I": (Image.fromarray(np.array([[0, 255, 256, 65535]], np.int32)), [[[0], [0], [1], [255]]], 0),
}  # fmt: skip


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_an_image_in_memory_of_any_mode_reaches_the_server_with_the_pixels_that_the_client_sees(mode, served):
    image, expected, tolerance = IN_MEMORY[mode]
    assert image.mode == mode
    pixels = rgb_pixels(image)
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    answer, _ = served.decode(encoded(image), [pixels.shape[:2]], 10**6, 10**6)
    assert np.array_equal(answer, pixels)


def test_colours_multiplied_by_their_transparency_are_divided_again():
    clear = Image.fromarray(SMOOTH)
    clear.putalpha(128)
    assert np.abs(np.asarray(to_rgb(clear.convert("RGBa")), dtype=int) - SMOOTH).max() <= 2
    grey = Image.fromarray(SMOOTH[..., 0])
    grey.putalpha(128)
    assert np.abs(np.asarray(to_rgb(grey.convert("La")), dtype=int) - SMOOTH[..., :1]).max() <= 2


@pytest.mark.parametrize("convert", [rgb_pixels, encoded])
def test_an_image_in_memory_that_cannot_be_converted_is_refused_in_one_sentence(convert):
    (changed,) = (kind.content for kind in KINDS if kind.name == "png-one-byte-changed")
    for image, reason in (
        (Image.fromarray(np.array([[0.5]], np.float32)), "its levels are floating-point numbers, expected integers"),
        (Image.fromarray(np.array([[0, 70_000]], np.int32)), "its levels go from 0 to 70000, expected 0 to 65535"),
        (Image.open(io.BytesIO(changed)), r"it is damaged \("),
    ):
        with pytest.raises(DataError, match=f"^the image cannot be read: {reason}.*; (convert|replace) it"):
            convert(image)

"""The served model ``toco_image``: encoded images of any size in, label maps at that size out."""

import io
import json
import threading
import urllib.request

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from toy_model import PALETTE, RED, quadrant_labels, quadrants, slow_down, write_toy_repository
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from toco_core.errors import DataError, ServeError
from toco_serve import Client, EmbeddedTriton, Ports
from toco_serve.errors import error_from_triton

KINDS = "expected JPEG, PNG, WebP, BMP or TIFF; replace it"


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return encode(Image.fromarray(pixels), "PNG")


@pytest.mark.parametrize("size", [(131, 77), (64, 333), (1, 1), (700, 500), (96, 96), (40, 1000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_answer_has_the_images_own_size_and_labels(client, size, kind):
    answer = client.segment(encode(Image.fromarray(quadrants(*size)), kind))
    assert answer.mask.shape == answer.confidence.shape == size
    if min(size) > 1:
        assert quadrant_labels(answer.mask) == [0, 1, 2, 3]


def test_the_answer_is_the_networks_own_at_the_nearest_bucket_resized_back(client, network):
    pixels = np.random.default_rng(0).integers(0, 256, (100, 151, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(pixels).resize((96, 64), Image.Resampling.BILINEAR))  # 3:2 at longest side 96
    mask, confidence = (output[0] for output in network.run(["mask", "confidence"], {"image": small[None]}))
    answer = client.segment(png(pixels))
    np.testing.assert_array_equal(answer.mask, Image.fromarray(mask).resize((151, 100), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(
        answer.confidence, Image.fromarray(confidence).resize((151, 100), Image.Resampling.BILINEAR)
    )


@pytest.mark.parametrize(
    ("orientation", "labels"),
    [
        (1, [0, 1, 2, 3]),
        (2, [1, 0, 3, 2]),
        (3, [3, 2, 1, 0]),
        (4, [2, 3, 0, 1]),
        (5, [0, 2, 1, 3]),
        (6, [2, 0, 3, 1]),
        (7, [3, 1, 2, 0]),
        (8, [1, 3, 0, 2]),
    ],
)
def test_exif_orientation_turns_the_image_and_its_mask_upright(client, orientation, labels):
    stored = Image.fromarray(quadrants(120, 200))
    exif = Image.Exif()
    exif[0x0112] = orientation
    answer = client.segment(encode(stored, "JPEG", quality=95, exif=exif))
    assert answer.mask.shape == ((200, 120) if orientation >= 5 else (120, 200))
    assert quadrant_labels(answer.mask) == labels
    tiff = client.segment(encode(stored, "TIFF", exif=exif))
    assert tiff.mask.shape == answer.mask.shape
    assert quadrant_labels(tiff.mask) == labels


def test_greyscale_cmyk_rgba_palette_and_16_bit_images_are_read_as_rgb(client):
    colours = Image.fromarray(quadrants(90, 70))
    grey = np.zeros((90, 70), np.uint8)
    grey[45:] = 240
    deep = grey.astype(np.uint16) * 256 + 200  # clipped to 8 bits instead of scaled, all of it would be white
    transparent = colours.copy()
    transparent.putalpha(0)
    assert quadrant_labels(client.segment(encode(Image.fromarray(grey), "JPEG")).mask) == [0, 0, 3, 3]
    assert quadrant_labels(client.segment(encode(Image.fromarray(deep), "PNG")).mask) == [0, 0, 3, 3]
    assert quadrant_labels(client.segment(encode(colours.convert("CMYK"), "JPEG", quality=95)).mask) == [0, 1, 2, 3]
    assert quadrant_labels(client.segment(encode(transparent, "PNG")).mask) == [0, 1, 2, 3]
    assert quadrant_labels(client.segment(encode(colours.convert("P"), "PNG")).mask) == [0, 1, 2, 3]
    assert quadrant_labels(client.segment(encode(Image.fromarray(grey > 0), "PNG")).mask) == [0, 0, 3, 3]


def test_a_path_its_content_a_image_and_an_array_get_the_same_answer(client, tmp_path):
    pixels = quadrants(75, 51)
    path = tmp_path / "image.png"
    path.write_bytes(png(pixels))
    expected = client.segment(path).mask
    for image in (str(path), path.read_bytes(), Image.open(path), pixels):
        np.testing.assert_array_equal(client.segment(image).mask, expected)


def test_images_that_png_cannot_hold_are_converted(client):
    colours = Image.fromarray(quadrants(75, 51))
    deep = Image.fromarray(np.full((40, 40), 240 * 256, np.int32))
    assert quadrant_labels(client.segment(colours.convert("HSV")).mask) == [0, 1, 2, 3]
    assert quadrant_labels(client.segment(deep).mask) == [3, 3, 3, 3]


def test_concurrent_images_of_mixed_sizes_are_each_answered_rightly(client):
    sizes = [(40 + 17 * i, 50 + (31 * i) % 90) for i in range(24)]
    answers: dict[int, list[int]] = {}
    shapes: dict[int, tuple[int, ...]] = {}

    def ask(index: int) -> None:
        answer = client.segment(quadrants(*sizes[index]))
        shapes[index], answers[index] = answer.mask.shape, quadrant_labels(answer.mask)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [shapes[i] for i in range(24)] == sizes
    assert all(answers[i] == [0, 1, 2, 3] for i in range(24))


def test_images_of_one_shape_run_as_one_batch_and_a_bad_one_among_them_fails_alone(tmp_path):
    repository = write_toy_repository(tmp_path / "repository")
    slow_down(repository, 0.3)
    images = [quadrants(60 + 20 * i, 90 + 30 * i) for i in range(8)]  # all of them 2:3
    images[5] = b"no image"
    with EmbeddedTriton(repository, ports=Ports(0, 0, 0)) as server, Client(server.grpc_url) as client:

        def num_runs() -> int:
            with urllib.request.urlopen(f"{server.http_url}/v2/models/toco/stats") as reply:
                return int(json.load(reply)["model_stats"][0]["execution_count"])

        before = num_runs()
        outcomes = list(client.segment_many(images, in_flight=8))
        assert num_runs() - before < 7, "each of the seven good images had a run of its own"
    assert str(outcomes.pop(5).error) == f"the image cannot be read: it is text, {KINDS}"
    assert all(quadrant_labels(outcome.segmentation.mask) == [0, 1, 2, 3] for outcome in outcomes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello, I am a text", f"the image cannot be read: it is text, {KINDS}"),
        (b"", f"the image cannot be read: it is empty, {KINDS}"),
        (b"GIF89a" + bytes(64), f"the image cannot be read: it is a GIF, {KINDS}"),
        (b"%PDF-1.7", f"the image cannot be read: it is a PDF, {KINDS}"),
        (bytes(range(64)), f"the image cannot be read: it is of an unknown kind or damaged at its start, {KINDS}"),
        (
            bytes(64 * 2**20 + 1),
            "the image cannot be read: it has 67,108,865 bytes, expected at most 67,108,864; make it smaller",
        ),
    ],
    ids=["text", "empty", "gif", "pdf", "noise", "64 MiB and 1"],
)
def test_data_that_is_no_image_is_refused_and_the_next_request_works(client, data, message):
    with pytest.raises(DataError) as caught:
        client.segment(data)
    assert str(caught.value) == message
    assert client.segment(quadrants(32, 32)).mask.shape == (32, 32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_and_the_next_request_works(client, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(noise), kind)
    with pytest.raises(DataError, match=r"^the image cannot be read: it is damaged \(.+\); replace it$"):
        client.segment(whole[: len(whole) // 2])
    assert client.segment(whole).mask.shape == (64, 64)


def test_too_many_pixels_are_refused_from_the_header_before_any_is_decoded(client):
    header = encode(Image.new("1", (10_000, 10_000)), "PNG")[:64]  # nothing that could be decoded follows
    with pytest.raises(DataError) as caught:
        client.segment(header)
    assert str(caught.value) == (
        "the image cannot be read: it is 10000 x 10000 px, expected at most 33,554,432 pixels; resize it"
    )


def test_the_run_lengths_of_the_mask_are_coco_s_own_by_label(server, client):
    image = grpc.InferInput("image_bytes", [1], "BYTES")
    image.set_data_from_numpy(np.array([png(quadrants(75, 51))], dtype=np.object_))
    reply = grpc.InferenceServerClient(server.grpc_url).infer(
        "toco_image", [image], outputs=[grpc.InferRequestedOutput("mask_rle")]
    )
    regions = json.loads(reply.as_numpy("mask_rle")[0])
    mask = client.segment(quadrants(75, 51)).mask
    assert list(regions) == ["1", "2", "3"]
    for label, rle in regions.items():
        np.testing.assert_array_equal(coco.decode(rle), mask == int(label))


@pytest.mark.parametrize("name", ["mask_jpg", "confidence_rle", "rle", "mask_", "MASK_RLE", "x" * 5_000])
def test_a_form_of_answer_that_there_is_not_is_refused(server, name):
    image = grpc.InferInput("image_bytes", [1], "BYTES")
    image.set_data_from_numpy(np.array([png(quadrants(75, 51))], dtype=np.object_))
    with pytest.raises(InferenceServerException, match="unexpected inference output") as caught:
        grpc.InferenceServerClient(server.grpc_url).infer(
            "toco_image", [image], outputs=[grpc.InferRequestedOutput(name)]
        )
    assert type(error_from_triton(caught.value, "host:1", 1)) is ServeError


def test_damaged_exif_data_are_no_reason_to_refuse_the_pixels(client):
    orientation_x = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0"
    broken = encode(Image.fromarray(quadrants(80, 80)), "JPEG", exif=orientation_x)
    assert quadrant_labels(client.segment(broken).mask) == [0, 1, 2, 3]


def test_an_unreadable_path_and_a_wrong_array_are_refused_before_anything_is_sent(client, tmp_path):
    with pytest.raises(DataError) as missing:
        client.segment(tmp_path / "none.jpg")
    assert (
        str(missing.value) == f"cannot read {tmp_path}/none.jpg: no such file or directory; give the path of an image"
    )
    with pytest.raises(DataError) as wrong:
        client.segment(np.zeros((32, 32), np.float32))
    assert str(wrong.value) == "the array is float32 [32, 32]; expected an RGB image, uint8 [H, W, 3]"


def test_the_overlay_of_a_turned_photograph_fits_its_mask(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(np.full((40, 80, 3), RED, np.uint8)), "JPEG", quality=95, exif=exif)
    overlay = client.segment(data).overlay(data)
    assert overlay.size == (40, 80)
    blended = np.round(0.45 * np.array(RED) + 0.55 * np.array(PALETTE[1]))
    np.testing.assert_allclose(np.asarray(overlay)[20, 20], blended, atol=3)


def test_an_overlay_on_another_image_is_refused(client):
    with pytest.raises(DataError) as caught:
        client.segment(quadrants(32, 32)).overlay(quadrants(10, 20))
    assert str(caught.value) == "the image is 10x20 px, but its mask 32x32 px; give the image that was segmented"

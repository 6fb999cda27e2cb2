"""The served model ``toco``: arrays in, label maps out."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from toy_model import CLASSES, COLOURS

from toco_core.errors import DataError, ImageSizeError, ServeError
from toco_serve.errors import DeadlineError


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 96, 64), (8, 48, 160), (1, 448, 448)])
def test_the_served_answer_is_the_networks_own_bit_for_bit(client, network, shape):
    images = random_images(*shape)
    masks, confidences = network.run(["mask", "confidence"], {"image": images})
    answers = client.segment_tensor(images)
    assert len(answers) == shape[0]
    np.testing.assert_array_equal([answer.mask for answer in answers], masks)
    np.testing.assert_array_equal([answer.confidence for answer in answers], confidences)


def test_the_four_colours_get_the_labels_and_the_confidence_worked_out_by_hand(client):
    image = np.array([COLOURS] * 32, np.uint8).repeat(8, axis=1)[None]
    (answer,) = client.segment_tensor(image)
    assert answer.mask.dtype == np.uint8
    assert answer.mask[0, ::8].tolist() == [0, 1, 2, 3]
    # Black scores 20, 0, 0, -450: e^(20/64) / (e^(20/64) + 2 + e^(-450/64)) = 0.4058.
    assert answer.confidence[0, 0] == round(255 * 0.4058)
    assert answer.class_shares() == {"background": 0.25, "red": 0.25, "green": 0.25, "bright, very": 0.25}


def test_class_names_come_from_the_server_commas_and_all(client):
    assert client.classes == CLASSES


def test_concurrent_requests_of_mixed_sizes_are_each_answered_rightly(client, network):
    sizes = [(32, 32), (48, 32), (96, 96), (32, 160)]
    batches = [random_images(1 + i % 3, *sizes[i % 4], seed=i) for i in range(48)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(client.segment_tensor, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_array_equal([one.mask for one in answer], network.run(["mask"], {"image": batch})[0])


def test_requests_that_wait_together_run_as_one_batch_and_each_gets_its_own_answer(server, client, network):
    def num_runs() -> int:
        with urllib.request.urlopen(f"{server.http_url}/v2/models/toco/stats") as reply:
            return int(json.load(reply)["model_stats"][0]["execution_count"])

    before = num_runs()
    small = [random_images(1, 32, 32, seed=i) for i in range(6)]
    with ThreadPoolExecutor(10) as pool:
        busy = [pool.submit(client.segment_tensor, np.zeros((8, 512, 512, 3), np.uint8)) for _ in range(4)]
        time.sleep(0.1)
        answers = list(pool.map(client.segment_tensor, small))
        assert all(future.result() for future in busy)
    for image, (answer,) in zip(small, answers, strict=True):
        np.testing.assert_array_equal(answer.mask, network.run(["mask"], {"image": image})[0][0])
    assert num_runs() - before < len(busy) + len(small)


def test_a_bad_size_among_good_requests_fails_alone(client):
    batches = [random_images(1, 33 if i % 4 == 0 else 32, 32) for i in range(24)]

    def outcome(batch: np.ndarray) -> str:
        try:
            return str(client.segment_tensor(batch)[0].mask.shape)
        except ImageSizeError as error:
            return str(error)

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(outcome, batches))
    refused = "image height 33 is not a multiple of the patch size 16; pad to 48"
    assert outcomes == [refused if i % 4 == 0 else "(32, 32)" for i in range(24)]


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (450, 448, "image height 450 is not a multiple of the patch size 16; pad to 464"),
        (448, 47, "image width 47 is not a multiple of the patch size 16; pad to 48"),
        (32, 528, "image width 528 is outside the 32 to 512 that this model was exported for; resize it"),
        (16, 32, "image height 16 is outside the 32 to 512 that this model was exported for; resize it"),
    ],
)
def test_a_size_that_the_model_cannot_take_is_refused_with_the_remedy(client, height, width, message):
    with pytest.raises(ImageSizeError) as caught:
        client.segment_tensor(np.zeros((1, height, width, 3), np.uint8))
    assert str(caught.value) == message


def test_a_batch_beyond_the_profile_is_refused_by_triton(client):
    with pytest.raises(ServeError, match="batch-size must be <= 8 for 'toco'"):
        client.segment_tensor(np.zeros((9, 32, 32, 3), np.uint8))


def test_an_array_that_is_no_batch_of_images_is_refused_before_it_is_sent(client):
    with pytest.raises(DataError) as caught:
        client.segment_tensor(np.zeros((1, 32, 32), np.float32))
    assert str(caught.value) == "the array is float32 [1, 32, 32]; expected RGB, uint8 [B, H, W, 3]"


def test_an_answer_that_takes_too_long_is_a_clear_error(server, client):
    with pytest.raises(DeadlineError) as caught:
        client.segment_tensor(np.zeros((8, 512, 512, 3), np.uint8), timeout_s=1e-4)
    assert str(caught.value) == (f"{server.grpc_url} did not answer within 0.0001 s; allow more time or ask for less")

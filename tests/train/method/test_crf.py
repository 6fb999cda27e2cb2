"""Dense CRF: what it does to labels that miss an edge, and what is said where it is not installed."""

import importlib.util
import re
import sys

import numpy as np
import pytest

from toco_core.errors import ConfigError
from toco_train.method.crf import CAM_CRF, SEGMENTATION_CRF, CrfConfig, dense_crf, require_crf

needs_crf = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed: pip install pydensecrf2"
)
EDGE, GUESS = 20, 16


def _two_halves():
    """Return an image that is dark up to column 20, and probabilities that change sides at column 16."""
    image = np.full((24, 40, 3), 40, dtype=np.uint8)
    image[:, EDGE:] = 200
    probabilities = np.full((2, 24, 40), 0.2, dtype=np.float32)
    probabilities[0, :, :GUESS] = probabilities[1, :, GUESS:] = 0.8
    return image, probabilities


def test_the_published_parameters():
    assert SEGMENTATION_CRF.model_dump() == {
        "iterations": 10, "position_sigma": 1, "position_weight": 1,
        "bilateral_sigma": 121, "colour_sigma": 5, "bilateral_weight": 4,
    }  # fmt: skip
    assert CAM_CRF.model_dump() == {
        "iterations": 10, "position_sigma": 3, "position_weight": 3,
        "bilateral_sigma": 36, "colour_sigma": 3, "bilateral_weight": 4,
    }  # fmt: skip


@needs_crf
@pytest.mark.parametrize("config", [SEGMENTATION_CRF, CAM_CRF])
def test_labels_move_to_the_edge_of_the_image(config):
    image, probabilities = _two_halves()
    refined = dense_crf(image, probabilities, config)
    assert refined.dtype == np.float32
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    assert (refined.argmax(axis=0)[:, :EDGE] == 0).all()
    assert (refined.argmax(axis=0)[:, EDGE:] == 1).all()


@needs_crf
def test_without_weights_the_probabilities_stay_as_they_are_but_never_below_1e_5():
    image, probabilities = _two_halves()
    probabilities[:, 0, 0] = (1, 0)
    nothing = CrfConfig(
        position_sigma=1, position_weight=0, bilateral_sigma=10, colour_sigma=5, bilateral_weight=0, iterations=3
    )
    refined = dense_crf(image, probabilities, nothing)
    np.testing.assert_allclose(refined[:, 1:], probabilities[:, 1:], atol=1e-5)
    np.testing.assert_allclose(refined[:, 0, 0], (1, 1e-5), rtol=1e-3)


@needs_crf
def test_images_and_probabilities_that_are_read_only_are_taken_and_left_alone():
    image, probabilities = _two_halves()
    before = image.copy(), probabilities.copy()
    image.flags.writeable = probabilities.flags.writeable = False
    dense_crf(image, probabilities, CAM_CRF)
    assert np.array_equal(image, before[0])
    assert np.array_equal(probabilities, before[1])


@needs_crf
def test_a_single_label_stays_certain():
    image, _ = _two_halves()
    refined = dense_crf(image, np.ones((1, 24, 40), dtype=np.float32), SEGMENTATION_CRF)
    assert (refined == 1).all()


def test_sizes_that_differ_are_refused():
    image, probabilities = _two_halves()
    with pytest.raises(ValueError, match=re.escape("(24, 40, 3) and probabilities (2, 23, 40) are not of one size")):
        dense_crf(image, probabilities[:, 1:], CAM_CRF)


def test_without_the_extra_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ConfigError, match="install it with 'pip install pydensecrf2'"):
        require_crf()

"""What the dense CRF is asked, whether or not pydensecrf is installed: its own results are in test_crf.py."""

import math
import sys
from types import ModuleType

import numpy as np
import pytest

from toco_core.errors import ConfigError
from toco_train.method.crf import CrfConfig, dense_crf, require_crf

WIDTHS = CrfConfig(
    iterations=7, position_sigma=2, position_weight=3, bilateral_sigma=40, colour_sigma=5, bilateral_weight=6
)


class Asked:
    """Keeps what it is asked, and answers with the label of each pixel's number."""

    def __init__(self, width, height, num_labels):
        self.size, self.calls = (width, height, num_labels), []

    def setUnaryEnergy(self, unary):  # noqa: N802
        self.calls.append(("unary", unary))

    def addPairwiseGaussian(self, **kernel):  # noqa: N802
        self.calls.append(("position", kernel))

    def addPairwiseBilateral(self, **kernel):  # noqa: N802
        self.calls.append(("colour", kernel))

    def inference(self, iterations):
        self.calls.append(("iterations", iterations))
        width, height, num_labels = self.size
        return [[float(label * 100 + pixel) for pixel in range(height * width)] for label in range(num_labels)]


@pytest.fixture
def asked(monkeypatch):
    """The CRFs that were made, in the place of pydensecrf."""
    made = []
    package, densecrf = ModuleType("pydensecrf"), ModuleType("pydensecrf.densecrf")
    densecrf.DenseCRF2D = lambda *size: made.append(Asked(*size)) or made[-1]
    package.densecrf = densecrf
    monkeypatch.setitem(sys.modules, "pydensecrf", package)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", densecrf)
    return made


def test_the_energies_and_kernels_are_those_of_the_configuration(asked):
    image = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    probabilities = np.array([[[1, 0.5, 0.25], [1, 0.5, 0.25]], [[0, 0.5, 0.75], [0, 0.5, 0.75]]], np.float32)
    refined = dense_crf(image, probabilities, WIDTHS)
    [crf] = asked
    assert crf.size == (3, 2, 2)
    unary = dict(crf.calls)["unary"]
    impossible = -math.log(1e-5)
    row = ([0, math.log(2), math.log(4)], [impossible, math.log(2), -math.log(0.75)])
    np.testing.assert_allclose(unary, [row[0] * 2, row[1] * 2], rtol=1e-6, atol=1e-7)
    assert unary.dtype == np.float32
    assert unary.flags.c_contiguous
    assert dict(crf.calls)["position"] == {"sxy": 2, "compat": 3}
    colour = dict(crf.calls)["colour"]
    np.testing.assert_array_equal(colour.pop("rgbim"), image)
    assert colour == {"sxy": 40, "srgb": 5, "compat": 6}
    assert crf.calls[-1] == ("iterations", 7)
    assert refined.dtype == np.float32
    assert refined.tolist() == [[[0, 1, 2], [3, 4, 5]], [[100, 101, 102], [103, 104, 105]]]


def test_the_image_is_given_as_a_writable_copy(asked):
    image = np.zeros((2, 3, 3), np.uint8).transpose(0, 1, 2)
    image.flags.writeable = False
    dense_crf(image, np.full((2, 2, 3), 0.5, np.float32), WIDTHS)
    given = dict(asked[0].calls)["colour"]["rgbim"]
    assert given.flags.writeable
    assert given.flags.c_contiguous


def test_the_module_of_the_extra_is_returned(asked):
    assert require_crf() is sys.modules["pydensecrf.densecrf"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("iterations", 0), ("position_sigma", 0), ("position_weight", -1), ("bilateral_sigma", 0), ("colour_sigma", 0),
     ("bilateral_weight", -1)],
)  # fmt: skip
def test_widths_are_above_zero_and_weights_not_below(name, value):
    values = WIDTHS.model_dump()
    with pytest.raises(ValueError, match=name):
        CrfConfig(**{**values, name: value})
    limit = {"iterations": 1, "position_weight": 0, "bilateral_weight": 0}.get(name, 0.5)
    assert getattr(CrfConfig(**{**values, name: limit}), name) == limit


def test_a_library_that_does_not_load_is_named_with_its_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", ModuleType("pydensecrf"))
    monkeypatch.delitem(sys.modules, "pydensecrf.densecrf", raising=False)  # an earlier test may have loaded it
    with pytest.raises(ConfigError, match="cannot be imported") as caught:
        require_crf()
    assert isinstance(caught.value.__cause__, ImportError)

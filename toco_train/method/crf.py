"""Dense CRF: labels that follow the edges of the image, after training.

``pydensecrf`` does the computation. It is compiled when it is installed, so it is an optional extra: only ``--crf``
needs it.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
from pydantic import Field

from toco_core.config import FrozenModel
from toco_core.errors import ConfigError
from toco_core.palette import UInt8Array

_LEAST_PROBABILITY = 1e-5


class CrfConfig(FrozenModel):
    """Widths and weights of the two kernels."""

    iterations: int = Field(10, gt=0, description="Iterations of mean field.")
    position_sigma: float = Field(gt=0, description="Width of the smoothness kernel, in pixels.")
    position_weight: float = Field(ge=0, description="Weight of the smoothness kernel.")
    bilateral_sigma: float = Field(gt=0, description="Width of the appearance kernel, in pixels.")
    colour_sigma: float = Field(gt=0, description="Width of the appearance kernel, in colour, 0 to 255.")
    bilateral_weight: float = Field(ge=0, description="Weight of the appearance kernel.")


SEGMENTATION_CRF = CrfConfig(
    position_sigma=1, position_weight=1, bilateral_sigma=121, colour_sigma=5, bilateral_weight=4
)
CAM_CRF = CrfConfig(position_sigma=3, position_weight=3, bilateral_sigma=36, colour_sigma=3, bilateral_weight=4)


def require_crf() -> ModuleType:
    """Return the module ``pydensecrf.densecrf``.

    Raises:
        ConfigError: The extra is not installed.
    """
    try:
        from pydensecrf import densecrf  # noqa: PLC0415  (an optional extra)
    except ImportError as error:
        raise ConfigError(
            f"the dense CRF needs pydensecrf, which cannot be imported ({error}); install it with "
            "'pip install pydensecrf2' (it needs a C++ compiler), or go without the CRF"
        ) from error
    module: ModuleType = densecrf
    return module


def dense_crf(image: UInt8Array, probabilities: npt.NDArray[np.float32], config: CrfConfig) -> npt.NDArray[np.float32]:
    """Refine the probabilities of labels by a fully connected CRF.

    Memory: about 200 bytes for each pixel, and 40 more for each label. Time on one core: 0.7 s for 500 x 375 px and 3
    labels, 2 s for 21 labels, 10 s for a megapixel.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        probabilities: float32 ``[L, H, W]`` in [0, 1], the labels of a pixel summing to 1; values are clipped at 1e-5.
        config: Widths and weights of the kernels.

    Returns:
        float32 ``[L, H, W]``, the labels of a pixel summing to 1.

    Raises:
        ConfigError: The extra ``crf`` is not installed.
        ValueError: Image and probabilities differ in size.

    Source: Krähenbühl and Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials" (NIPS
    2011), with the parameters that ToCo publishes; docs/method.md, test time.
    """
    num_labels, height, width = probabilities.shape
    if image.shape != (height, width, 3):
        raise ValueError(f"image {image.shape} and probabilities {probabilities.shape} are not of one size")
    crf = require_crf().DenseCRF2D(width, height, num_labels)
    unary = -np.log(np.clip(probabilities, _LEAST_PROBABILITY, 1)).reshape(num_labels, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=config.position_sigma, compat=config.position_weight)
    crf.addPairwiseBilateral(
        sxy=config.bilateral_sigma,
        srgb=config.colour_sigma,
        rgbim=np.array(image, order="C"),  # a copy: it refuses read-only arrays
        compat=config.bilateral_weight,
    )
    refined = np.asarray(crf.inference(config.iterations), dtype=np.float32)
    return refined.reshape(num_labels, height, width)

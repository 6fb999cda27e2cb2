"""The formats in which ``toco_image`` sends its answers; all are lossless."""

from __future__ import annotations

import io
import json
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image

from toco_core.errors import ConfigError
from toco_core.palette import UInt8Array
from toco_core.rle import decode_rle

AnswerFormat: TypeAlias = Literal["raw", "png", "rle"]

OUTPUTS: dict[AnswerFormat, tuple[str, str]] = {
    "raw": ("mask", "confidence"),
    "png": ("mask_png", "confidence_png"),
    "rle": ("mask_rle", "confidence_png"),
}


def check_answer_format(name: str) -> None:
    """Check that a format exists.

    Raises:
        ConfigError: It is not one of ``AnswerFormat``.
    """
    if name not in OUTPUTS:
        raise ConfigError(f"the answer format {name!r} is not known; expected one of {', '.join(OUTPUTS)}")


def decode_answer(answer_format: AnswerFormat, mask: Any, confidence: Any) -> tuple[UInt8Array, UInt8Array]:
    """Decode two outputs that are not sent raw: return mask and confidence, uint8 ``[H, W]`` each."""
    levels = _png_levels(confidence[0])
    return _png_levels(mask[0]) if answer_format == "png" else _mask_from_rle(mask[0], levels.shape), levels


def _png_levels(data: bytes) -> UInt8Array:
    """Return the pixels of a greyscale PNG."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.asarray(image)


def _mask_from_rle(rles: bytes, shape: tuple[int, ...]) -> UInt8Array:
    """Return the mask of run lengths by label, given as JSON."""
    columns = np.zeros(shape[::-1], np.uint8)
    for label, rle in json.loads(rles).items():
        columns[decode_rle(rle).T] = int(label)
    return np.ascontiguousarray(columns.T)

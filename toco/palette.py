"""Label maps as pictures: the VOC palette, palette PNGs and overlays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from toco.files import write_atomic

IGNORE_INDEX = 255

UInt8Array = npt.NDArray[np.uint8]


def voc_palette(num_colours: int = 256) -> UInt8Array:
    """Return the PASCAL VOC colour of each label, uint8 ``[num_colours, 3]`` RGB: 0 black, 1 dark red, 255 cream."""
    labels = np.arange(num_colours)
    palette = np.zeros((num_colours, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def mask_png(mask: UInt8Array) -> bytes:
    """Encode a label map, uint8 ``[H, W]``, as a palette PNG with the VOC colours (the format of VOC's own masks)."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).convert("L")
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_mask(path: Path, mask: UInt8Array) -> None:
    """Write a label map, uint8 ``[H, W]``, as a palette PNG, whole or not at all."""
    write_atomic(path, mask_png(mask))


def colour_mask(mask: UInt8Array) -> UInt8Array:
    """Return the VOC colours of a label map: uint8 ``[H, W]`` -> uint8 ``[H, W, 3]`` RGB."""
    return voc_palette()[mask]


def overlay(image: UInt8Array, mask: UInt8Array, opacity: float = 0.55) -> UInt8Array:
    """Lay the colours of a label map over its image; background (0) and ignored pixels (255) keep the image.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        mask: uint8 ``[H, W]`` labels.
        opacity: Weight of the label's colour, 0 to 1.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    labelled = ((mask != 0) & (mask != IGNORE_INDEX))[..., None]
    blended = (1 - opacity) * image + opacity * colour_mask(mask)
    return np.where(labelled, blended, image).round().astype(np.uint8)

"""Label maps as images: palette PNGs and overlays, in the VOC colours or others.

A palette is uint8 ``[L, 3]`` RGB, the colours of the labels 0..L - 1; the labels beyond have those of VOC.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from toco_core.files import write_atomic

IGNORE_INDEX = 255

UInt8Array = npt.NDArray[np.uint8]


def _voc_palette() -> UInt8Array:
    """Return the PASCAL VOC colour of each label, uint8 ``[256, 3]`` RGB: 0 black, 1 dark red, 255 cream."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


VOC_PALETTE = _voc_palette()


def _of_all_labels(palette: UInt8Array) -> UInt8Array:
    """Return the colours of the labels 0 to 255."""
    return np.concatenate([palette, VOC_PALETTE[len(palette) :]])


def mask_png(mask: UInt8Array, palette: UInt8Array = VOC_PALETTE) -> bytes:
    """Encode a label map, uint8 ``[H, W]``, as a palette PNG (the format of VOC's own masks)."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8)).convert("L")
    image.putpalette(_of_all_labels(palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_mask(path: Path, mask: UInt8Array, palette: UInt8Array = VOC_PALETTE) -> None:
    """Write a label map, uint8 ``[H, W]``, as a palette PNG, whole or not at all."""
    write_atomic(path, mask_png(mask, palette))


def colour_mask(mask: UInt8Array, palette: UInt8Array = VOC_PALETTE) -> UInt8Array:
    """Return the colours of a label map: uint8 ``[H, W]`` -> uint8 ``[H, W, 3]`` RGB."""
    return _of_all_labels(palette)[mask]


def overlay(
    image: UInt8Array, mask: UInt8Array, opacity: float = 0.55, palette: UInt8Array = VOC_PALETTE
) -> UInt8Array:
    """Lay the colours of a label map over its image; background (0) and ignored pixels (255) keep the image.

    Args:
        image: uint8 ``[H, W, 3]`` RGB.
        mask: uint8 ``[H, W]`` labels.
        opacity: Weight of the label's colour, 0 to 1.
        palette: The labels' colours.

    Returns:
        uint8 ``[H, W, 3]`` RGB.
    """
    labelled = ((mask != 0) & (mask != IGNORE_INDEX))[..., None]
    blended = (1 - opacity) * image + opacity * colour_mask(mask, palette)
    return np.where(labelled, blended, image).round().astype(np.uint8)

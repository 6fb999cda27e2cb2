"""The images of an export report: image, both masks, and the pixels that differ."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from toco_core.html import ImageStrip, image_strip
from toco_core.palette import UInt8Array, overlay
from toco_export.parity.verification import WorstImage

MARK_PX = 3
DIFFERENT = (255, 0, 200)


def comparison_strip(name: str, worst: WorstImage, palette: UInt8Array) -> ImageStrip:
    """Return the images of a candidate's worst image; ``palette`` has the colours of the labels."""
    different = int(np.count_nonzero(worst.expected != worst.got))
    images = {
        "image": worst.image,
        "PyTorch fp32": overlay(worst.image, worst.expected, palette=palette),
        name: overlay(worst.image, worst.got, palette=palette),
        "different pixels": mark_differences(worst),
    }
    height, width = worst.expected.shape
    caption = f"{name}: {different:,} of {worst.expected.size:,} pixels differ ({height}x{width})"
    return image_strip(images, caption)


def mark_differences(worst: WorstImage) -> UInt8Array:
    """Return the image in pale grey, with the pixels whose labels differ in magenta; uint8 ``[H, W, 3]``."""
    grey = worst.image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 2 + 96
    differs = Image.fromarray(np.where(worst.expected != worst.got, np.uint8(255), np.uint8(0)))
    shown = np.asarray(differs.filter(ImageFilter.MaxFilter(MARK_PX)))  # a single pixel is hard to see
    marked = np.where(shown[..., None] > 0, DIFFERENT, grey)
    return marked.astype(np.uint8)

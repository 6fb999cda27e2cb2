"""The images of an export's report: image, both masks, and the pixels in which they differ."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from toco_core.html import image_strip
from toco_core.palette import UInt8Array, overlay
from toco_export.parity.verification import WorstImage

MARK_PX = 3
DIFFERENT = (255, 0, 200)


def comparison_strip(name: str, worst: WorstImage, palette: UInt8Array) -> str:
    """Return the HTML figure of a candidate's worst image; ``palette`` has the colours of its labels."""
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
    """Return the image, grey and pale, with the pixels that are labelled otherwise in magenta; uint8 ``[H, W, 3]``."""
    grey = worst.image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 2 + 96
    differs = Image.fromarray(np.where(worst.expected != worst.got, np.uint8(255), np.uint8(0)))
    shown = np.asarray(differs.filter(ImageFilter.MaxFilter(MARK_PX)))  # a single pixel would not be seen
    marked = np.where(shown[..., None] > 0, DIFFERENT, grey)
    return marked.astype(np.uint8)

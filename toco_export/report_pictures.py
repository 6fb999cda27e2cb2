"""The pictures of an export's report: image, both masks, and the pixels in which they differ."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image, ImageFilter

from toco.palette import UInt8Array, overlay
from toco_export.verification import WorstImage

MAX_SIDE_PX = 320
MARK_PX = 3
DIFFERENT = (255, 0, 200)


def comparison_strip(name: str, worst: WorstImage) -> str:
    """Return the HTML figure of a candidate's worst image."""
    different = int(np.count_nonzero(worst.expected != worst.got))
    pictures = {
        "image": worst.image,
        "PyTorch fp32": overlay(worst.image, worst.expected),
        name: overlay(worst.image, worst.got),
        "different pixels": mark_differences(worst),
    }
    cells = "".join(
        f'<div><img alt="{escape(title)}" src="{_data_uri(pixels)}">{escape(title)}</div>'
        for title, pixels in pictures.items()
    )
    height, width = worst.expected.shape
    caption = f"{name}: {different:,} of {worst.expected.size:,} pixels differ ({height}x{width})"
    return f'<figure><div class="strip">{cells}</div><figcaption>{escape(caption)}</figcaption></figure>'


def mark_differences(worst: WorstImage) -> UInt8Array:
    """Return the image, grey and pale, with the pixels that are labelled otherwise in magenta; uint8 ``[H, W, 3]``."""
    grey = worst.image.mean(axis=2, keepdims=True).repeat(3, axis=2) / 2 + 96
    differs = Image.fromarray(np.where(worst.expected != worst.got, np.uint8(255), np.uint8(0)))
    shown = np.asarray(differs.filter(ImageFilter.MaxFilter(MARK_PX)))  # a single pixel would not be seen
    marked = np.where(shown[..., None] > 0, DIFFERENT, grey)
    return marked.astype(np.uint8)


def _data_uri(pixels: UInt8Array) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

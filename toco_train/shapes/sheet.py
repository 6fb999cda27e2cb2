"""The contact sheet: scenes and their masks side by side, under a legend of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from toco_core.palette import IGNORE_INDEX, colour_mask
from toco_train.shapes.objects import CLASS_NAMES
from toco_train.shapes.scene import Scene

COLUMNS, ROWS = 4, 6
TILE_PX = 144
GAP_PX = 14
HEADER_PX = 58
SWATCH_PX = 20
PAPER, TEXT = (250, 250, 248), (40, 42, 48)


def save_contact_sheet(path: Path, scenes: Sequence[Scene]) -> None:
    """Write a grid of scenes, PNG: each image beside its mask in the VOC colours."""
    rows = -(-len(scenes) // COLUMNS)
    cell = 2 * TILE_PX + GAP_PX
    size = (COLUMNS * cell + GAP_PX, HEADER_PX + rows * (TILE_PX + GAP_PX))
    sheet = Image.new("RGB", size, PAPER)
    _draw_legend(sheet)
    for position, scene in enumerate(scenes):
        row, column = divmod(position, COLUMNS)
        left, top = GAP_PX + column * cell, HEADER_PX + row * (TILE_PX + GAP_PX)
        for offset, pixels in enumerate((scene.image, colour_mask(scene.labels))):
            tile = Image.fromarray(pixels).resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + offset * TILE_PX, top))
    sheet.save(path, optimize=True)


def _draw_legend(sheet: Image.Image) -> None:
    """Draw the colour and name of each class, and of the two labels that are no class."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=20)
    labels = [*range(1, len(CLASS_NAMES) + 1), 0, IGNORE_INDEX]
    names = [*CLASS_NAMES, "background", "ignored (255)"]
    colours = colour_mask(np.array(labels, dtype=np.uint8)).tolist()
    left, middle = GAP_PX, HEADER_PX // 2
    for name, colour in zip(names, colours, strict=True):
        box = (left, middle - SWATCH_PX // 2, left + SWATCH_PX, middle + SWATCH_PX // 2)
        draw.rounded_rectangle(box, radius=4, fill=tuple(colour), outline=TEXT)
        draw.text((left + SWATCH_PX + 8, middle), name, fill=TEXT, font=font, anchor="lm")
        left += SWATCH_PX + 8 + round(draw.textlength(name, font=font)) + 2 * GAP_PX

"""Synthetic photographs to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from toco_train.data.classes import ClassList
from toco_train.data.source import DataSource, Sample

SIZE = (500, 375)


def write_images(folder: Path, number: int) -> DataSource:
    """Write JPEG images like photographs, with smooth colours, hard edges and noise."""
    draw = np.random.default_rng(0)
    samples = []
    for index in range(number):
        coarse = Image.fromarray(draw.integers(256, size=(8, 10, 3), dtype=np.uint8))
        image = coarse.resize(SIZE, Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, width, height = draw.integers((0, 0, 20, 20), (*SIZE, 200, 200)).tolist()
            pen.ellipse((x, y, x + width, y + height), fill=tuple(draw.integers(256, size=3).tolist()))
        grain = draw.normal(0, 9, size=(*SIZE[::-1], 3))
        path = folder / f"{index}.jpg"
        Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=93)
        samples.append(Sample(name=str(index), image=path, labels=(1 + index % 2,)))
    return DataSource("folder", folder, ClassList(classes=("a", "b")), tuple(samples), (), description="drawn")

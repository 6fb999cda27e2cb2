"""A small data set of noise, made without any layout on disk: for tests of what comes after opening one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from toco_train.data.classes import ClassList
from toco_train.data.source import DataSource, Sample

CLASSES = ("a", "b")


def source_of(folder: Path, samples: tuple[Sample, ...]) -> DataSource:
    """Return a data set that trains on given samples and holds none back."""
    return DataSource("folder", folder, ClassList(classes=CLASSES), samples, (), description="made by a test")


def noise_source(folder: Path, number: int) -> DataSource:
    """Write images of smooth noise, 40 px wide and up to twice that, with labels (), (1,), (2,), (1, 2), (), ..."""
    draw = np.random.default_rng(0)
    samples = []
    for index in range(number):
        path = folder / f"{index}.png"
        coarse = Image.fromarray(draw.integers(256, size=(5, 4, 3), dtype=np.uint8))
        coarse.resize((40, 40 + 7 * index % 40), resample=Image.Resampling.BICUBIC).save(path)
        labels = ((), (1,), (2,), (1, 2))[index % 4]
        samples.append(Sample(name=str(index), image=path, labels=labels))
    return source_of(folder, tuple(samples))

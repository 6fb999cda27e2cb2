"""A square image under construction: supersampled pixels, and coordinates that do not depend on its size."""

from __future__ import annotations

import colorsys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]
Point = tuple[float, float]


class Window(NamedTuple):
    """A rectangle of samples: where it lies in the array, and each sample's position in fractions of the side."""

    where: tuple[slice, slice]
    x: FloatArray
    y: FloatArray

    def local(self, centre: Point, radius: float, angle: float) -> tuple[FloatArray, FloatArray]:
        """Return the samples' coordinates in a frame at ``centre``, turned by ``angle`` rad, in units of ``radius``."""
        cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
        dx, dy = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        return dx * cos + dy * sin, dy * cos - dx * sin


class Canvas:
    """RGB samples in [0, 1], float32 ``[3, S, S]`` with S = size * supersample; (0, 0) is the top left corner."""

    def __init__(self, size: int, supersample: int) -> None:
        self.size = size
        self.supersample = supersample
        self.side = size * supersample
        self.samples: FloatArray = np.zeros((3, self.side, self.side), dtype=np.float32)

    def window(self, centre: Point = (0.5, 0.5), reach: float = 0.5) -> Window:
        """Return the samples no farther than ``reach`` from ``centre`` along each axis; the whole canvas by default."""
        columns, rows = (_span(position, reach, self.side, clip=True) for position in centre)
        return _window(rows, columns, self.side)

    def fill(self, window: Window, inside: BoolArray, colour: Colour, tone: FloatArray | float = 1.0) -> None:
        """Paint one colour where ``inside`` holds, times a tone."""
        for plane, channel in zip(self.samples, colour, strict=True):
            np.copyto(plane[window.where], np.float32(channel) * tone, where=inside, casting="same_kind")

    def darken(self, window: Window, inside: BoolArray, factor: float) -> None:
        """Multiply the brightness where ``inside`` holds."""
        self.samples[(slice(None), *window.where)] *= np.where(inside, np.float32(factor), np.float32(1))

    def pixels(self) -> FloatArray:
        """Return the mean of each pixel's samples, float32 ``[size, size, 3]`` in [0, 1]."""
        step = self.supersample
        total = sum(self.samples[:, row::step, column::step] for row in range(step) for column in range(step))
        return np.ascontiguousarray(np.moveaxis(np.asarray(total, dtype=np.float32) / step**2, 0, 2))


def pixels_around(centre: Point, reach: float, size: int) -> Window:
    """Return the pixel centres within ``reach`` of ``centre``, also those outside the image of side ``size``."""
    columns, rows = (_span(position, reach, size, clip=False) for position in centre)
    return _window(rows, columns, size)


def cut_to_image(inside: BoolArray, window: Window, size: int) -> BoolArray:
    """Return the part of a mask over ``pixels_around`` that lies in the image, bool ``[size, size]``."""
    image = np.zeros((size, size), dtype=np.bool_)
    rows, columns = (np.arange(span.start, span.stop) for span in window.where)
    kept_rows, kept_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    image[np.ix_(rows[kept_rows], columns[kept_columns])] = inside[np.ix_(kept_rows, kept_columns)]
    return image


def _span(position: float, reach: float, side: int, *, clip: bool) -> slice:
    """Return the indices of the samples within ``reach`` of a position along one axis."""
    start, stop = int(np.floor((position - reach) * side)), int(np.ceil((position + reach) * side))
    return slice(min(max(start, 0), side), min(max(stop, 0), side)) if clip else slice(start, stop)


def _window(rows: slice, columns: slice, side: int) -> Window:
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5) / side
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5) / side
    return Window((rows, columns), x[None, :], y[:, None])


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return an RGB colour; the hue wraps round, saturation and value are clipped to [0, 1]."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour made darker (below 1) or brighter (above 1)."""
    red, green, blue = (min(channel * factor, 1.0) for channel in colour)
    return red, green, blue


def distance(p: FloatArray, q: FloatArray) -> FloatArray:
    """Return the distance from the origin of local coordinates."""
    length: FloatArray = np.sqrt(p * p + q * q)
    return length


def value_noise(rng: np.random.Generator, side: int, cells: int) -> FloatArray:
    """Return smooth noise in about [-1, 1], float32 ``[side, side]``: random values on a grid, interpolated."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC))

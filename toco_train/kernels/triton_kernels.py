"""The Triton kernels that ``toco_train/kernels/gpu.py`` launches: pointers, sizes and compile-time constants."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gaussian_filter(
    values, axes, filtered, number, channels: tl.constexpr, dimensions: tl.constexpr, padded: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Filter ``rows`` pixels of one image: ``[rows, columns]`` weights at a time, against all of its pixels."""
    image = tl.program_id(1).to(tl.int64)
    values += image * channels * number
    filtered += image * channels * number
    axes += image * dimensions * number
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    channel = tl.arange(0, padded)
    total = tl.zeros((rows, padded), tl.float32)
    for start in range(0, number, columns):
        column = start + tl.arange(0, columns)
        distance = tl.zeros((rows, columns), tl.float32)
        for axis in tl.static_range(dimensions):
            here = tl.load(axes + axis * number + row, mask=row < number, other=0.0)
            there = tl.load(axes + axis * number + column, mask=column < number, other=0.0)
            difference = here[:, None] - there[None, :]
            distance += difference * difference
        inside = (channel[None, :] < channels) & (column[:, None] < number)
        value = tl.load(values + channel[None, :] * number + column[:, None], mask=inside, other=0.0)
        total = tl.dot(tl.exp2(-distance), value, total, input_precision="tf32x3")
    inside = (channel[None, :] < channels) & (row[:, None] < number)
    tl.store(filtered + channel[None, :] * number + row[:, None], total, mask=inside)


@triton.jit
def _neighbour(offsets, index, row, column, height, width):
    """Return the index of a neighbour of each pixel, clamped to the image."""
    there = tl.minimum(tl.maximum(row + tl.load(offsets + 2 * index), 0), height - 1)
    across = tl.minimum(tl.maximum(column + tl.load(offsets + 2 * index + 1), 0), width - 1)
    return there * width + across


@triton.jit
def _colour_distance(image, place, centre, spread, channel, area, channels: tl.constexpr):
    """Return the mean over channels of the squared distance in standard deviations, ``[pixels]``."""
    value = tl.load(image + channel[:, None] * area + place[None, :], mask=channel[:, None] < channels, other=0.0)
    ratio = (value - centre) / spread
    return tl.sum(ratio * ratio, axis=0) / channels


@triton.jit
def neighbour_affinity(
    images, offsets, position, weights, height, width, number, colour_width, epsilon, channels: tl.constexpr,
    pixels: tl.constexpr,
):  # fmt: skip
    """Compute the neighbour weights of ``pixels`` pixels: mean, standard deviation, and a softmax in two passes."""
    area = height * width
    image = images + tl.program_id(1).to(tl.int64) * channels * area
    weights += tl.program_id(1).to(tl.int64) * number * area
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    inside = pixel < area
    pixel = tl.minimum(pixel, area - 1)
    row, column = pixel // width, pixel % width
    channel = tl.arange(0, 4)
    present = channel[:, None] < channels
    centre = tl.load(image + channel[:, None] * area + pixel[None, :], mask=present, other=0.0)
    mean = tl.zeros((4, pixels), tl.float32)
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        mean += tl.load(image + channel[:, None] * area + place[None, :], mask=present, other=0.0)
    mean /= number
    variance = tl.zeros((4, pixels), tl.float32)
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        off = tl.load(image + channel[:, None] * area + place[None, :], mask=present, other=0.0) - mean
        variance += off * off
    spread = (tl.sqrt(variance / (number - 1)) + epsilon) * colour_width
    least = tl.full((pixels,), float("inf"), tl.float32)
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        least = tl.minimum(least, _colour_distance(image, place, centre, spread, channel, area, channels))
    total = tl.zeros((pixels,), tl.float32)
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        total += tl.exp(least - _colour_distance(image, place, centre, spread, channel, area, channels))
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        alike = tl.exp(least - _colour_distance(image, place, centre, spread, channel, area, channels)) / total
        tl.store(weights + index * area + pixel, alike + tl.load(position + index), mask=inside)


@triton.jit
def neighbour_average(maps, offsets, weights, average, height, width, number, channels, pixels: tl.constexpr):
    """Compute the weighted sum of the neighbours of ``pixels`` pixels of one map."""
    area = height * width
    plane = tl.program_id(1).to(tl.int64)
    maps += plane * area
    average += plane * area
    weights += (plane // channels) * number * area
    pixel = tl.program_id(0) * pixels + tl.arange(0, pixels)
    inside = pixel < area
    row, column = pixel // width, pixel % width
    total = tl.zeros((pixels,), tl.float32)
    for index in range(number):
        place = _neighbour(offsets, index, row, column, height, width)
        value = tl.load(maps + place, mask=inside, other=0.0)
        total += value * tl.load(weights + index * area + pixel, mask=inside, other=0.0)
    tl.store(average + pixel, total, mask=inside)

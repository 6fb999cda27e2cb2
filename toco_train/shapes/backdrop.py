"""What lies behind the objects: four kinds of textured ground, and distractor shapes that have no class.

None of the textures is used by an object's body.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from toco_train.shapes.canvas import BoolArray, Canvas, Colour, FloatArray, distance, hsv, shade, value_noise
from toco_train.shapes.config import SceneConfig

Painter = Callable[[Canvas, np.random.Generator, float], None]


def paint_water(canvas: Canvas, rng: np.random.Generator, tilt: float) -> None:
    """Paint wavy bands of blue."""
    u, v = canvas.window().local((0.5, 0.5), 1.0, tilt)
    swell = value_noise(rng, canvas.side, 4) * 0.35
    bands = np.sin(2 * np.pi * (rng.uniform(6, 9) * v + 0.25 * np.sin(2 * np.pi * rng.uniform(2, 3) * u) + swell))
    tone = 0.86 + 0.12 * bands + 0.12 * (bands > 0.93)
    _tint(canvas, hsv(rng.uniform(0.53, 0.58), 0.55, 0.72), tone)


def paint_grass(canvas: Canvas, rng: np.random.Generator, tilt: float) -> None:
    """Paint dark ground under many blades of green."""
    hue = rng.uniform(0.33, 0.38)
    side = canvas.side
    ground = Image.new("RGB", (side, side), _bytes(hsv(hue, 0.55, 0.26)))
    draw = ImageDraw.Draw(ground)
    roots = rng.uniform(-0.05, 1.1, (420, 2)) * side
    lean = (rng.normal(tilt, 0.25, 420) + np.pi / 2)[:, None]
    tips = roots - np.hstack([np.cos(lean), np.sin(lean)]) * rng.uniform(0.05, 0.11, (420, 1)) * side
    tones = rng.uniform(0.55, 1.25, 420)
    blade = hsv(hue, 0.55, 0.44)
    for root, tip, tone in zip(roots.tolist(), tips.tolist(), tones.tolist(), strict=True):
        draw.line([*root, *tip], fill=_bytes(shade(blade, tone)), width=max(1, round(0.009 * side)))
    canvas.samples[:] = np.moveaxis(np.asarray(ground, dtype=np.float32), 2, 0) / 255


def paint_bricks(canvas: Canvas, rng: np.random.Generator, tilt: float) -> None:
    """Paint courses of brick, each brick in its own tone, with pale joints."""
    u, v = canvas.window().local((0.5, 0.5), 1.0, tilt)
    height = rng.uniform(0.085, 0.12)
    course = np.floor(v / height).astype(np.int64)
    along = u / (2.1 * height) + 0.5 * (course % 2)
    brick = np.floor(along).astype(np.int64)
    tones = rng.uniform(0.8, 1.15, (64, 64)).astype(np.float32)
    joint = (v / height - course < 0.14) | (along - brick < 0.07)
    _tint(canvas, hsv(rng.uniform(0.01, 0.05), 0.42, 0.52), tones[course % 64, brick % 64])
    canvas.fill(canvas.window(), joint, hsv(0.09, 0.10, 0.68))


def paint_gravel(canvas: Canvas, rng: np.random.Generator, tilt: float) -> None:
    """Paint grey ground with coarse and fine grain."""
    grain = 0.5 * value_noise(rng, canvas.side, 9) + 0.5 * value_noise(rng, canvas.side, 30)
    _tint(canvas, hsv(rng.uniform(0.06, 0.16), 0.12, 0.58), 1 + 0.28 * np.sign(grain) * np.sqrt(np.abs(grain)))


BACKDROPS: dict[str, Painter] = {
    "water": paint_water,
    "bricks": paint_bricks,
    "grass": paint_grass,
    "gravel": paint_gravel,
}


def paint_clutter(canvas: Canvas, rng: np.random.Generator, config: SceneConfig) -> None:
    """Scatter distractor shapes: rings, crosses, stars, bars and blobs, plain or checkered."""
    for _ in range(rng.integers(config.clutter[0], config.clutter[1] + 1)):
        centre = (float(rng.uniform(0, 1)), float(rng.uniform(0, 1)))
        radius = float(rng.uniform(*config.clutter_scale))
        window = canvas.window(centre, 1.5 * radius)
        p, q = window.local(centre, radius, float(rng.uniform(0, 2 * np.pi)))
        inside = _DISTRACTORS[rng.integers(len(_DISTRACTORS))](p, q)
        colour = hsv(rng.uniform(), rng.uniform(0, config.clutter_saturation), rng.uniform(0.25, 0.9))
        canvas.fill(window, inside, colour)
        if rng.uniform() < 0.4:
            checks = (np.floor(2.5 * p) + np.floor(2.5 * q)) % 2 == 0
            canvas.fill(window, inside & checks, shade(colour, 0.6))


def _ring(p: FloatArray, q: FloatArray) -> BoolArray:
    radius = distance(p, q)
    return (radius > 0.5) & (radius < 1)


def _cross(p: FloatArray, q: FloatArray) -> BoolArray:
    return (np.minimum(np.abs(p), np.abs(q)) < 0.28) & (np.maximum(np.abs(p), np.abs(q)) < 1)


def _star(p: FloatArray, q: FloatArray) -> BoolArray:
    return np.abs(p) ** 0.6 + np.abs(q) ** 0.6 < 1.15


def _bar(p: FloatArray, q: FloatArray) -> BoolArray:
    return (np.abs(p) < 1.25) & (np.abs(q) < 0.3)


def _blob(p: FloatArray, q: FloatArray) -> BoolArray:
    inside: BoolArray = distance(p, q) < 0.85 + 0.15 * np.sin(3 * np.arctan2(q, p) + 1)
    return inside


_DISTRACTORS = (_ring, _cross, _star, _bar, _blob)


def _tint(canvas: Canvas, colour: Colour, tone: FloatArray) -> None:
    """Cover the whole canvas with a colour times a tone, float ``[S, S]``."""
    for plane, channel in zip(canvas.samples, colour, strict=True):
        np.clip(channel * tone, 0, 1, out=plane)


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (round(255 * channel) for channel in colour)
    return red, green, blue

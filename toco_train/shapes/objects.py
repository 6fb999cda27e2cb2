"""The six classes: three body families, each shared by two classes that differ in one small part.

A silhouette is a function of local coordinates (the body or part reaches to about 1) that is negative inside, -1 at its
heart and 0 on its outline. The twins' bodies share outline and texture, some of them tint, too; the part is plain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toco_train.shapes.canvas import BoolArray, Colour, FloatArray, Point, distance, hsv, shade

Silhouette = Callable[[FloatArray, FloatArray], FloatArray]
Texture = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
Layers = list[tuple[BoolArray, Colour]]

INK: Colour = (0.10, 0.09, 0.12)
WHITE: Colour = (0.97, 0.97, 0.95)


@dataclass(frozen=True)
class Family:
    """A body that two classes share.

    Attributes:
        name: What the body looks like.
        backdrop: The backdrop that its classes are mostly seen on.
        silhouette: The body's outline.
        texture: Light and dark of the body in [-1, 1] from local coordinates and silhouette level.
        colour: Hue, saturation and value of the body before jitter.
    """

    name: str
    backdrop: str
    silhouette: Silhouette
    texture: Texture
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """The small thing that tells a class from its twin.

    Attributes:
        silhouette: The part's outline in its own frame.
        layers: What is painted inside the outline, bottom first, given the main colour.
        colour: Hue, saturation and value before jitter.
        place: Usual centre on the body, in body radii.
    """

    silhouette: Silhouette
    layers: Callable[[FloatArray, FloatArray, Colour], Layers]
    colour: tuple[float, float, float]
    place: Point


@dataclass(frozen=True)
class ShapeClass:
    """A class: its name, its body family and its part."""

    name: str
    family: Family
    part: Part

    @property
    def twin(self) -> int:
        """Which of its family's two classes it is: -1 the first, +1 the second."""
        return -1 if next(kind for kind in CLASSES if kind.family is self.family) is self else 1


@functools.cache
def unit_area(silhouette: Silhouette) -> float:
    """Return the area inside a silhouette, in squared units of its own frame."""
    ticks = np.linspace(-1.5, 1.5, 241, dtype=np.float32)
    inside = silhouette(*np.meshgrid(ticks, ticks)) < 0
    return float(inside.mean()) * 9.0


def _shell(u: FloatArray, v: FloatArray) -> FloatArray:
    """Disc-like: an ellipse."""
    return distance(u, v / 0.86) - 1


def _box(u: FloatArray, v: FloatArray) -> FloatArray:
    """Box-like: a rectangle with rounded corners."""
    du, dv = np.square(u / 0.92), np.square(v / 0.70)
    level: FloatArray = np.cbrt(np.sqrt(du * du * du + dv * dv * dv)) - 1
    return level


def _leaf(u: FloatArray, v: FloatArray) -> FloatArray:
    """Leaf-like: pointed at both ends, broader towards the stalk."""
    half_width = 0.66 * np.clip(1 - u * u, 1e-3, None) ** np.float32(0.8) * (1 - 0.3 * u)
    level: FloatArray = np.abs(v) / half_width - 1
    level[np.abs(u) >= 1] = 1
    return level


def _scutes(u: FloatArray, v: FloatArray, level: FloatArray) -> FloatArray:
    """The shell's texture: rings, cut by spokes."""
    rings = np.cos(2 * np.pi * 2.5 * (level + 1))
    spokes = np.cos(8 * np.arctan2(v, u)) * (level > -0.62)
    tone: FloatArray = np.clip(1.5 * (rings + 0.8 * spokes), -1, 1)
    return tone


def _ribs(u: FloatArray, v: FloatArray, level: FloatArray) -> FloatArray:
    """The box's texture: straight ribs along the short side."""
    tone: FloatArray = np.clip(2.0 * np.cos(2 * np.pi * 3.25 * u), -1, 1)
    return tone


def _veins(u: FloatArray, v: FloatArray, level: FloatArray) -> FloatArray:
    """The leaf's texture: a midrib and slanted side veins."""
    side = np.cos(2 * np.pi * 2.6 * (u - 0.9 * np.abs(v)))
    tone: FloatArray = np.clip(1.8 * side, -1, 1)
    tone[np.abs(v) < 0.055] = 1
    return tone


def _disc(p: FloatArray, q: FloatArray) -> FloatArray:
    return distance(p, q) - 1


def _within(p: FloatArray, q: FloatArray, centre: Point, radius: float) -> BoolArray:
    return distance(p - centre[0], q - centre[1]) < radius


def _head(p: FloatArray, q: FloatArray) -> FloatArray:
    return distance(p, q / 0.85) - 1


def _head_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    layers: Layers = [(_head(p, q) < -0.14, colour)]
    for side in (-1, 1):
        layers += [(_within(p, q, (0.35, 0.42 * side), 0.28), WHITE), (_within(p, q, (0.43, 0.42 * side), 0.17), INK)]
    return layers


def _claws(p: FloatArray, q: FloatArray) -> FloatArray:
    """Two pincers side by side: discs with a wedge cut out of each."""
    across = np.abs(q) - 0.66
    level = distance(p, across) / 0.7 - 1
    level[(p > -0.12) & (np.abs(across - 0.1) < 0.55 * (p + 0.12))] = 1
    return level


def _claws_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    level = _claws(p, q)
    return [(level < -0.12, colour), ((level < -0.45) & (p < -0.1), shade(colour, 1.35))]


def _lens_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    return [
        (_disc(p, q) < -0.14, colour),
        (_within(p, q, (0, 0), 0.52), shade(colour, 0.45)),
        (_within(p, q, (-0.28, -0.34), 0.24), WHITE),
    ]


def _bow(p: FloatArray, q: FloatArray) -> FloatArray:
    """Two loops that meet in a knot."""
    half_height = 0.16 + 0.66 * np.clip(np.abs(p), 0, 1)
    loops = np.maximum(np.abs(q) / half_height, distance(p, 0.45 * q)) - 1
    level: FloatArray = np.minimum(loops, distance(p, q) / 0.34 - 1)
    return level


def _bow_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    crease = (np.abs(q) < 0.09) & (np.abs(p) < 0.7)
    return [
        (_bow(p, q) < -0.13, colour),
        (crease, shade(colour, 0.6)),
        (_within(p, q, (0, 0), 0.28), shade(colour, 1.35)),
    ]


def _daisy(p: FloatArray, q: FloatArray) -> FloatArray:
    """Seven petals."""
    reach = 0.78 + 0.22 * np.cos(7 * np.arctan2(q, p))
    level: FloatArray = distance(p, q) / reach - 1
    return level


def _daisy_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    return [(_daisy(p, q) < -0.1, WHITE), (_within(p, q, (0, 0), 0.5), colour)]


_BERRIES: tuple[Point, ...] = ((-0.55, -0.6), (-0.55, 0.0), (-0.55, 0.6), (0.0, -0.3), (0.0, 0.3), (0.55, 0.0))


def _grape(p: FloatArray, q: FloatArray) -> FloatArray:
    """Six berries: three, two, one."""
    nearest: FloatArray = functools.reduce(np.minimum, [distance(p - x, q - y) for x, y in _BERRIES])
    return nearest / 0.4 - 1


def _grape_layers(p: FloatArray, q: FloatArray, colour: Colour) -> Layers:
    layers: Layers = [(_grape(p, q) < -0.16, colour)]
    return layers + [(_within(p, q, (x - 0.08, y - 0.08), 0.14), shade(colour, 1.6)) for x, y in _BERRIES]


SHELL = Family("shell", "water", _shell, _scutes, (0.095, 0.60, 0.80))
BOX = Family("box", "bricks", _box, _ribs, (0.70, 0.34, 0.78))
LEAF = Family("leaf", "grass", _leaf, _veins, (0.215, 0.62, 0.78))
FAMILIES = (SHELL, BOX, LEAF)

CLASSES: tuple[ShapeClass, ...] = (
    ShapeClass("turtle", SHELL, Part(_head, _head_layers, (0.40, 0.85, 0.68), place=(0.80, 0.0))),
    ShapeClass("crab", SHELL, Part(_claws, _claws_layers, (0.995, 0.90, 0.82), place=(0.80, 0.0))),
    ShapeClass("camera", BOX, Part(_disc, _lens_layers, (0.55, 0.90, 0.92), place=(0.0, 0.0))),
    ShapeClass("gift", BOX, Part(_bow, _bow_layers, (0.91, 0.80, 0.90), place=(0.0, -0.30))),
    ShapeClass("daisy", LEAF, Part(_daisy, _daisy_layers, (0.13, 0.98, 0.98), place=(-0.15, 0.0))),
    ShapeClass("grape", LEAF, Part(_grape, _grape_layers, (0.77, 0.72, 0.68), place=(-0.15, 0.0))),
)
"""In index order: ``CLASSES[0]`` has label 1, and 0 is the background."""

CLASS_NAMES: tuple[str, ...] = tuple(kind.name for kind in CLASSES)


def jittered(colour: tuple[float, float, float], hue_shift: float, tone_shift: Point = (0.0, 0.0)) -> Colour:
    """Return a hue-saturation-value colour as RGB, shifted in hue, saturation and value."""
    hue, saturation, value = colour
    return hsv(hue + hue_shift, saturation + tone_shift[0], value + tone_shift[1])

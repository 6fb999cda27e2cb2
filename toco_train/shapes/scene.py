"""One scene, image and ground truth, from a seed and an index alone.

Planning comes first, painting second; both use the same silhouettes, so the masks are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from toco_core.palette import IGNORE_INDEX
from toco_train.shapes.backdrop import BACKDROPS, paint_clutter
from toco_train.shapes.canvas import BoolArray, Canvas, UInt8Array
from toco_train.shapes.config import SceneConfig
from toco_train.shapes.objects import CLASSES, INK
from toco_train.shapes.plan import BODY_REACH, PART_REACH, ObjectPlan, SceneObject, plan_objects, visible_objects

SHADOW_OFFSET = 0.02  # of the image side
SHADOW_TONE = 0.62
OUTLINE = 0.07  # width of a body's dark outline, in silhouette levels
OUTLINE_TONE = 0.45


@dataclass(frozen=True)
class Scene:
    """A finished scene.

    Attributes:
        image: uint8 ``[S, S, 3]`` RGB.
        labels: uint8 ``[S, S]``: 0 background, 1..C class, 255 in a ring around each object.
        objects: The objects, bottom first.
        backdrop: Name of the backdrop.
    """

    image: UInt8Array
    labels: UInt8Array
    objects: tuple[SceneObject, ...]
    backdrop: str


def make_scene(seed: int, index: int, size: int, config: SceneConfig) -> Scene:
    """Draw scene ``index`` of the data set ``seed``; it depends on nothing else, so any worker may draw it.

    The classes of the first objects take turns over the indices, so every run of six scenes shows all classes.
    """
    rng = np.random.default_rng([seed, index])
    plans, footprints = plan_objects(rng, first_label=index % len(CLASSES) + 1, size=size, config=config)
    backdrop = plans[0].kind.family.backdrop
    if rng.uniform() >= config.context_probability:
        backdrop = str(rng.choice(list(BACKDROPS)))
    canvas = Canvas(size, config.supersample)
    BACKDROPS[backdrop](canvas, rng, float(np.deg2rad(rng.uniform(-1, 1) * config.backdrop_tilt_deg)))
    paint_clutter(canvas, rng, config)
    light = float(rng.uniform(0, 2 * np.pi))
    for plan in plans:
        paint_object(canvas, plan, light, config)
    image = _photograph(canvas, light, rng, config)
    objects = visible_objects(plans, footprints)
    return Scene(image, label_map(objects, config.border_px), objects, backdrop)


def paint_object(canvas: Canvas, plan: ObjectPlan, light: float, config: SceneConfig) -> None:
    """Paint an object: the shadow that it casts, its body and, where it shows, its part."""
    _paint_body(canvas, plan, light, config)
    if not plan.shows_part:
        return
    window = canvas.window(plan.part_position, PART_REACH * plan.part_radius * plan.radius)
    p, q = plan.part_frame(window)
    canvas.fill(window, plan.kind.part.silhouette(p, q) < 0, INK)
    for inside, colour in plan.kind.part.layers(p, q, plan.part_colour):
        canvas.fill(window, inside, colour)


def _paint_body(canvas: Canvas, plan: ObjectPlan, light: float, config: SceneConfig) -> None:
    """Paint what the classes of a family share: shadow, colour, texture and outline."""
    family, window = plan.kind.family, canvas.window(plan.centre, BODY_REACH * plan.radius)
    x, y = plan.centre
    shadow = replace(plan, centre=(x - SHADOW_OFFSET * math.cos(light), y - SHADOW_OFFSET * math.sin(light)))
    canvas.darken(window, family.silhouette(*shadow.body_frame(window)) < 0, SHADOW_TONE)
    u, v = plan.body_frame(window)
    level = family.silhouette(u, v)
    towards_light = window.local(plan.centre, plan.radius, light)[0]
    tone = 1 + config.body_texture * family.texture(u, v, level) + config.lighting * towards_light
    tone[level > -OUTLINE] = OUTLINE_TONE
    canvas.fill(window, level < 0, plan.body_colour, tone)


def label_map(objects: tuple[SceneObject, ...], border_px: int) -> UInt8Array:
    """Return the labels of the visible objects, uint8 ``[S, S]``: 0, 1..C, and 255 in a ring around each object."""
    labels = np.zeros(objects[0].mask.shape, dtype=np.uint8)
    ring = np.zeros(objects[0].mask.shape, dtype=np.bool_)
    for item in objects:
        labels[item.mask] = item.label
        ring |= _dilated(item.mask, border_px) & ~item.mask
    labels[ring] = IGNORE_INDEX
    return labels


def _dilated(mask: BoolArray, reach: int) -> BoolArray:
    """Grow a mask by ``reach`` pixels in all eight directions."""
    padded = np.pad(mask, reach)
    height, width = mask.shape
    grown = np.zeros_like(mask)
    for top in range(2 * reach + 1):
        for left in range(2 * reach + 1):
            grown |= padded[top : top + height, left : left + width]
    return grown


def _photograph(canvas: Canvas, light: float, rng: np.random.Generator, config: SceneConfig) -> UInt8Array:
    """Light the scene from one side, expose it and add sensor noise."""
    pixels = canvas.pixels()
    towards_light = Canvas(canvas.size, 1).window().local((0.5, 0.5), 1.0, light)[0]
    exposure = 1 + float(rng.uniform(-1, 1)) * config.exposure
    pixels *= (exposure * (1 + config.lighting * towards_light))[..., None]
    pixels += rng.normal(0, config.noise, pixels.shape).astype(np.float32)
    image: UInt8Array = (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)
    return image

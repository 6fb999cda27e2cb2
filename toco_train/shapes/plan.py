"""Which objects a scene holds, and where: chosen so that each of them stays recognisable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from toco_train.shapes.canvas import BoolArray, Colour, FloatArray, Point, Window, cut_to_image, pixels_around
from toco_train.shapes.config import SceneConfig
from toco_train.shapes.objects import CLASSES, ShapeClass, jittered, unit_area

PLACEMENT_ATTEMPTS = 40
BODY_REACH = 1.8  # no body, nor its part, extends farther from the body's centre, in body radii
PART_REACH = 1.5  # the same for a part in its own frame
WHOLE = 0.97  # an object that shows at least this share of itself within the image is not called truncated


@dataclass(frozen=True)
class ObjectPlan:
    """Where an object goes and how it looks.

    Attributes:
        label: Class index, 1..C.
        centre: Centre of the body, fractions of the image side.
        radius: Unit of the body's frame, fraction of the image side.
        angle: Rotation of the body, rad.
        aspect: Stretch of the body across its axis.
        part_centre: Centre of the part in the body's frame.
        part_radius: Unit of the part's frame, in body radii.
        part_angle: Rotation of the part against the body, rad.
        body_colour: RGB in [0, 1].
        part_colour: RGB in [0, 1].
        shows_part: Whether the part is there to see; if not, the body's tint alone tells the class.
    """

    label: int
    centre: Point
    radius: float
    angle: float
    aspect: float
    part_centre: Point
    part_radius: float
    part_angle: float
    body_colour: Colour
    part_colour: Colour
    shows_part: bool

    @property
    def kind(self) -> ShapeClass:
        """The object's class."""
        return CLASSES[self.label - 1]

    def body_frame(self, window: Window) -> tuple[FloatArray, FloatArray]:
        """Return the coordinates of a window's samples in the frame of the body."""
        u, v = window.local(self.centre, self.radius, self.angle)
        return u, v / np.float32(self.aspect)

    def part_frame(self, window: Window) -> tuple[FloatArray, FloatArray]:
        """Return the coordinates of a window's samples in the frame of the part."""
        return window.local(self.part_position, self.part_radius * self.radius, self.angle + self.part_angle)

    @property
    def part_position(self) -> Point:
        """Centre of the part in the image, fractions of the side."""
        (u, v), cos, sin = self.part_centre, float(np.cos(self.angle)), float(np.sin(self.angle))
        return self.centre[0] + self.radius * (u * cos - v * sin), self.centre[1] + self.radius * (u * sin + v * cos)


class Footprint(NamedTuple):
    """What a planned object would cover alone: its pixels, bool ``[S, S]``, and their number, also beyond the image."""

    whole: BoolArray
    part: BoolArray
    whole_area: int
    part_area: int


@dataclass(frozen=True)
class SceneObject:
    """An object as it can be seen in the finished image.

    Attributes:
        label: Class index, 1..C.
        mask: Its visible pixels, bool ``[S, S]``.
        part: The visible pixels of its discriminative part, a subset of ``mask``.
        truncated: Whether it reaches over the image border.
    """

    label: int
    mask: BoolArray
    part: BoolArray
    truncated: bool

    @property
    def name(self) -> str:
        """The class name."""
        return CLASSES[self.label - 1].name


def plan_objects(
    rng: np.random.Generator, *, first_label: int, size: int, config: SceneConfig
) -> tuple[list[ObjectPlan], list[Footprint]]:
    """Choose 1 to 3 objects and places where each stays visible enough; one that finds no place is left out."""
    weights = np.array(config.object_count_weights)
    count = int(rng.choice((1, 2, 3), p=weights / weights.sum()))
    plans: list[ObjectPlan] = []
    footprints: list[Footprint] = []
    for position in range(count):
        repeats = position == 0 or rng.uniform() < config.same_class_probability
        look = _plan_look(rng, first_label if repeats else int(rng.integers(1, len(CLASSES) + 1)), config)
        for _ in range(PLACEMENT_ATTEMPTS):
            plan = _place(rng, look, config)
            footprint = footprint_of(plan, size)
            if _recognisable([*plans, plan], [*footprints, footprint], config):
                plans.append(plan)
                footprints.append(footprint)
                break
        else:
            if position == 0:  # the scene needs one object: in the middle nothing cuts it off
                plans.append(replace(plan, centre=(0.5, 0.5)))
                footprints.append(footprint_of(plans[0], size))
    return plans, footprints


def _plan_look(rng: np.random.Generator, label: int, config: SceneConfig) -> ObjectPlan:
    """Draw everything of an object but its place and size."""
    kind = CLASSES[label - 1]
    family, part = kind.family, kind.part
    aspect = 1 + float(rng.uniform(-1, 1)) * config.aspect_jitter
    body_area = unit_area(family.silhouette) * aspect
    shift = rng.uniform(-1, 1, 2) * config.part_shift
    tone = rng.uniform(-1, 1, 2) * config.body_tone_jitter
    clue = rng.uniform()  # an object is never without both clues to its class, the part and a tint of its own
    common_tint = clue < config.common_tint_probability
    lean = 0.0 if common_tint else kind.twin * config.body_lean
    body_hue = lean + float(rng.uniform(-1, 1)) * config.body_hue_jitter
    return ObjectPlan(
        label=label,
        centre=(0.5, 0.5),
        radius=0.25,
        angle=float(rng.uniform(0, 2 * np.pi)),
        aspect=aspect,
        part_centre=(part.place[0] + float(shift[0]), part.place[1] + float(shift[1])),
        part_radius=float(np.sqrt(rng.uniform(*config.part_scale) * body_area / unit_area(part.silhouette))),
        part_angle=float(np.deg2rad(rng.uniform(-1, 1) * config.part_tilt_deg)),
        body_colour=jittered(family.colour, body_hue, (tone[0], tone[1])),
        part_colour=jittered(part.colour, rng.uniform(-1, 1) * config.part_hue_jitter),
        shows_part=common_tint or clue < 1 - config.hidden_part_probability,
    )


def _place(rng: np.random.Generator, look: ObjectPlan, config: SceneConfig) -> ObjectPlan:
    """Draw a size and a place."""
    scale = float(rng.uniform(*config.object_scale))
    radius = scale * float(np.sqrt(np.pi / unit_area(look.kind.family.silhouette))) / 2
    inset = radius
    if rng.uniform() < config.truncation_probability:
        inset = radius * (1 - config.truncation_reach)
    inset = min(inset, 0.5)
    x, y = rng.uniform(inset, 1 - inset, 2)
    return replace(look, centre=(float(x), float(y)), radius=radius)


def footprint_of(plan: ObjectPlan, size: int) -> Footprint:
    """Return the pixels whose centre lies on the object, were it alone."""
    window = pixels_around(plan.centre, BODY_REACH * plan.radius, size)
    part = (plan.kind.part.silhouette(*plan.part_frame(window)) < 0) & plan.shows_part
    whole = (plan.kind.family.silhouette(*plan.body_frame(window)) < 0) | part
    return Footprint(
        whole=cut_to_image(whole, window, size),
        part=cut_to_image(part, window, size),
        whole_area=int(whole.sum()),
        part_area=int(part.sum()),
    )


def visible_objects(plans: list[ObjectPlan], footprints: list[Footprint]) -> tuple[SceneObject, ...]:
    """Let each object hide what lies under it."""
    covered = np.zeros_like(footprints[0].whole)
    seen: list[SceneObject] = []
    for plan, footprint in zip(reversed(plans), reversed(footprints), strict=True):
        truncated = bool(footprint.whole.sum() < WHOLE * footprint.whole_area)
        seen.append(SceneObject(plan.label, footprint.whole & ~covered, footprint.part & ~covered, truncated))
        covered |= footprint.whole
    return tuple(reversed(seen))


def _recognisable(plans: list[ObjectPlan], footprints: list[Footprint], config: SceneConfig) -> bool:
    """Tell whether enough of every object, and of every part, can be seen."""
    return all(
        seen.mask.sum() >= config.min_visible * footprint.whole_area
        and seen.part.sum() >= config.min_part_visible * footprint.part_area
        for seen, footprint in zip(visible_objects(plans, footprints), footprints, strict=True)
    )

"""How hard the synthetic scenes are: every setting of the generator, with its meaning and unit."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from toco_core.config import FrozenModel

RECIPE_FILE = "shapes.json"

Share = Annotated[float, Field(ge=0, le=1)]
Span = tuple[Share, Share]


class SceneConfig(FrozenModel):
    """What makes a scene easy or hard; lengths are fractions of the image side, a pair is a uniform range."""

    object_count_weights: tuple[float, float, float] = Field(
        (0.45, 0.35, 0.2), description="Relative frequency of images with 1, 2 and 3 objects."
    )
    same_class_probability: Share = Field(
        0.3, description="Chance that a further object repeats the first one's class."
    )
    object_scale: Span = Field((0.36, 0.64), description="Diameter of the disc that has the area of an object's body.")
    aspect_jitter: Share = Field(0.1, description="How much a body is squeezed or stretched across, to both sides.")
    truncation_probability: Share = Field(0.35, description="Chance that an object may reach over the image border.")
    truncation_reach: Share = Field(0.45, description="How far over the border, as a fraction of the object's radius.")
    min_visible: Share = Field(0.6, description="Least share of an object that truncation and occlusion leave visible.")
    min_part_visible: Share = Field(0.75, description="Least share of an object's part that stays visible.")

    hidden_part_probability: Share = Field(
        0.3, description="Chance of an object seen from where its part does not show: only the tint tells its class."
    )
    part_scale: Span = Field((0.07, 0.10), description="Area of the discriminative part over that of its body.")
    part_shift: Share = Field(0.16, description="How far the part strays from its usual place, in body radii.")
    part_tilt_deg: float = Field(20, ge=0, description="How far the part turns against its body, to both sides.")
    part_hue_jitter: Share = Field(0.02, description="Hue shift of a part, to both sides (1 is the whole circle).")

    common_tint_probability: Share = Field(
        0.15, description="Chance of a body in its family's own tint: only the part tells its class."
    )
    body_lean: Share = Field(0.12, description="How far the twins' mean body hues lie to each side of the family's.")
    body_hue_jitter: Share = Field(0.06, description="Hue shift of a body, to both sides; above the lean, they mix.")
    body_tone_jitter: Share = Field(0.10, description="Shift of a body's saturation and brightness, to both sides.")
    body_texture: Share = Field(0.22, description="Contrast of the texture that the two classes of a family share.")

    context_probability: Share = Field(0.5, description="Chance of the first object's own backdrop; else any backdrop.")
    backdrop_tilt_deg: float = Field(12, ge=0, description="How far a backdrop is turned, to both sides.")
    clutter: tuple[int, int] = Field((2, 6), description="Number of distractor shapes, both ends included.")
    clutter_scale: Span = Field((0.05, 0.11), description="Radius of a distractor.")
    clutter_saturation: Share = Field(0.5, description="Highest colour saturation of a distractor.")

    lighting: Share = Field(0.22, description="Strength of the light's fall-off across the image and on each object.")
    exposure: Share = Field(0.12, description="Change of overall brightness, to both sides.")
    noise: Share = Field(0.02, description="Standard deviation of the sensor noise, of full brightness.")

    border_px: int = Field(1, ge=0, description="Width of the ring of 255 around each object, in pixels.")
    supersample: int = Field(3, ge=1, description="Samples along each side of a pixel; odd, so that one is central.")

    @model_validator(mode="after")
    def _check(self) -> SceneConfig:
        """Refuse ranges that run backwards and settings that leave nothing to draw."""
        problems = [
            f"{name} is {span}, expected the smaller value first"
            for name in ("object_scale", "part_scale", "clutter", "clutter_scale")
            if (span := getattr(self, name))[0] > span[1]
        ]
        if min(self.object_count_weights) < 0 or sum(self.object_count_weights) == 0:
            problems.append(
                f"object_count_weights is {self.object_count_weights}, expected weights with a positive sum"
            )
        if self.common_tint_probability + self.hidden_part_probability > 1:
            problems.append(
                f"common_tint_probability {self.common_tint_probability} and hidden_part_probability "
                f"{self.hidden_part_probability} add up to more than 1: some objects would have nothing to tell "
                "their class"
            )
        if self.supersample % 2 == 0:
            problems.append(f"supersample is {self.supersample}, expected an odd number")
        if problems:
            raise ValueError("; ".join(problems))
        return self

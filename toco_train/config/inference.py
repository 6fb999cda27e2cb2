"""Settings of what a trained network is used for: scoring its segmentation, making pseudo labels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from toco_core.config import FrozenModel
from toco_train.config.schema import Scales


class SegmentConfig(FrozenModel):
    """At which sizes the network sees an image at test time."""

    own_size: bool = Field(
        False, description="Fit an image to its own size, rounded to patches, not to the nearest of the run's sizes."
    )
    scales: Scales = Field((1.0,), description="Scales of the segmentation, as factors of the fitted size.")
    flip: bool = Field(False, description="Segment each scale flipped, too.")


# Source of the published one: docs/method.md, test time and "found since".
PROTOCOLS = {
    "served": SegmentConfig(),
    "published": SegmentConfig(own_size=True, scales=(1.0, 1.25, 1.5), flip=True),
}


class LabelConfig(FrozenModel):
    """How pseudo labels are made."""

    maps: Literal["cam", "seg"] = Field(
        "cam", description="Made from the CAMs of the image's tags, or from the segmentation, which needs no tags."
    )
    refine: Literal["par", "crf", "none"] = Field(
        "par", description="How labels are fitted to the edges of the image; crf needs the extra 'crf'."
    )
    scales: Scales = Field(description="Factors of the fitted size, each also flipped.")
    low: float = Field(ge=0, le=1, description="cam: at or below this activation a pixel is background.")
    high: float = Field(ge=0, le=1, description="cam: above this activation a pixel is foreground.")
    min_confidence: float = Field(0.7, ge=0, le=1, description="seg: below this probability a pixel is unsure (255).")

    @model_validator(mode="after")
    def _low_is_not_above_high(self) -> LabelConfig:
        if self.low > self.high:
            raise ValueError(f"the low threshold {self.low} is above the high one {self.high}: swap them")
        return self

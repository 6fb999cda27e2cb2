"""The configuration of a training run: what it holds, and how preset, file and flags make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from toco.config import FrozenModel, nearest, parse_config, read_yaml
from toco.errors import ConfigError
from toco_train.checkpoint import CheckpointConfig
from toco_train.data.augment import AugmentationConfig
from toco_train.data.opening import DataConfig
from toco_train.evaluation import EvaluationConfig
from toco_train.model import ModelConfig
from toco_train.optimization import OptimizerConfig
from toco_train.step import CamConfig, ContrastConfig, LossWeights, Phase, RegularizationConfig


class TrainConfig(FrozenModel):
    """Everything that a run depends on; the defaults are the published recipe for VOC with ViT-B."""

    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")
    steps: int = Field(20_000, gt=0, description="Optimiser steps.")
    batch_size: int = Field(4, gt=0, description="Images a step.")
    gradient_accumulation: int = Field(1, gt=0, description="Parts that a step's images are computed in.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Precision of the matrix products.")
    compile: bool = Field(
        False, description="Compile the backbone's blocks at the first step; needs a C++ compiler, on a GPU Triton."
    )
    cuda_graph: bool = Field(
        False, description="Record a step on a GPU and replay it: the GPU never waits for the host between kernels."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass instead of keeping them: less memory, more work.",
    )
    log_every: int = Field(10, gt=0, description="Steps between two lines of metrics.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    cam: CamConfig = CamConfig()
    contrast: ContrastConfig = ContrastConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    weights: LossWeights = LossWeights()
    phases: tuple[Phase, ...] = Field(
        (Phase(from_step=0, seg=False, reg=False), Phase(from_step=2000)), description="Which losses join when."
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads an unquoted no as false

    @field_validator("phases")
    @classmethod
    def _phases_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        starts = [phase.from_step for phase in phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"phases must start at step 0 and follow in order, got from_step {starts}")
        return phases

    @model_validator(mode="after")
    def _local_crops_fit(self) -> TrainConfig:
        crop, size = self.contrast.local_crop_size, self.model.image_size
        if crop > size:
            raise ValueError(f"contrast.local_crop_size {crop} is larger than model.image_size {size}: make it smaller")
        places = (size - crop + 1) ** 2
        if places < self.contrast.num_local_crops:
            raise ValueError(
                f"contrast.num_local_crops {self.contrast.num_local_crops} is more than the {places} places that a "
                f"crop of {crop} has in {size} pixels: make contrast.local_crop_size smaller"
            )
        return self

    def phase_at(self, step: int) -> Phase:
        """Return the phase that a step (from 0) belongs to."""
        return [phase for phase in self.phases if phase.from_step <= step][-1]


def preset_names() -> list[str]:
    """Return the names of the presets, in order."""
    folder = resources.files("toco_train") / "presets"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_config(
    preset: str | None, file: Path | None, flags: Mapping[str, Any], *, resumed: Path | None = None
) -> TrainConfig:
    """Make a configuration: flags beat the file, the file beats the preset, the preset beats the defaults.

    Args:
        preset: Name of a preset.
        file: A YAML file with any part of a configuration.
        flags: Dotted names to values, such as ``{"optimizer.lr": 1e-4}``.
        resumed: The configuration of a run, which then stands in the place of the defaults.

    Raises:
        ConfigError: The preset is unknown, the file cannot be read, or a key or value is not valid.
    """
    values = {} if resumed is None else read_yaml(resumed)
    if preset is not None:
        if preset not in preset_names():
            known = preset_names()
            raise ConfigError(f"unknown preset {preset!r}{nearest(preset, known)}; the presets are {', '.join(known)}")
        with resources.as_file(resources.files("toco_train") / "presets" / f"{preset}.yaml") as path:
            _merge(values, read_yaml(path))
    if file is not None:
        _merge(values, read_yaml(file))
    for name, value in flags.items():
        _merge(values, _nested(name.split("."), value))
    return parse_config(TrainConfig, values, "the configuration")


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if path[1:] else value}


def _merge(base: dict[str, Any], update: Mapping[str, Any]) -> None:
    """Lay one tree of values over another, in place."""
    for key, value in update.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value

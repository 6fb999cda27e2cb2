"""Every setting in one schema, the presets, and how preset, file and flags are merged. Needs no torch."""

from toco_train.config.inference import PROTOCOLS, LabelConfig, SegmentConfig
from toco_train.config.loading import load_config, preset_names
from toco_train.config.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentationConfig,
    CamConfig,
    CheckpointConfig,
    ContrastConfig,
    DataConfig,
    EvaluationConfig,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    Phase,
    RegularizationConfig,
    TrainConfig,
    ViTSpec,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PROTOCOLS",
    "AugmentationConfig",
    "CamConfig",
    "CheckpointConfig",
    "ContrastConfig",
    "DataConfig",
    "EvaluationConfig",
    "LabelConfig",
    "LossWeights",
    "ModelConfig",
    "OptimizerConfig",
    "Phase",
    "RegularizationConfig",
    "SegmentConfig",
    "TrainConfig",
    "ViTSpec",
    "load_config",
    "preset_names",
]

"""The network that a benchmark measures."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.cases.training_run import NUM_CLASSES
from toco_train.config import TrainConfig, load_config


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what runs where."""
    parser.add_argument("--backbone", default="demo", help="timm name, or 'demo' for the small ViT of that preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")


def recipe(backbone: str, *, size: int | None = None, batch: int | None = None) -> TrainConfig:
    """Return the demo preset, or the published recipe with a timm backbone; random weights in both."""
    flags: dict[str, Any] = {"model.pretrained": False, "model.classes": [f"class{i}" for i in range(NUM_CLASSES)]}
    flags |= {} if backbone == "demo" else {"model.backbone": backbone}
    flags |= {} if size is None else {"model.image_size": size}
    flags |= {} if batch is None else {"batch_size": batch}
    return load_config("demo" if backbone == "demo" else None, None, flags)

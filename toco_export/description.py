"""What the manifest says of an export: the network, the range of inputs, the artefacts, the versions."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import onnx
import onnxruntime
import timm
import torch

import toco
from toco.manifest import Artefact, Manifest, Parity, Precision, Profile, Shape, sha256_of
from toco.palette import voc_palette
from toco_export.engine import EngineReport, Target
from toco_export.onnx_export import OPSET
from toco_train.model import ModelConfig, ToCo

MAX_BATCH = 8


def default_profile(image_size: int, patch_size: int) -> Profile:
    """Return the inputs that an engine takes: 1 to 8 images, 4 patches to twice the training size a side."""
    smallest = min(4 * patch_size, image_size)
    return Profile(
        min=Shape(batch=1, height=smallest, width=smallest),
        opt=Shape(batch=1, height=image_size, width=image_size),
        max=Shape(batch=MAX_BATCH, height=2 * image_size, width=2 * image_size),
    )


def describe_artefact(path: Path, kind: Target | None, precision: Precision) -> Artefact:
    """Describe a finished file: an engine of ``kind``, or ONNX."""
    return Artefact(
        file=path.name,
        format=kind or "onnx",
        precision=precision,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def describe_backbone(config: ModelConfig) -> str:
    """Return the timm name, or the small ViT's numbers in words."""
    spec = config.backbone
    if isinstance(spec, str):
        return spec
    return f"ViT with patch {spec.patch_size}, width {spec.width}, depth {spec.depth}, {spec.num_heads} heads"


def describe_export(
    model: ToCo,
    profile: Profile,
    artefacts: Sequence[Artefact],
    parities: Sequence[Parity],
    report: EngineReport | None,
) -> Manifest:
    """Describe an export whole; ``report`` is the engine's, if there is one."""
    config = model.config
    palette = voc_palette(len(config.classes) + 1).tolist()
    versions = {
        "toco": toco.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    return Manifest(
        classes=config.classes,
        palette=tuple((red, green, blue) for red, green, blue in palette),
        patch_size=model.patch_size,
        image_size=config.image_size,
        backbone=describe_backbone(config),
        opset=OPSET,
        profile=profile,
        artefacts=tuple(artefacts),
        parity=tuple(parities),
        versions=versions | ({report.module: report.version} if report else {}),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )

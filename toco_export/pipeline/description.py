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

import toco_core
from toco_core.fitting import Size
from toco_core.manifest import Artefact, Manifest, Parity, Precision, Profile, sha256_of
from toco_core.palette import VOC_PALETTE
from toco_export.onnx.tracing import OPSET
from toco_export.tensorrt.engine_report import EngineReport
from toco_train.config import ModelConfig
from toco_train.models.toco import ToCo


def describe_artefact(path: Path, kind: str, precision: Precision, kept_fp32: Sequence[str] = ()) -> Artefact:
    """Describe a finished file of a format of the manifest; ``kept_fp32`` names layers left in fp32."""
    return Artefact.model_validate(
        {
            "file": path.name,
            "format": kind,
            "precision": precision,
            "kept_fp32": kept_fp32,
            "num_bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
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
    engines: Sequence[EngineReport],
    *,
    sizes: Sequence[Size],
) -> Manifest:
    """Describe an export whole, in the colours of VOC.

    ``engines`` are those that were built; ``sizes`` the height and width of those that images are fitted to.
    """
    config = model.config
    palette = VOC_PALETTE[: len(config.classes) + 1].tolist()
    versions = {
        "toco": toco_core.__version__,
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
        sizes=tuple(sizes),
        backbone=describe_backbone(config),
        opset=OPSET,
        profile=profile,
        artefacts=tuple(artefacts),
        parity=tuple(parities),
        versions=versions | {engine.module: engine.version for engine in engines},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )

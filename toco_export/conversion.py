"""The stage that makes another precision of the network: layers converted in PyTorch, then traced like fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toco.manifest import Shape
from toco_export.graph import ServedModel
from toco_export.onnx_file import export_onnx
from toco_export.ranges import unsafe_in_fp16
from toco_export.reduced import Reduced, reduced_model
from toco_export.simplify import Simplified
from toco_train.model import ToCo


@dataclass(frozen=True)
class Converted:
    """The network in another precision.

    Attributes:
        served: The same network in PyTorch, which rounds and overflows as an engine does.
        kept_fp32: Layers that stay in fp32.
        simplified: What was done to its graph.
    """

    served: ServedModel
    kept_fp32: tuple[str, ...]
    simplified: Simplified


def convert(
    model: ToCo, precision: Reduced, path: Path, *, ranges: Mapping[str, float], static: Shape | None
) -> Converted:
    """Write the network as ONNX in fp16 or bf16; what fp16 could not hold stays in fp32.

    Args:
        model: The network in fp32, which is left as it is.
        precision: What its layers are converted to.
        path: Where to write.
        ranges: How large the numbers in its layers get on real images, from ``watched_ranges``.
        static: Height and width to fix.

    Raises:
        ExportError: The network has no valid ONNX form.
        OSError: The file cannot be written.
    """
    kept = unsafe_in_fp16(ranges) if precision == "fp16" else ()
    served = ServedModel(reduced_model(model, precision, kept)).eval()
    return Converted(served, kept, export_onnx(served, path, precision, static))

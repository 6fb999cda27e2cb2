"""The stage that makes int8: linear layers between QuantizeLinear and DequantizeLinear, as many as the gate allows.

Weights have 7 bits, one scale for each output channel, and inputs 8, one scale for each layer, both symmetric:

- TensorRT takes int8 only with 0 as the zero point;
- processors without VNNI (AVX2) add pairs of products in 16 bits and saturate silently: with 8 bits each, ONNX
  Runtime's product on such a machine was off by up to a tenth of the largest value, and another machine would answer
  otherwise. 127 x 64 x 2 always fits; the 7 bits cost less than that.

What stays in fp32: convolutions (3 of them after the patch embedding; ONNX Runtime has no int8 convolution that gives
floats), attention's own two products, everything between products, and the layers that the gate asks for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorData, TensorsData

from toco_core import __version__
from toco_core.errors import ExportError
from toco_export.int8.calibration import LayerCalibration
from toco_export.onnx.file import save_onnx
from toco_export.onnx.simplify import TRANSPOSED


def quantize(
    fp32_file: Path,
    path: Path,
    calibrations: Mapping[str, LayerCalibration],
    is_inside_gate: Callable[[Path], bool],
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[str, ...]:
    """Write the int8 form of an fp32 ONNX file, with as few layers left in fp32 as the gate allows.

    The layers whose output is most noise are the first to stay in fp32. How many must is found by bisection: each
    trial is a whole file that answers real images.

    Args:
        fp32_file: The network, written by ``toco_export.onnx.file``.
        path: Where to write.
        calibrations: What was found for each linear layer.
        is_inside_gate: Whether a file answers well enough.
        progress: Called with what is tried now.

    Returns:
        The linear layers that stay in fp32.

    Raises:
        ExportError: No layer can be int8, or the file is not valid ONNX.
        OSError: The file cannot be written.
    """
    ranked = sorted(calibrations, key=lambda name: (-calibrations[name].noise, name))

    def is_inside(kept: int) -> bool:
        progress(f"int8 with {kept} of {len(ranked)} linear layers in fp32")
        write_quantized(fp32_file, path, {name: calibrations[name].bound for name in ranked[kept:]})
        return is_inside_gate(path)

    kept = 0 if is_inside(0) else bisect_left(range(1, len(ranked)), True, key=is_inside) + 1
    if kept and not (kept < len(ranked) and is_inside(kept)):
        raise ExportError(
            "int8 does not stay inside its gate with any layer quantised; allow it more with --max-drop, "
            "give images like those of training (--images), or export without int8"
        )
    return tuple(ranked[:kept])


def write_quantized(fp32_file: Path, path: Path, bounds: Mapping[str, float]) -> None:
    """Write an fp32 ONNX file with some of its linear layers in int8.

    Args:
        fp32_file: The network.
        path: Where to write.
        bounds: Layer names to the largest input that is told apart.

    Raises:
        ExportError: A layer is not in the file, or what came out is not valid ONNX.
        OSError: The file cannot be written.
    """
    proto = onnx.load(str(fp32_file))
    products = {node.input[1]: node for node in proto.graph.node if node.op_type == "MatMul"}
    nodes = {name: products.get(f"model.{name}.weight{TRANSPOSED}") for name in bounds}
    if missing := [name for name, node in nodes.items() if node is None]:
        raise ExportError(f"{fp32_file.name} has no product named after {', '.join(missing)}; export without int8")
    ranges = {node.input[0]: _range(bounds[name]) for name, node in nodes.items() if node is not None}
    quantizer: Any = QDQQuantizer(
        proto,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[node.name for node in nodes.values() if node is not None],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    quantizer.quantize_model()
    model = ir.from_proto(quantizer.model.model)
    model.graph.sort()  # the quantizer puts its operations last
    model.producer_name, model.producer_version = "toco", __version__
    model.metadata_props["precision"] = "int8"
    save_onnx(model, path)


def _range(bound: float) -> TensorData:
    return TensorData(lowest=np.array(-bound, np.float32), highest=np.array(bound, np.float32))


def describe_noise(calibrations: Mapping[str, LayerCalibration], names: Sequence[str]) -> str:
    """Say how noisy the noisiest of some layers are, in decibels of signal to noise."""
    worst = sorted(names, key=lambda name: -calibrations[name].noise)[:3]
    return ", ".join(f"{name} {-10 * np.log10(max(calibrations[name].noise, 1e-12)):.0f} dB" for name in worst)

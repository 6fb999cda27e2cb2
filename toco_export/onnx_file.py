"""The ONNX file: described, checked, the same bytes for the same network, its weights beside it above 2 GB."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from toco import __version__
from toco.errors import ExportError
from toco.manifest import Precision, Shape
from toco_export.graph import ServedModel
from toco_export.simplify import Simplified, simplify
from toco_export.tracing import opset_for, trace_onnx

EXTERNAL_ABOVE_BYTES = 2_000_000_000  # a protobuf file ends at 2 GiB
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
PRECISIONS: dict[int, Precision] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}


def export_onnx(
    served: ServedModel, path: Path, precision: Precision = "fp32", static: Shape | None = None
) -> Simplified:
    """Trace, simplify and write the served graph.

    Args:
        served: The graph, in evaluation mode.
        path: Where to write; weights above ``EXTERNAL_ABOVE_BYTES`` go to ``external_data(path)``.
        precision: What the file says of itself.
        static: Height and width to fix.

    Raises:
        ExportError: The graph cannot be traced, has no ONNX form, or the file is not valid ONNX.
        OSError: The file cannot be written.
    """
    model = trace_onnx(served, static, opset_for(precision))
    simplified = simplify(model)
    write_onnx(model, served, path, precision)
    return simplified


def external_data(path: Path) -> Path:
    """Return where the weights of an ONNX file go that is too large for one."""
    return path.with_name(path.name + ".data")


def write_onnx(model: ir.Model, served: ServedModel, path: Path, precision: Precision) -> None:
    """Describe a graph and write it, without the exporter's notes, which name this machine's files.

    Args:
        model: The graph.
        served: The network that it was traced from.
        path: Where to write.
        precision: What the file says of itself.

    Raises:
        ExportError: It is not valid ONNX.
        OSError: It cannot be written.
    """
    _describe(model, served, precision)
    save_onnx(model, path)


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a graph as it is, its weights beside it where one file is too small, and check what was written.

    Raises:
        ExportError: It is not valid ONNX.
        OSError: It cannot be written.
    """
    ClearMetadataAndDocStringPass()(model)
    num_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=external_data(path).name if num_bytes > EXTERNAL_ABOVE_BYTES else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name} is not valid ONNX: {' '.join(str(error).split())[:300]}; "
            f"install another version of onnx (this is {onnx.__version__})"
        ) from error


def count_product_types(path: Path) -> Counter[str]:
    """Count the matrix products and convolutions of an ONNX file by the precision of what they multiply."""
    graph = onnx.load(str(path), load_external_data=False).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {node.output[0]: types.get(node.input[0], 0) for node in graph.node if node.op_type == "DequantizeLinear"}
    found = (types.get(node.input[1], 0) for node in graph.node if node.op_type in PRODUCTS)
    return Counter(PRECISIONS.get(kind) or TensorProto.DataType.Name(kind) for kind in found)


def require_precision(found: Counter[str], precision: Precision, kept: int, name: str) -> None:
    """Check that a file or engine multiplies in the precision that was asked for, but for the layers kept in fp32.

    Args:
        found: Its products by precision.
        precision: What was asked for.
        kept: Number of layers that stay in fp32 on purpose.
        name: The artefact's, for the message.

    Raises:
        ExportError: There are products of another precision, or none of this one.
    """
    others = found.keys() - {precision} - ({"fp32"} if kept else set())
    if found[precision] and not others:
        return
    counts = ", ".join(f"{count} in {kind}" for kind, count in found.most_common()) or "not to be found"
    raise ExportError(
        f"the matrix products of {name} are {counts}, expected {precision}: the types of the network were not kept; "
        "install another version of the library that made it, or export without this precision"
    )


def _describe(model: ir.Model, served: ServedModel, precision: Precision) -> None:
    """Name the open sizes and say what the labels mean."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        sizes = zip(value.shape, ("batch", "height", "width", "channels"), strict=False)  # outputs have no channels
        value.shape = ir.Shape([size if isinstance(size, int) else name for size, name in sizes])
    config = served.model.config
    model.producer_name, model.producer_version = "toco", __version__
    model.metadata_props.clear()
    model.metadata_props.update(
        classes=json.dumps(config.classes, ensure_ascii=False),
        patch_size=str(served.model.patch_size),
        image_size=str(config.image_size),
        precision=precision,
    )

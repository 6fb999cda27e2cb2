"""The ONNX file: described, checked, the same bytes for the same network, its weights beside it above 2 GB."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, TensorProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from toco_core import __version__
from toco_core.errors import ExportError
from toco_core.manifest import Precision, Shape
from toco_core.text import one_line
from toco_export.graph import ServedModel
from toco_export.onnx.simplify import Simplified, simplify
from toco_export.onnx.tracing import trace_onnx

EXTERNAL_ABOVE_BYTES = 2_000_000_000  # a protobuf file ends at 2 GiB
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
PRECISIONS: dict[int, Precision] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}


def export_onnx(served: ServedModel, path: Path, static: Shape | None = None) -> Simplified:
    """Trace, simplify and write the served graph in fp32.

    Args:
        served: The graph, in evaluation mode.
        path: Where to write; weights above ``EXTERNAL_ABOVE_BYTES`` go to ``external_data(path)``.
        static: Height and width to fix.

    Raises:
        ExportError: The graph cannot be traced, has no ONNX form, or the file is not valid ONNX.
        OSError: The file cannot be written.
    """
    model = trace_onnx(served, static)
    simplified = simplify(model)
    write_onnx(model, served, path)
    return simplified


def external_data(path: Path) -> Path:
    """Return where the weights of an ONNX file go that is too large for one."""
    return path.with_name(path.name + ".data")


def write_onnx(model: ir.Model, served: ServedModel, path: Path) -> None:
    """Describe an fp32 graph and write it, without the exporter's notes, which name this machine's files.

    Args:
        model: The graph.
        served: The network that it was traced from.
        path: Where to write.

    Raises:
        ExportError: It is not valid ONNX.
        OSError: It cannot be written.
    """
    _describe(model, served)
    save_onnx(model, path)


def save_onnx(model: ir.Model, path: Path) -> None:
    """Write a graph as it is, its weights beside it where one file is too small, and check what was written.

    Raises:
        ExportError: It is not valid ONNX.
        OSError: It cannot be written.
    """
    ClearMetadataAndDocStringPass()(model)
    num_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if num_bytes > EXTERNAL_ABOVE_BYTES:
        ir.save(model, path, external_data=external_data(path).name)
    else:
        _write_in_one(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path.name} is not valid ONNX: {one_line(error)}; "
            f"install another version of onnx (this is {onnx.__version__})"
        ) from error


def _write_in_one(model: ir.Model, path: Path) -> None:
    """Write a graph and its weights as one message, weight by weight: protobuf itself would copy all of them twice.

    Fields of a message may come in any order: the graph is the last of the model's, and the weights of the graph's.
    """
    values = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    proto = ir.serde.serialize_model(model)
    for value in values:
        model.graph.register_initializer(value)
    graph = proto.graph.SerializeToString(deterministic=True)
    proto.ClearField("graph")
    weights = [(_weight_head(value), value.const_value) for value in values if value.const_value]
    num_bytes = len(graph) + sum(len(head) + weight.nbytes for head, weight in weights)
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.write(_field_head(ModelProto.GRAPH_FIELD_NUMBER, num_bytes) + graph)
        for head, weight in weights:
            file.write(head)
            file.write(weight.tobytes())


def _weight_head(value: ir.Value) -> bytes:
    """Return all of a weight in a graph's message but its numbers, which come last."""
    weight = value.const_value
    assert weight is not None
    shell = TensorProto(name=value.name, dims=weight.shape.numpy(), data_type=weight.dtype)
    inner = shell.SerializeToString() + _field_head(TensorProto.RAW_DATA_FIELD_NUMBER, weight.nbytes)
    head: bytes = _field_head(GraphProto.INITIALIZER_FIELD_NUMBER, len(inner) + weight.nbytes) + inner
    return head


def _field_head(number: int, num_bytes: int) -> bytes:
    """Return what announces so many bytes as a field of a message: its number and type, and the length as a varint.

    Source: https://protobuf.dev/programming-guides/encoding
    """
    length = bytearray()
    while num_bytes > 0x7F:
        length.append(num_bytes & 0x7F | 0x80)
        num_bytes >>= 7
    return bytes([number << 3 | 2, *length, num_bytes])


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


def _describe(model: ir.Model, served: ServedModel) -> None:
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
        precision="fp32",
    )

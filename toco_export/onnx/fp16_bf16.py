"""The stage that makes another precision of the network: the types in the fp32 file changed, its operations kept."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tensor_adapters import from_torch_dtype
from onnxscript.version_converter import convert_version

from toco_core.errors import ExportError
from toco_export.graph import ServedModel
from toco_export.onnx.file import PRODUCTS, save_onnx
from toco_export.onnx.reduced import DTYPES, Reduced, product_layers, reduced_model
from toco_export.onnx.simplify import LOGITS_NAME, TRANSPOSED, count_operations
from toco_export.onnx.tracing import OPSET_BF16
from toco_export.onnx.value_ranges import unsafe_in_fp16
from toco_train.models.toco import ToCo

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class Converted:
    """The network in another precision.

    Attributes:
        served: The same network in PyTorch, which rounds and overflows as an engine does.
        kept_fp32: Layers that stay in fp32.
        operations: Nodes of its file, by operation.
    """

    served: ServedModel
    kept_fp32: tuple[str, ...]
    operations: Counter[str]


def convert(model: ToCo, precision: Reduced, fp32_file: Path, path: Path, *, ranges: Mapping[str, float]) -> Converted:
    """Write the network as ONNX in fp16 or bf16; what fp16 could not hold stays in fp32.

    Args:
        model: The network in fp32, which is left as it is.
        precision: What its layers are converted to.
        fp32_file: The same network, written by ``toco_export.onnx.file``.
        path: Where to write.
        ranges: How large the numbers in its layers get on real images, from ``watched_ranges``.

    Raises:
        ExportError: A layer is not in the file, or what came out is not valid ONNX.
        OSError: The file cannot be written.
    """
    kept = unsafe_in_fp16(ranges) if precision == "fp16" else ()
    graph = ir.load(fp32_file)
    retype(graph, [name for name, _ in product_layers(model) if name not in kept], precision)
    if precision == "bf16":
        convert_version(graph, OPSET_BF16)
    graph.metadata_props["precision"] = precision
    save_onnx(graph, path)
    operations = count_operations(graph)
    del graph
    gc.collect()  # its parts refer to each other, and the network is copied next
    return Converted(ServedModel(reduced_model(model, precision, kept)).eval(), kept, operations)


def retype(model: ir.Model, layers: Collection[str], precision: Reduced) -> None:
    """Let layers of a simplified fp32 graph multiply in half precision, in place, as ``reduced_model`` does in PyTorch.

    A layer takes and gives the type of its weights. What lies between follows PyTorch's promotion: half precision where
    all that is computed is in it, fp32 where the two meet; scalars have no say. Normalisation computes in fp32 and
    gives back the type that it was given; the logits are fp32. ONNX Runtime's float16 converter knows none of this,
    and wrote the same cast several times.

    Raises:
        ExportError: A layer has no weight in the graph.
    """
    weights = {f"model.{name}.weight{suffix}": name for name in layers for suffix in ("", TRANSPOSED)}
    if missing := set(layers) - {weights[name] for name in model.graph.initializers if name in weights}:
        raise ExportError(
            f"the fp32 graph has no weight named after {', '.join(sorted(missing))}; export without {precision}"
        )
    casts = _Casts(model.graph)
    half = from_torch_dtype(DTYPES[precision])
    for node in list(model.graph):  # in the order of computation
        wanted = _type_of(node, weights, half)
        was_half = any(value is not None and value.dtype == half for value in node.inputs)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT, half) and value.dtype != wanted:
                node.replace_input_with(index, casts.before(node, value, wanted))
        for output in node.outputs:
            if output.dtype == FLOAT and node.op_type != "Cast":
                output.dtype = wanted
            if node.op_type == "LayerNormalization" and was_half:
                casts.after(output, half)
            elif output.name == LOGITS_NAME and output.dtype == half:
                output.name = f"{LOGITS_NAME}_{precision}"
                casts.after(output, FLOAT).name = LOGITS_NAME
    RemoveUnusedNodesPass()(model)


def _type_of(node: ir.Node, weights: Collection[str], half: ir.DataType) -> ir.DataType:
    """Return the type that a node computes in."""
    if node.op_type == "LayerNormalization":
        return FLOAT
    weight = _weight(node)
    if weight is not None:
        return half if weight.name in weights else FLOAT
    types = {value.dtype for value in node.inputs if value is not None and not _follows(value, node)} & {FLOAT, half}
    return half if types == {half} else FLOAT


def _weight(node: ir.Node | None) -> ir.Value | None:
    """Return the weight of a layer of products; scores and other products of what is computed have none."""
    weight = node.inputs[1] if node is not None and node.op_type in PRODUCTS else None
    return weight if weight is not None and weight.is_initializer() else None


def _follows(value: ir.Value, node: ir.Node) -> bool:
    """Tell whether a value takes the type of the others: it is a scalar, or the bias that is added to a product."""
    is_bias = (
        node.op_type == "Add"
        and value.is_initializer()
        and any(other is not None and _weight(other.producer()) is not None for other in node.inputs)
    )
    return is_bias or (value.shape is not None and value.shape.rank() == 0)


class _Casts:
    """Changes of type in a graph, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def before(self, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in another type, for a node: a constant as another constant, anything else through a cast."""
        made = self._made.get((value, dtype))
        if made is None:
            made = self._constant(value, dtype) if value.is_initializer() else self._cast(node, value, dtype)
            self._made[value, dtype] = made
        return made

    def after(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Give all that uses a value the same in another type."""
        users = tuple(value.uses())
        producer = value.producer()
        assert producer is not None
        cast = _cast_of(value, dtype)
        self._graph.insert_after(producer, cast)
        for user, index in users:
            user.replace_input_with(index, cast.outputs[0])
        return cast.outputs[0]

    def _cast(self, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        cast = _cast_of(value, dtype)
        self._graph.insert_before(node, cast)
        return cast.outputs[0]

    def _constant(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        name = _name(value, dtype)
        numbers = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), dtype, name=name)
        constant = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=numbers)
        self._graph.register_initializer(constant)
        return constant


def _cast_of(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    output = ir.Value(name=_name(value, dtype), shape=value.shape, type=ir.TensorType(dtype))
    return ir.node("Cast", [value], {"to": int(dtype)}, outputs=[output], name=f"cast_{output.name}")


def _name(value: ir.Value, dtype: ir.DataType) -> str:
    return f"{value.name}_{dtype.name.lower()}"

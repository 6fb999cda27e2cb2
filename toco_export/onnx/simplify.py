"""ONNX graph to the same graph with fewer operations: constants folded, shapes stated, nothing done twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript import optimizer

LOGITS_NAME = "logits"
TRANSPOSED = "_transposed"  # added to the name of a weight
FOLD_LIMIT = 1 << 40  # elements: all constants are folded, the position embedding of a static export too


@dataclass(frozen=True)
class Simplified:
    """What simplifying did.

    Attributes:
        before: Nodes as the exporter wrote them, by operation.
        after: Nodes that are left, by operation.
    """

    before: Counter[str]
    after: Counter[str]


def simplify(model: ir.Model) -> Simplified:
    """Simplify a traced graph, in place, and name its logits.

    Folded: everything that depends on weights and fixed sizes alone. Reshapes that keep leading sizes say so with
    ONNX's 0 instead of working the sizes out again. What is the same is computed once. A transposed weight is
    named after its layer.
    """
    before = count_operations(model)
    _name_transposed(model)
    optimizer.optimize_ir(model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT)
    for node in list(model.graph):
        if node.op_type == "Reshape":
            _state_shape(model, node)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    _name_logits(model)
    return Simplified(before, count_operations(model))


def count_operations(model: ir.Model) -> Counter[str]:
    """Count the nodes of a graph by operation."""
    return Counter(node.op_type for node in model.graph.all_nodes() if node.op_type != "Constant")


def _state_shape(model: ir.Model, node: ir.Node) -> None:
    """Give a Reshape a constant shape where 0 (as the input) and one -1 (what is left) say it."""
    source, wanted, result = node.inputs[0], node.inputs[1], node.outputs[0]
    if (
        source is None
        or wanted is None
        or source.shape is None
        or result.shape is None
        or wanted.const_value is not None
    ):
        return
    stated = [
        size if isinstance(size, int) else 0 if _is_size_of(size, source.shape, axis) else -1
        for axis, size in enumerate(result.shape)
    ]
    if stated.count(-1) > 1:
        return
    name = "shape_" + "_".join(map(str, stated)).replace("-", "m")
    if name not in model.graph.initializers:
        constant = ir.tensor(stated, dtype=ir.DataType.INT64, name=name)
        model.graph.register_initializer(ir.Value(name=name, const_value=constant, shape=ir.Shape([len(stated)]),
                                                  type=ir.TensorType(ir.DataType.INT64)))  # fmt: skip
    node.replace_input_with(1, model.graph.initializers[name])
    node.attributes.pop("allowzero", None)  # with it 0 would be a size


def _is_size_of(size: ir.SymbolicDim, shape: ir.Shape, axis: int) -> bool:
    """Tell whether an open size is known to be that of an axis; two sizes without a name are not known to be one."""
    return size.value is not None and axis < len(shape) and size == shape[axis]


def _name_transposed(model: ir.Model) -> None:
    """Name what will be folded to the transposed weight of a linear layer after that weight."""
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is not None and source.is_initializer():
            node.outputs[0].name = f"{source.name}{TRANSPOSED}"


def _name_logits(model: ir.Model) -> None:
    """Name what is upsampled last: verification reads it."""
    resizes = [
        node for node in model.graph if node.op_type == "Resize" and node.attributes.get_string("mode") == "linear"
    ]
    if resizes and resizes[-1].inputs[0] is not None:
        resizes[-1].inputs[0].name = LOGITS_NAME

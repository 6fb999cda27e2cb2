"""PyTorch graph to ONNX file: any batch, any size that fits the patches, checked, and described in its metadata."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from torch.export import Dim

from toco import __version__
from toco.errors import ExportError
from toco.manifest import Precision
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel

OPSET = 20

# Neither size is square, nor the grid of a position embedding: nothing of the example can end up as a constant.
EXAMPLE_BATCH, EXAMPLE_ROWS, EXAMPLE_COLUMNS = 2, 5, 7

PRECISIONS: dict[int, Precision] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}


def export_onnx(served: ServedModel, path: Path) -> None:
    """Write the served graph as one ONNX file that passes ONNX's own checker.

    Args:
        served: The graph, in evaluation mode.
        path: Where to write. The file names no path of this machine: the exporter's stack traces are removed.

    Raises:
        ExportError: The graph cannot be traced, has no ONNX form, or the file is not valid ONNX.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations between torch and onnxscript, of no use to a user
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(
                trace(served),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=list(OUTPUT_NAMES),
                optimize=True,
                verbose=False,
            )
        assert program is not None
        _describe(program.model, served)
        program.save(path, external_data=False)
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # torch, onnxscript and onnx each have their own families
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"the network has no valid ONNX form: {type(error).__name__}: {reason}; "
            f"use a plain ViT, and torch {torch.__version__.split('+')[0]} with an onnxscript of the same age"
        ) from error


def trace(served: ServedModel) -> torch.export.ExportedProgram:
    """Trace the graph with batch, rows and columns of patches left open.

    A size that the code makes a constant is an error here (``torch.onnx.export`` alone would freeze it silently).
    """
    patch = served.model.patch_size
    example = torch.zeros(EXAMPLE_BATCH, EXAMPLE_ROWS * patch, EXAMPLE_COLUMNS * patch, 3, dtype=torch.uint8)
    sizes = {0: Dim("batch"), 1: patch * Dim("rows"), 2: patch * Dim("columns")}
    return torch.export.export(served, (example,), dynamic_shapes=(sizes,), strict=False)


def product_precision(path: Path) -> Precision:
    """Read back from an ONNX file in which precision its matrix products and convolutions run.

    Raises:
        ExportError: They are of more than one precision, or there is none.
    """
    graph = onnx.load(str(path)).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    found = Counter(types.get(node.input[0], 0) for node in graph.node if node.op_type in {"MatMul", "Gemm", "Conv"})
    if len(found) != 1 or not found.keys() <= PRECISIONS.keys():
        counts = ", ".join(f"{count} in {TensorProto.DataType.Name(kind)}" for kind, count in found.items())
        raise ExportError(f"the matrix products of {path.name} are {counts or 'missing'}; expected one precision")
    return PRECISIONS[next(iter(found))]


def _describe(model: Any, served: ServedModel) -> None:
    """Name the open sizes, say what the labels mean, and take out the exporter's notes (an ``onnx_ir.Model``)."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        for axis, name in enumerate(("batch", "height", "width")):
            value.shape[axis] = name
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
    config = served.model.config
    model.producer_name, model.producer_version = "toco", __version__
    model.metadata_props.clear()
    model.metadata_props.update(
        classes=json.dumps(config.classes, ensure_ascii=False),
        patch_size=str(served.model.patch_size),
        image_size=str(config.image_size),
        precision="fp16" if served.body_dtype == torch.float16 else "fp32",
    )

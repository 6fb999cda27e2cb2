"""PyTorch graph to ONNX graph: any batch, and any size that fits the patches unless one is fixed."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20
from torch.export import Dim
from torch.onnx import OnnxExporterError

from toco_core.errors import ExportError
from toco_core.manifest import Precision, Shape
from toco_core.text import one_line
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel

OPSET = 20
OPSET_BF16 = 22  # the first whose convolutions take bf16

# Neither size is square, nor the grid of a position embedding: nothing of the example can end up as a constant.
EXAMPLE_BATCH, EXAMPLE_ROWS, EXAMPLE_COLUMNS = 2, 5, 7


def opset_for(precision: Precision) -> int:
    """Return the version of ONNX's operations that a precision is written in."""
    return OPSET_BF16 if precision == "bf16" else OPSET


def trace_onnx(served: ServedModel, static: Shape | None = None) -> ir.Model:
    """Trace the served graph to ONNX, as PyTorch's exporter writes it.

    Args:
        served: The graph, in evaluation mode.
        static: Height and width to fix; the batch stays open.

    Raises:
        ExportError: The graph cannot be traced, or has no ONNX form.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations between torch and onnxscript, of no use to a user
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            traced = _trace(served, static)
            try:
                return _to_onnx(_already_decomposed(traced))
            except OnnxExporterError:  # an operation of another network that has to be taken apart first
                return _to_onnx(_trace(served, static))
    except Exception as error:  # torch and onnxscript each have their own families
        raise ExportError(
            f"the network has no valid ONNX form: {type(error).__name__}: {one_line(error)}; "
            f"use a plain ViT, and torch {torch.__version__.split('+')[0]} with an onnxscript of the same age"
        ) from error


def _to_onnx(traced: torch.export.ExportedProgram) -> ir.Model:
    """Write a traced graph in ONNX's operations."""
    program = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUT_NAME],
        output_names=list(OUTPUT_NAMES),
        optimize=False,  # toco_export.onnx.simplify does
        verbose=False,
        custom_translation_table={torch.ops.aten.to.dtype: _cast},
    )
    assert program is not None
    return program.model


def _already_decomposed(traced: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Let the exporter take a graph as it is: it would spend most of its time to take apart what it can translate."""
    traced.run_decompositions = lambda *_, **__: traced
    return traced


def _cast(values: Any, dtype: int, **_: Any) -> Any:
    """Translate a change of type, which PyTorch's exporter translates only when it is taken apart."""
    return opset20.Cast(values, to=dtype)


def _trace(served: ServedModel, static: Shape | None) -> torch.export.ExportedProgram:
    """Trace the graph with batch, and unless they are fixed rows and columns of patches, left open.

    A size that the code makes a constant is an error here (``torch.onnx.export`` alone would freeze it silently).
    """
    patch = served.model.patch_size
    height, width = (static.height, static.width) if static else (EXAMPLE_ROWS * patch, EXAMPLE_COLUMNS * patch)
    sizes = {0: Dim("batch")} if static else {0: Dim("batch"), 1: patch * Dim("rows"), 2: patch * Dim("columns")}
    example = torch.zeros(EXAMPLE_BATCH, height, width, 3, dtype=torch.uint8)
    return torch.export.export(served, (example,), dynamic_shapes=(sizes,), strict=False)

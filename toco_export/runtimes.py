"""What can segment images here: the network in PyTorch, and ONNX files in ONNX Runtime; with logits to compare."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from toco_core.errors import ExportError
from toco_core.palette import UInt8Array
from toco_core.text import one_line
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel, answer
from toco_export.onnx.simplify import LOGITS_NAME

aten = torch.ops.aten
HALVES = frozenset({torch.float16, torch.bfloat16})
SUMS = frozenset({aten.linear, aten.conv2d, aten.matmul, aten.softmax})  # what inference mode hands over
FUSED_DOMAIN = "com.microsoft"


class Answer(NamedTuple):
    """What a network says of a batch.

    Attributes:
        mask: Labels, uint8 ``[B, H, W]``.
        confidence: 255 times the winner's softmax, uint8 ``[B, H, W]``.
        logits: float32 ``[B, C + 1, h, w]`` at the patches' stride.
    """

    mask: UInt8Array
    confidence: UInt8Array
    logits: npt.NDArray[np.float32]


InferenceBackend = Callable[[UInt8Array], Answer]


@dataclass(frozen=True)
class OnnxSession:
    """An ONNX file opened with ONNX Runtime on the CPU.

    Attributes:
        segment: Runs it on images, uint8 ``[B, H, W, 3]``.
        num_nodes: Operations that ONNX Runtime makes of the file.
        fused: Those of them that do the work of several, by their names.
    """

    segment: InferenceBackend
    num_nodes: int
    fused: Counter[str]


def torch_segmenter(served: ServedModel) -> InferenceBackend:
    """Run a served graph in PyTorch; what it multiplies in half precision is summed in fp32, as GPUs do."""

    @torch.inference_mode()
    def segment(images: UInt8Array) -> Answer:
        with _SummedInFloat():  # type: ignore[no-untyped-call]
            logits = served.logits(torch.from_numpy(np.ascontiguousarray(images)))
        mask, confidence = answer(logits, images.shape[1:3])
        return Answer(mask.numpy(), confidence.numpy(), logits.numpy())

    return segment


class _SummedInFloat(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes half-precision products and softmax in fp32 and rounds the result: a processor is slow at them itself.

    A sum beyond the type's range still overflows when it is rounded.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        halves = {value.dtype for value in args if isinstance(value, torch.Tensor)} & HALVES
        if not halves or func.overloadpacket not in SUMS:
            return func(*args, **(kwargs or {}))
        result = func(
            *(value.float() if isinstance(value, torch.Tensor) else value for value in args), **(kwargs or {})
        )
        return result.to(halves.pop())


def open_onnx(file: Path) -> OnnxSession:
    """Open an ONNX file, its logits made an output for the occasion.

    Raises:
        ExportError: ONNX Runtime does not take the file, or fails to run it.
    """
    probed, optimised = file.with_name(f"{file.name}.probed"), file.with_name(f"{file.name}.optimised")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimised)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
    )
    try:
        _write_probed(file, probed)
        session: Any = _or_export_error(
            file, lambda: onnxruntime.InferenceSession(str(probed), options, providers=["CPUExecutionProvider"])
        )
        graph = onnx.load(str(optimised), load_external_data=False).graph
    finally:
        for leftover in (probed, optimised, optimised.with_name(f"{optimised.name}.data")):
            leftover.unlink(missing_ok=True)

    def segment(images: UInt8Array) -> Answer:
        names = [*OUTPUT_NAMES, LOGITS_NAME]
        return Answer(*_or_export_error(file, lambda: session.run(names, {INPUT_NAME: images})))

    return OnnxSession(segment, len(graph.node), Counter(n.op_type for n in graph.node if n.domain == FUSED_DOMAIN))


def _write_probed(file: Path, probed: Path) -> None:
    """Copy an ONNX file with one output more: of two messages in a row, protobuf makes one that has what both have."""
    logits = helper.make_tensor_value_info(LOGITS_NAME, TensorProto.FLOAT, [None] * 4)
    more = onnx.ModelProto(graph=onnx.GraphProto(output=[logits]))
    shutil.copyfile(file, probed)
    with probed.open("ab") as end:
        end.write(more.SerializeToString())


def _or_export_error(file: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} does not run {file.name}: {one_line(error)}; "
            "install another version of it"
        ) from error

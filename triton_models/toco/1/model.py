"""Triton model ``toco``: RGB images in, label map and confidence out, by TensorRT-RTX or ONNX Runtime.

Normalisation, upsampling and argmax are inside the graph, so what is left is to check sizes, to merge the
requests that Triton hands over together, and to split the answers. Imports nothing of the toco packages: it runs
inside NVIDIA's container with numpy and onnxruntime alone, and with tensorrt_rtx where there is an engine for it.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("mask", "confidence")

Parameters = dict[str, str]
UInt8Array = npt.NDArray[np.uint8]


class TritonPythonModel:
    """Run the exported network.

    Parameters in ``config.pbtxt``: ``onnx_fp32``, ``onnx_fp16``, ``onnx_int8``, ``rtx_engine`` (file names; all but the
    first may be missing), ``patch_size``, ``min_height``, ``min_width``, ``max_height``, ``max_width`` (pixels),
    ``num_threads`` (0: all processors).
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session: on a GPU that can be used the engine or fp16, else int8 or fp32 on the CPU."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        folder = Path(args["model_repository"]) / args["model_version"]
        device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._parameters = parameters
        self._session = open_session(folder, parameters, device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; those of one size share one session run, and a bad one fails alone."""
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        responses: list[Any] = [None] * len(requests)
        same_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            if problem := size_problem(image.shape[1], image.shape[2], self._parameters):
                responses[index] = refuse(f"ImageSizeError: {problem}")
            elif len(requests) > 1 and requests[index].is_cancelled():  # spend nothing on it; alone it has not waited
                responses[index] = pb_utils.InferenceResponse(
                    error=pb_utils.TritonError("the client gave up", pb_utils.TritonError.CANCELLED)
                )
            else:
                same_size[image.shape[1:3]].append(index)
        for indices in same_size.values():
            for index, response in zip(indices, self._run([images[i] for i in indices]), strict=True):
                responses[index] = response
        return responses

    def _run(self, images: list[UInt8Array]) -> list[Any]:
        """Run images of one size, each ``[B, H, W, 3]``, together; give one response for each."""
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        try:
            outputs = self._session.run(OUTPUTS, {"image": batch})
        except Exception as error:  # whatever stopped the runtime (memory, mostly) must not stop the other sizes
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(one_line(error))) for _ in images]
        if len(images) == 1:  # nothing to split: 0.1 ms less
            return [respond(outputs)]
        ends = np.cumsum([len(image) for image in images])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [respond(part) for part in parts]


class RtxSession:
    """An engine of TensorRT-RTX on one GPU, asked as a session of ONNX Runtime is.

    Args:
        file: The engine.
        device: CUDA's number of the GPU.

    Raises:
        ImportError: TensorRT-RTX is not here, or does not load.
        RuntimeError: The engine does not load on this GPU or in this version.
    """

    def __init__(self, file: Path, device: int) -> None:
        import tensorrt_rtx  # noqa: PLC0415  (most machines have no use for it)

        self._device = device
        onnxruntime.preload_dlls()  # its tensors serve as buffers, so that no other package is needed
        self._on_gpu(np.zeros(1, np.uint8))  # makes the GPU the current one, to which TensorRT binds the engine
        self._log = error_log(tensorrt_rtx)
        self._engine = tensorrt_rtx.Runtime(self._log).deserialize_cuda_engine(file.read_bytes())
        self._check(self._engine is not None, f"TensorRT-RTX {tensorrt_rtx.__version__} does not load the engine")
        self._context = self._engine.create_execution_context()
        self._check(self._context is not None, "there is no room to run the engine")

    def run(self, names: Sequence[str], inputs: dict[str, UInt8Array]) -> list[UInt8Array]:
        """Return the outputs of these names, uint8 ``[B, H, W]``, for ``image``, uint8 ``[B, H, W, 3]``.

        Raises:
            RuntimeError: The size or the batch is outside the engine's profile, or the GPU fails.
        """
        engine, context = self._engine, self._context
        tensors = {name: self._on_gpu(array) for name, array in inputs.items()}
        for name, array in inputs.items():
            self._check(context.set_input_shape(name, array.shape), f"the engine takes no {name} {array.shape}")
        for name in names:
            shape = list(context.get_tensor_shape(name))
            tensors[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, "cuda", self._device)
        order = map(engine.get_tensor_name, range(engine.num_io_tensors))
        done = context.execute_v2([tensors[name].data_ptr() for name in order])  # returns when the GPU has finished
        self._check(done, "the engine stopped")
        return [tensors[name].numpy() for name in names]

    def _on_gpu(self, array: UInt8Array) -> Any:
        """Copy an array to the GPU; returns when it is there."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", self._device)

    def _check(self, succeeded: bool, problem: str) -> None:
        """Raise what TensorRT logged of a failure: it throws nothing."""
        if not succeeded:
            raise RuntimeError(f"{problem}: {self._log.last_error or 'it does not say why'}")


def error_log(trt: Any) -> Any:
    """Make a TensorRT logger that keeps the last error."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message

    return ErrorLog()


def open_session(folder: Path, parameters: Parameters, device: int | None) -> Any:
    """Open the engine or the fp16 graph on GPU ``device`` if one of them runs there, else a graph on the CPU."""
    if device is not None and "rtx_engine" in parameters:
        try:
            return open_engine(folder, parameters, device)
        except Exception as error:  # a package that is missing or does not load, another version, GPU or driver, memory
            pb_utils.Logger.log_warn(
                f"GPU {device} does not run {parameters['rtx_engine']}: ONNX Runtime instead ({one_line(error)})"
            )
    return open_graph(folder, parameters, device)


def open_engine(folder: Path, parameters: Parameters, device: int) -> RtxSession:
    """Open the engine and try it on the smallest image: what is wrong with it has to show while there is a choice."""
    session = RtxSession(folder / parameters["rtx_engine"], device)
    smallest = np.zeros((1, int(parameters["min_height"]), int(parameters["min_width"]), 3), np.uint8)
    session.run(OUTPUTS, {"image": smallest})
    return session


def open_graph(folder: Path, parameters: Parameters, device: int | None) -> Any:
    """Open the fp16 graph on CUDA device ``device`` if there is one that works, else on the CPU int8 before fp32."""
    cpu_graph = parameters.get("onnx_int8", parameters["onnx_fp32"])
    if device is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # finds the CUDA libraries of pip's nvidia packages
        graph = parameters.get("onnx_fp16", parameters["onnx_fp32"])
        session = onnxruntime.InferenceSession(
            folder / graph, providers=[("CUDAExecutionProvider", {"device_id": device}), "CPUExecutionProvider"]
        )
        if "CUDAExecutionProvider" in session.get_providers():  # without its libraries it only warns and is left out
            return session
        pb_utils.Logger.log_warn(f"ONNX Runtime cannot use GPU {device}: {cpu_graph} on the CPU instead")
    return onnxruntime.InferenceSession(
        folder / cpu_graph, cpu_options(int(parameters["num_threads"])), ["CPUExecutionProvider"]
    )


def cpu_options(num_threads: int) -> Any:
    """One pool of threads, which sleep between requests so that the image decoders get the processors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def size_problem(height: int, width: int, parameters: Parameters) -> str | None:
    """Say what is wrong with an image size, or nothing."""
    patch = int(parameters["patch_size"])
    for name, got in (("height", height), ("width", width)):
        low, high = int(parameters[f"min_{name}"]), int(parameters[f"max_{name}"])
        if not low <= got <= high:
            return f"image {name} {got} is outside the {low} to {high} that this model was exported for; resize it"
        if got % patch:
            padded = -(-got // patch) * patch
            return f"image {name} {got} is not a multiple of the patch size {patch}; pad to {padded}"
    return None


def one_line(error: Exception) -> str:
    """Return the message of an error without line ends, which Triton would print as they are."""
    return " ".join(str(error).split())


def respond(outputs: Sequence[UInt8Array]) -> Any:
    """Answer one request."""
    return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(OUTPUTS, outputs, strict=True)])


def refuse(message: str) -> Any:
    """Answer one request with an error that is its own fault."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))

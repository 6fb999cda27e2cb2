"""Triton model ``toco``: RGB images in, label map and confidence out, by ONNX Runtime.

Normalisation, upsampling and argmax are inside the ONNX graph, so what is left is to check sizes, to merge the
requests that Triton hands over together, and to split the answers. Imports nothing of the toco packages: it runs
inside NVIDIA's container with numpy and onnxruntime alone.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("mask", "confidence")

Parameters = dict[str, str]


class TritonPythonModel:
    """Run the exported network.

    Parameters in ``config.pbtxt``: ``onnx_fp32``, ``onnx_fp16``, ``onnx_int8`` (file names; all but the first may be
    missing), ``patch_size``,
    ``min_height``, ``min_width``, ``max_height``, ``max_width`` (pixels), ``num_threads`` (0: all processors).
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session: fp16 on a GPU that ONNX Runtime can use, else int8 or fp32 on the CPU."""
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

    def _run(self, images: list[npt.NDArray[np.uint8]]) -> list[Any]:
        """Run images of one size, each ``[B, H, W, 3]``, together; give one response for each."""
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        try:
            outputs = self._session.run(OUTPUTS, {"image": batch})
        except Exception as error:  # whatever stopped ONNX Runtime (memory, mostly) must not stop the other sizes
            message = " ".join(str(error).split())
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(message)) for _ in images]
        ends = np.cumsum([len(image) for image in images])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(OUTPUTS, part, strict=True)])
            for part in parts
        ]


def open_session(folder: Path, parameters: Parameters, device: int | None) -> Any:
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


def refuse(message: str) -> Any:
    """Answer one request with an error that is its own fault."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))

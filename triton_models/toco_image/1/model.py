"""Triton model ``toco_image``: an encoded image of any size in, label map and confidence at that size out.

Both come as pixels, as PNG (outputs ``mask_png`` and ``confidence_png``), the mask also as run lengths (``mask_rle``):
whichever the request names.
Decodes, resizes to one of a few fixed sizes (so that images of different sizes batch together), asks the model
``toco``, and resizes the answer back. Bytes and pixels are bounded before anything is decoded. Of this project it
imports ``fitting``, ``rgb`` and ``rle`` alone, copies of which lie beside it: it runs inside NVIDIA's container, where
only numpy and Pillow are installed.
"""

from __future__ import annotations

import asyncio
import io
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from fitting import fit_to_network, nearest_size
from PIL import Image
from rgb import UPRIGHT, RefusedImageError, open_image, orientation, to_rgb
from rle import encode_rle

RESAMPLING = {"mask": Image.Resampling.NEAREST, "confidence": Image.Resampling.BILINEAR}  # labels do not blend

UInt8Array = npt.NDArray[np.uint8]


class TritonPythonModel:
    """Serve encoded images through ``toco``.

    Parameters in ``config.pbtxt``: ``buckets`` (JSON, ``[[height, width], ...]``), ``max_image_bytes``,
    ``max_image_pixels``.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Read the limits and the sizes that ``toco`` is asked at."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._buckets = [(height, width) for height, width in json.loads(parameters["buckets"]["string_value"])]
        self._max_bytes = int(parameters["max_image_bytes"]["string_value"])
        self._max_pixels = int(parameters["max_image_pixels"]["string_value"])

    async def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a bad image fails alone."""
        return await asyncio.gather(*map(self._answer, requests))

    async def _answer(self, request: Any) -> Any:
        """Segment the image of one request."""
        data = pb_utils.get_input_tensor_by_name(request, "image_bytes").as_numpy()[0]
        try:
            image, size = decode(data, self._buckets, self._max_bytes, self._max_pixels)
        except RefusedImageError as error:
            message = f"DataError: the image cannot be read: {error}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
        reply = await pb_utils.InferenceRequest(
            model_name="toco",
            requested_output_names=["mask", "confidence"],
            inputs=[pb_utils.Tensor("image", image[None])],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        ).async_exec()
        if reply.has_error():
            return pb_utils.InferenceResponse(error=reply.error())
        return pb_utils.InferenceResponse([output(reply, name, size) for name in request.requested_output_names()])


def decode(
    data: bytes, buckets: list[tuple[int, int]], max_bytes: int, max_pixels: int
) -> tuple[UInt8Array, tuple[int, int]]:
    """Decode an image at the bucket that fits its shape best.

    Returns:
        The image, uint8 ``[H, W, 3]`` RGB at the bucket's size, and its own ``(width, height)``, both upright.

    Raises:
        RefusedImageError: Too large, of another kind, or damaged.
    """
    if len(data) > max_bytes:
        raise RefusedImageError(f"it has {len(data):,} bytes, expected at most {max_bytes:,}; make it smaller")
    with open_image(io.BytesIO(data), max_pixels) as image:
        return upright_at_bucket(image, buckets)


def upright_at_bucket(image: Image.Image, buckets: list[tuple[int, int]]) -> tuple[UInt8Array, tuple[int, int]]:
    """Decode an opened image; see ``decode``."""
    if image.format not in {"JPEG", "MPO"}:  # these two are decoded at a smaller size below
        image.load()
    turn = UPRIGHT.get(orientation(image))
    turned = turn in {UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8]}
    size = image.size[::-1] if turned else image.size
    bucket = nearest_size(size[::-1], buckets)
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for a fraction of the time; twice the bucket keeps the detail.
    scale = 2 * max(bucket) / max(size)
    image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    small = fit_to_network(to_rgb(image), [bucket[::-1] if turned else bucket])
    return np.asarray(small if turn is None else small.transpose(turn)), size


def output(reply: Any, name: str, size: tuple[int, int]) -> Any:
    """Return an output at ``(width, height)``: ``mask`` or ``confidence``, uint8 ``[H, W]``, or in another form."""
    kind, _, form = name.partition("_")
    small = pb_utils.get_output_tensor_by_name(reply, kind).as_numpy()[0]  # uint8 [1, h, w]
    image = Image.fromarray(small).resize(size, RESAMPLING[kind])
    if not form:
        return pb_utils.Tensor(name, np.asarray(image))
    content = png(image) if form == "png" else run_lengths(image)
    return pb_utils.Tensor(name, np.array([content], dtype=np.object_))


def png(image: Image.Image) -> bytes:
    """Encode a greyscale image."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def run_lengths(mask: Image.Image) -> bytes:
    """Return COCO's compressed run lengths of each label that occurs, but the background, as JSON by label."""
    labels = np.asfortranarray(mask)  # run lengths go column by column
    present = np.flatnonzero(np.bincount(labels.ravel(order="K"))[1:]) + 1
    return json.dumps({label: encode_rle(labels == label) for label in present.tolist()}).encode()

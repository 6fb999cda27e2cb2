"""Triton model ``toco_image``: an encoded image of any size in, label map and confidence at that size out.

Both come as pixels, as PNG (outputs ``mask_png`` and ``confidence_png``), the mask also as run lengths (``mask_rle``):
whichever the request names.
Decodes, resizes to one of a few fixed sizes (so that images of different sizes batch together), asks the model
``toco``, and resizes the answer back. Bytes and pixels are bounded before anything is decoded. Imports nothing of the
toco packages but ``fitting`` and ``run_lengths``, copies of which lie beside it: it runs inside NVIDIA's container with
numpy and pillow alone.
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
from PIL import Image, UnidentifiedImageError
from run_lengths import encode_rle

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
TAKEN = "a JPEG, PNG, WebP, BMP or TIFF image is expected"
OTHER_KINDS = {b"GIF8": "a GIF", b"%PDF": "a PDF", b"PK\3\4": "a ZIP archive"}

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

RESAMPLING = {"mask": Image.Resampling.NEAREST, "confidence": Image.Resampling.BILINEAR}  # labels do not blend

THROUGH = {"La": "LA", "P": "RGBA"}  # from La Pillow knows no other way, and from P it would warn of transparency

Image.MAX_IMAGE_PIXELS = None  # the limit below is lower, and its message says what to do

UInt8Array = npt.NDArray[np.uint8]


class RefusedImageError(Exception):
    """An image that cannot be served; the message says why and what is expected."""


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
            message = f"DataError: {error}"
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
        raise RefusedImageError(f"the image has {len(data)} bytes, at most {max_bytes} are taken; make it smaller")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                size_text = f"{image.height}x{image.width} px"
                raise RefusedImageError(f"the image is {size_text}, at most {max_pixels} pixels are taken; resize it")
            return upright_at_bucket(image, buckets)
    except RefusedImageError:
        raise
    except UnidentifiedImageError as error:
        raise RefusedImageError(f"the data is {kind_of(data)}; {TAKEN}") from error
    except Exception as error:  # Pillow's decoders raise many kinds on damaged data, and each is this image's fault
        raise RefusedImageError(f"the image is damaged ({' '.join(str(error).split())}); send it whole") from error


def upright_at_bucket(image: Image.Image, buckets: list[tuple[int, int]]) -> tuple[UInt8Array, tuple[int, int]]:
    """Decode an opened image; see ``decode``."""
    if image.format == "TIFF":  # turns by itself when it is loaded, and takes the mark away
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


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata is no reason to refuse pixels that are whole
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, as in training: alpha is dropped, and 16-bit levels keep their high byte.

    Raises:
        RefusedImageError: Its levels have no known range.
    """
    if image.mode == "F":
        raise RefusedImageError("the image's levels are floating-point numbers; send whole ones of 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        low, high = int(levels.min()), int(levels.max())
        if low < 0 or high > 0xFFFF:
            raise RefusedImageError(f"the image's levels go from {low} to {high}; send levels of 8 or 16 bits")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    return image.convert(THROUGH.get(image.mode, "RGB")).convert("RGB")


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


def kind_of(data: bytes) -> str:
    """Name what was sent instead of an image, as far as its first bytes tell."""
    for magic, kind in OTHER_KINDS.items():
        if data.startswith(magic):
            return kind
    if not data:
        return "empty"
    text = all(byte >= 32 or byte in b"\t\n\r" for byte in data[:512])
    return f"{len(data)} bytes of {'text' if text else 'no kind known here'}"

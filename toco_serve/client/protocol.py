"""The client protocol as generators, without I/O.

Each exchange is a generator of steps: ``Client`` performs them, ``AsyncClient`` awaits them. So requests, deadlines,
retries and errors are written once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from toco_core.errors import DataError, ServeError
from toco_core.palette import UInt8Array
from toco_serve.client.answer_formats import OUTPUTS, AnswerFormat, decode_answer
from toco_serve.client.images import ImageInput, encoded, rgb_pixels
from toco_serve.client.retry import Retry
from toco_serve.client.segmentation import Segmentation
from toco_serve.client.shared_memory import SharedMemoryPool
from toco_serve.client.steps import Call, Exchange, Pause, Work
from toco_serve.client.tiling import padded, tiles
from toco_serve.errors import DeadlineError, StoppingError, TransientError, error_from_triton, no_server

CONNECT_TIMEOUT_S = 5.0
STOPPING_PAUSE_S = 0.2


@dataclass(frozen=True)
class ServerInfo:
    """The server's description of its model.

    Attributes:
        classes: Names of the labels 1..C.
        palette: Colours of the labels 0..C, uint8 ``[C + 1, 3]`` RGB.
        tuned_size: Height and width that its artefacts are tuned for, in pixels.
        max_batch: Largest number of images in one request.
    """

    classes: tuple[str, ...]
    palette: UInt8Array
    tuned_size: tuple[int, int]
    max_batch: int


def connect(url: str, timeout_s: float, pool: SharedMemoryPool | None) -> Exchange[ServerInfo]:
    """Ask a server once what it serves, and register a first region of shared memory if there is a pool.

    Raises:
        UnreachableError: No server answers within ``CONNECT_TIMEOUT_S``.
        ServeError: It does not serve ToCo, or does not allow shared memory.
    """
    allowed_s = min(CONNECT_TIMEOUT_S, timeout_s)
    try:
        response = yield Call("get_model_config", {"model_name": "toco", "client_timeout": allowed_s})
    except InferenceServerException as error:
        failure = error_from_triton(error, url, allowed_s)
        raise (no_server(url) if isinstance(failure, DeadlineError) else failure) from error
    config = response.config
    if not {"classes", "palette"} <= config.parameters.keys() or not config.model_warmup:
        raise ServeError(
            f"the model 'toco' at {url} lacks classes, colours or size: export it again with this toco-export"
        )
    height, width, _ = config.model_warmup[0].inputs["image"].dims
    classes, palette = (json.loads(config.parameters[name].string_value) for name in ("classes", "palette"))
    if pool is not None:
        try:
            yield from pool.open(height * width * 3, time.monotonic() + allowed_s)
        except InferenceServerException as error:
            raise error_from_triton(error, url, allowed_s) from error
    return ServerInfo(tuple(classes), np.array(palette, np.uint8), (height, width), config.max_batch_size)


@dataclass(frozen=True)
class Conversation:
    """The exchanges with a connected server."""

    url: str
    timeout_s: float
    retry: Retry
    answer_format: AnswerFormat
    pool: SharedMemoryPool | None
    model: ServerInfo

    def segment(self, image: ImageInput, timeout_s: float | None) -> Exchange[Segmentation]:
        """Segment one image of any size; see ``Client.segment``."""
        tensor = grpc.InferInput("image_bytes", [1], "BYTES")
        with _naming(image):
            content = yield Work(lambda: encoded(image))
            tensor.set_data_from_numpy(np.array([content], dtype=np.object_))
            mask, confidence = yield from self._infer("toco_image", tensor, timeout_s, OUTPUTS[self.answer_format])
        if self.answer_format != "raw":
            mask, confidence = yield Work(lambda: decode_answer(self.answer_format, mask, confidence))
        return Segmentation(mask, confidence, self.model.classes, self.model.palette)

    def segment_tiled(self, image: ImageInput, overlap: float, timeout_s: float | None) -> Exchange[Segmentation]:
        """Segment an image in tiles of the network's size; see ``Client.segment_tiled``."""
        with _naming(image):
            # A file is read once: an image that fits in one tile is sent as it is.
            source = (yield Work(lambda: encoded(image))) if isinstance(image, (str, Path)) else image
            pixels = yield Work(lambda: rgb_pixels(source))
            size, tile_size = pixels.shape[:2], self.model.tuned_size
            grid = tiles(size, tile_size, overlap)
            if len(grid) == 1:
                return (yield from self.segment(source, timeout_s))
        mask, confidence = np.empty(size, np.uint8), np.empty(size, np.uint8)
        pixels = padded(pixels, tile_size)
        for first in range(0, len(grid), self.model.max_batch):
            batch = grid[first : first + self.model.max_batch]
            stacked = np.stack([pixels[tile.source] for tile in batch])
            for tile, answer in zip(batch, (yield from self.segment_tensor(stacked, timeout_s)), strict=True):
                mask[tile.target], confidence[tile.target] = answer.mask[tile.kept], answer.confidence[tile.kept]
        return Segmentation(mask, confidence, self.model.classes, self.model.palette)

    def segment_tensor(self, images: UInt8Array, timeout_s: float | None) -> Exchange[tuple[Segmentation, ...]]:
        """Segment a batch at its own resolution; see ``Client.segment_tensor``."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise DataError(f"the array is {images.dtype} {list(images.shape)}; expected RGB, uint8 [B, H, W, 3]")
        tensor = grpc.InferInput("image", list(images.shape), "UINT8")
        if self.pool is None:
            tensor.set_data_from_numpy(images)
        masks, confidences = yield from self._infer("toco", tensor, timeout_s, OUTPUTS["raw"], images)
        answers = zip(masks, confidences, strict=True)
        return tuple(Segmentation(*answer, self.model.classes, self.model.palette) for answer in answers)

    def _infer(
        self,
        model: str,
        tensor: Any,
        timeout_s: float | None,
        names: tuple[str, str],
        shared: UInt8Array | None = None,
    ) -> Exchange[tuple[Any, Any]]:
        """Ask one model, with retries, until it answers or the timeout is over.

        ``shared`` is the content of ``tensor``, sent through shared memory if there is a pool.
        """
        allowed_s = self.timeout_s if timeout_s is None else timeout_s
        deadline, pauses = time.monotonic() + allowed_s, self.retry.pauses()

        def inference() -> Call:
            return _inference(model, tensor, max(deadline - time.monotonic(), 0.0), names)

        while True:
            try:
                if self.pool is None or shared is None:
                    result = yield inference()
                else:
                    result = yield from self.pool.infer(inference, tensor, shared, deadline)
                mask, confidence = (result.as_numpy(name) for name in names)
                return mask, confidence
            except InferenceServerException as error:
                failure = error_from_triton(error, self.url, allowed_s)
                # A stopping server is not a failure: its successor may run already, but gets our requests only when the
                # old connection is closed.
                pause = STOPPING_PAUSE_S if isinstance(failure, StoppingError) else next(pauses, None)
                if not isinstance(failure, TransientError) or pause is None or time.monotonic() + pause >= deadline:
                    raise failure from error
            yield Pause(pause)


@contextmanager
def _naming(image: ImageInput) -> Iterator[None]:
    """Add the file's name to the message of an error."""
    try:
        yield
    except DataError as error:
        if isinstance(image, (str, Path)) and str(image) not in str(error):
            raise DataError(f"{image}: {error}") from error
        raise


def _inference(model: str, tensor: Any, timeout_s: float, names: tuple[str, str]) -> Call:
    """Return the call for two outputs; the server drops it if it has not begun it after ``timeout_s``."""
    arguments = {
        "model_name": model,
        "inputs": [tensor],
        "outputs": [grpc.InferRequestedOutput(name) for name in names],
        "timeout": int(timeout_s * 1e6),
        "client_timeout": timeout_s,
    }
    return Call("infer", arguments)

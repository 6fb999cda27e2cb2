"""A typed client: images of any kind in, ``Segmentation`` out, one clear error where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from toco.errors import DataError, ImageSizeError, ServeError, TocoError
from toco.palette import UInt8Array
from toco_serve.images import ImageInput, encoded
from toco_serve.segmentation import Segmentation

DEFAULT_URL = "localhost:8001"
CONNECT_TIMEOUT_S = 5.0
OUTPUTS = ("mask", "confidence")

# Errors that the models name at the start of their sentence.
_NAMED_ERRORS: dict[str, type[TocoError]] = {"ImageSizeError": ImageSizeError, "DataError": DataError}

T = TypeVar("T")


class UnreachableError(ServeError):
    """No server answers at the address."""


class Client:
    """Ask a Triton server for segmentations. May be used from several threads at once.

    Args:
        url: Host and gRPC port of the server, without a scheme.
        timeout_s: Longest wait for one answer; the server drops what it has not begun by then.

    Raises:
        UnreachableError: No server answers there.
        ServeError: The server does not serve ToCo.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._triton = grpc.InferenceServerClient(url, channel_args=_channel_options(url))
        try:
            self.classes = self._class_names()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._triton.close()

    def segment(self, image: ImageInput) -> Segmentation:
        """Segment one image of any size.

        Args:
            image: Path of a JPEG, PNG, WebP or BMP file, the content of one, a PIL image, or an RGB array, uint8
                ``[H, W, 3]``. Files travel as they are and are turned upright as their EXIF data say.

        Returns:
            Mask and confidence at the image's own size.

        Raises:
            DataError: The image cannot be read or decoded, or is too large for the server.
            ServeError: The server is gone, overloaded, too slow, or failed.
        """
        tensor = grpc.InferInput("image_bytes", [1], "BYTES")
        try:
            tensor.set_data_from_numpy(np.array([encoded(image)], dtype=np.object_))
            mask, confidence = self._infer("toco_image", tensor)
        except DataError as error:
            if isinstance(image, (str, Path)) and str(image) not in str(error):
                raise DataError(f"{image}: {error}") from error
            raise
        return Segmentation(mask, confidence, self.classes)

    def segment_tensor(self, images: UInt8Array) -> tuple[Segmentation, ...]:
        """Segment a batch at the network's own resolution: no resizing on either side.

        Args:
            images: RGB, uint8 ``[B, H, W, 3]``, H and W multiples of the patch size.

        Returns:
            One answer for each image.

        Raises:
            DataError: The array is of another shape or type.
            ImageSizeError: H or W is not a multiple of the patch size, or outside what the model was exported for.
            ServeError: The server is gone, overloaded, too slow, or failed.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.size == 0:
            raise DataError(f"the array is {images.dtype} {list(images.shape)}; expected RGB, uint8 [B, H, W, 3]")
        tensor = grpc.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        masks, confidences = self._infer("toco", tensor)
        return tuple(Segmentation(*pair, self.classes) for pair in zip(masks, confidences, strict=True))

    def _infer(self, model: str, tensor: grpc.InferInput) -> tuple[UInt8Array, UInt8Array]:
        """Ask one model."""
        result = self._call(
            lambda: self._triton.infer(
                model,
                [tensor],
                outputs=[grpc.InferRequestedOutput(name) for name in OUTPUTS],
                timeout=int(self.timeout_s * 1e6),
                client_timeout=self.timeout_s,
            )
        )
        mask, confidence = (result.as_numpy(name) for name in OUTPUTS)
        return mask, confidence

    def _class_names(self) -> tuple[str, ...]:
        """Read the class names from the served model's configuration."""
        timeout_s = min(CONNECT_TIMEOUT_S, self.timeout_s)
        response = self._call(lambda: self._triton.get_model_config("toco", client_timeout=timeout_s), connecting=True)
        parameters = response.config.parameters
        if "classes" not in parameters:
            raise ServeError(f"the model 'toco' at {self.url} names no classes; export it again with toco-export")
        return tuple(json.loads(parameters["classes"].string_value))

    def _call(self, ask: Callable[[], T], *, connecting: bool = False) -> T:
        """Ask the server; its errors become ours."""
        try:
            return ask()
        except InferenceServerException as error:
            raise self._translated(error, connecting) from error

    def _translated(self, error: Any, connecting: bool) -> TocoError:
        """Say in one sentence what a gRPC error means."""
        status, message = str(error.status()).removeprefix("StatusCode."), " ".join(str(error.message()).split())
        too_late = status == "DEADLINE_EXCEEDED"
        if (too_late and connecting) or (status == "UNAVAILABLE" and _is_connection_failure(message)):
            return UnreachableError(
                f"no server answers at {self.url}: start one with toco-serve, or give the address of one that runs"
            )
        if too_late:
            return ServeError(f"{self.url} did not answer within {self.timeout_s:g} s; allow more time or ask for less")
        name, _, sentence = message.partition(": ")
        if name in _NAMED_ERRORS:
            return _NAMED_ERRORS[name](sentence)
        return ServeError(f"{self.url} answered with an error ({status.lower()}): {message}")


def _is_connection_failure(message: str) -> bool:
    """Tell a lost connection from a server that is too busy: gRPC gives both the same status."""
    return any(sign in message.lower() for sign in ("connect", "socket closed", "dns", "name resolution", "goaway"))


def _channel_options(url: str) -> list[tuple[str, int]]:
    """Messages of any size; no HTTP proxy between a client and a server on the same machine."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    local = url.rpartition(":")[0] in {"localhost", "127.0.0.1", "[::1]"}
    return [*options, ("grpc.enable_http_proxy", 0)] if local else options

"""The client for threads: images of any kind in, ``Segmentation`` out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from toco_core.errors import ConfigError, TocoError
from toco_core.palette import UInt8Array
from toco_serve.client.answer_formats import AnswerFormat, check_answer_format
from toco_serve.client.connection import DEFAULT_URL, Tls, channel_arguments
from toco_serve.client.images import ImageInput
from toco_serve.client.retry import Retry
from toco_serve.client.segmentation import Outcome, Segmentation
from toco_serve.client.steps import Call, Exchange, Step, T, Work
from toco_serve.errors import UnreachableError

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_OVERLAP = 0.25
REQUESTS_IN_FLIGHT = 4  # the server can batch, and decode one image while it segments another


class Client:
    """Ask a Triton server for segmentations. Thread-safe.

    Args:
        url: Host and gRPC port of the server, without a scheme.
        timeout_s: Timeout of one call in seconds, retries included; the server drops requests not begun by then.
        retry: When to retry after a lost connection, a full queue or a lost model process.
        tls: Encrypts the connection; None: not encrypted.
        answer_format: How the server sends the answers of ``segment``. For slow networks and large images use
            ``"png"``, or ``"rle"``: the mask as COCO run lengths and the confidence as PNG.
        shared_memory: Send the tensors of ``segment_tensor`` and ``segment_tiled`` through ``/dev/shm`` to a server on
            this machine, run by the same user and started with ``toco-serve --shared-memory``.

    Raises:
        UnreachableError: No server answers at the address (not retried).
        ServeError: The server does not serve ToCo, TLS fails, or the server does not allow shared memory.
        ConfigError: A file of ``tls`` cannot be used, or the answer format is unknown.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: Retry = Retry(),
        tls: Tls | None = None,
        answer_format: AnswerFormat = "raw",
        shared_memory: bool = False,
    ) -> None:
        # gRPC is slow to import: only who connects to a server waits for it.
        from tritonclient import grpc  # noqa: PLC0415

        from toco_serve.client.protocol import Conversation, connect  # noqa: PLC0415
        from toco_serve.client.shared_memory import SharedMemoryPool  # noqa: PLC0415

        check_answer_format(answer_format)
        self.url = url
        self._triton = grpc.InferenceServerClient(**channel_arguments(url, tls))
        self._pool = SharedMemoryPool() if shared_memory else None
        try:
            model = self._run(connect(url, timeout_s, self._pool))
            self._conversation = Conversation(url, timeout_s, retry, answer_format, self._pool, model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        return self._conversation.model.classes

    def close(self) -> None:
        """Close the connection and remove the shared memory."""
        if self._pool is not None:
            self._run(self._pool.close())
        self._triton.close()

    def segment(self, image: ImageInput, *, timeout_s: float | None = None) -> Segmentation:
        """Segment one image of any size.

        Args:
            image: Path of a JPEG, PNG, WebP, BMP or TIFF file, the content of one, a PIL image, or an RGB array, uint8
                ``[H, W, 3]``. Files are sent as they are; the server applies their EXIF orientation.
            timeout_s: Timeout of this call; None: the client's.

        Returns:
            Mask and confidence at the image's own size.

        Raises:
            DataError: The image cannot be read or decoded, or is too large for the server.
            DeadlineError: No answer within the timeout.
            TransientError: No server answers (``UnreachableError``), it is too busy (``BusyError``), or its model
                process ended (``BackendLostError``), after all retries that ``retry`` and the timeout allow.
            ServeError: The server failed.
        """
        return self._run(self._conversation.segment(image, timeout_s))

    def segment_tensor(self, images: UInt8Array, *, timeout_s: float | None = None) -> tuple[Segmentation, ...]:
        """Segment a batch at its own resolution, without resizing.

        Args:
            images: RGB, uint8 ``[B, H, W, 3]``, H and W multiples of the patch size.
            timeout_s: Timeout of this call; None: the client's.

        Returns:
            One segmentation per image.

        Raises:
            DataError: The array has another shape or dtype.
            ImageSizeError: H or W is not a multiple of the patch size, or outside the exported range.
            DeadlineError, TransientError, ServeError: As for ``segment``.
        """
        return self._run(self._conversation.segment_tensor(images, timeout_s))

    def segment_tiled(
        self, image: ImageInput, *, overlap: float = DEFAULT_OVERLAP, timeout_s: float | None = None
    ) -> Segmentation:
        """Segment a large image at its own resolution, in tiles of the size that the network is tuned for.

        ``segment`` shrinks a large image to that size and loses small objects. Here each pixel is taken from the tile
        that shows most of its surroundings. An image that fits in one tile is segmented as by ``segment``.

        Args:
            image: As for ``segment``, but decoded by the client.
            overlap: Smallest share of a tile that it has in common with its neighbour, 0 to 0.75.
            timeout_s: Timeout of each batch of tiles; None: the client's.

        Returns:
            Mask and confidence at the image's own size.

        Raises:
            ConfigError: The overlap is out of range.
            DataError, DeadlineError, TransientError, ServeError: As for ``segment``.
        """
        return self._run(self._conversation.segment_tiled(image, overlap, timeout_s))

    def segment_many(
        self, images: Iterable[ImageInput], *, in_flight: int = REQUESTS_IN_FLIGHT, timeout_s: float | None = None
    ) -> Iterator[Outcome]:
        """Segment many images, several at a time; an error does not stop the others.

        Args:
            images: As for ``segment``; may be endless: at most ``in_flight`` are read ahead.
            in_flight: Largest number of simultaneous requests, at least 1.
            timeout_s: Timeout of each image; None: the client's.

        Yields:
            For each image, in order, its segmentation or its error.

        Raises:
            UnreachableError: The server no longer answers.
            ConfigError: ``in_flight`` is below 1.
        """
        check_in_flight(in_flight)
        waiting: deque[Future[Outcome]] = deque()
        pool = ThreadPoolExecutor(in_flight)
        try:
            for image in images:
                waiting.append(pool.submit(self._outcome, image, timeout_s))
                if len(waiting) == in_flight:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _outcome(self, image: ImageInput, timeout_s: float | None) -> Outcome:
        """Segment one image of many."""
        try:
            return Outcome(image, self.segment(image, timeout_s=timeout_s), None)
        except UnreachableError:
            raise
        except TocoError as error:
            return Outcome(image, None, error)

    def _run(self, exchange: Exchange[T]) -> T:
        """Run an exchange step by step; the exchange handles the errors of its steps."""
        try:
            step = next(exchange)
            while True:
                try:
                    result = self._perform(step)
                except Exception as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(result)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            exchange.close()  # now, also after an interrupt: it may hold shared memory

    def _perform(self, step: Step) -> Any:
        """Perform one step."""
        if isinstance(step, Call):
            return getattr(self._triton, step.method)(**step.arguments)
        if isinstance(step, Work):
            return step.function()
        return time.sleep(step.seconds)


def check_in_flight(number: int) -> None:
    """Check the number of simultaneous requests.

    Raises:
        ConfigError: It is below 1.
    """
    if number < 1:
        raise ConfigError(f"{number} requests in flight would be none at all; give 1 or more")

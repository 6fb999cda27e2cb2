"""A typed client: images of any kind in, ``Segmentation`` out, one clear error where there is none."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from toco_core.errors import ConfigError, TocoError
from toco_core.palette import UInt8Array
from toco_serve.client.answers import AnswerFormat, check_answer_format
from toco_serve.client.connection import DEFAULT_URL, Tls, channel_arguments
from toco_serve.client.images import ImageInput
from toco_serve.client.retry import Retry
from toco_serve.client.segmentation import Outcome, Segmentation
from toco_serve.client.steps import Call, Exchange, Step, T, Work
from toco_serve.errors import UnreachableError

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_OVERLAP = 0.25
REQUESTS_IN_FLIGHT = 4  # enough for the server to batch, and for one image to be decoded while another is segmented


class Client:
    """Ask a Triton server for segmentations. May be used from several threads at once.

    Args:
        url: Host and gRPC port of the server, without a scheme.
        timeout_s: Longest wait for one answer, repetitions included; the server drops what it has not begun by then.
        retry: When to ask again after a lost connection, a full queue or a lost model process.
        tls: Encrypt the connection; without it nothing is encrypted.
        answer_format: How the answers of ``segment`` travel. For slow networks and large images: ``"png"``, or
            ``"rle"``, the mask as COCO run lengths and the confidence as PNG.
        shared_memory: Let the tensors of ``segment_tensor`` and ``segment_tiled`` reach a server of this machine and
            user through ``/dev/shm``; the server has to allow it (``toco-serve --shared-memory``).

    Raises:
        UnreachableError: No server answers there (asked once).
        ServeError: The server does not serve ToCo, one side does not trust the other, or they share no memory.
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

        from toco_serve.client.exchange import Conversation, opening  # noqa: PLC0415
        from toco_serve.client.shared_memory import SharedMemoryPool  # noqa: PLC0415

        check_answer_format(answer_format)
        self.url = url
        self._triton = grpc.InferenceServerClient(**channel_arguments(url, tls))
        self._regions = SharedMemoryPool() if shared_memory else None
        try:
            model = self._take(opening(url, timeout_s, self._regions))
            self._conversation = Conversation(url, timeout_s, retry, answer_format, self._regions, model)
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
        """Close the connection, and remove the memory that the server shared."""
        if self._regions is not None:
            self._take(self._regions.closing())
        self._triton.close()

    def segment(self, image: ImageInput, *, timeout_s: float | None = None) -> Segmentation:
        """Segment one image of any size.

        Args:
            image: Path of a JPEG, PNG, WebP, BMP or TIFF file, the content of one, a PIL image, or an RGB array, uint8
                ``[H, W, 3]``. Files travel as they are and are turned upright as their EXIF data say.
            timeout_s: Longest wait, in the place of the client's own.

        Returns:
            Mask and confidence at the image's own size.

        Raises:
            DataError: The image cannot be read or decoded, or is too large for the server.
            DeadlineError: No answer in time.
            TransientError: No server answers (``UnreachableError``), it is too busy (``BusyError``), or its model
                process ended (``BackendLostError``), each after as many attempts as ``retry`` and the time allow.
            ServeError: The server failed.
        """
        return self._take(self._conversation.segment(image, timeout_s))

    def segment_tensor(self, images: UInt8Array, *, timeout_s: float | None = None) -> tuple[Segmentation, ...]:
        """Segment a batch at the network's own resolution: no resizing on either side.

        Args:
            images: RGB, uint8 ``[B, H, W, 3]``, H and W multiples of the patch size.
            timeout_s: Longest wait, in the place of the client's own.

        Returns:
            One answer for each image.

        Raises:
            DataError: The array is of another shape or type.
            ImageSizeError: H or W is not a multiple of the patch size, or outside what the model was exported for.
            DeadlineError, TransientError, ServeError: As for ``segment``.
        """
        return self._take(self._conversation.segment_tensor(images, timeout_s))

    def segment_tiled(
        self, image: ImageInput, *, overlap: float = DEFAULT_OVERLAP, timeout_s: float | None = None
    ) -> Segmentation:
        """Segment a large image at its own resolution, in tiles of the size that the network is tuned for.

        ``segment`` shrinks an image to that size, and what is small in it disappears. Here each pixel is decided by the
        tile that sees most around it. An image that fits in one tile is answered as by ``segment``.

        Args:
            image: As for ``segment``, but decoded on this side.
            overlap: Share of a tile that neighbours show both, 0 to 0.75, at least.
            timeout_s: Longest wait for each batch of tiles, in the place of the client's own.

        Returns:
            Mask and confidence at the image's own size.

        Raises:
            ConfigError: The overlap is another number.
            DataError, DeadlineError, TransientError, ServeError: As for ``segment``.
        """
        return self._take(self._conversation.segment_tiled(image, overlap, timeout_s))

    def segment_many(
        self, images: Iterable[ImageInput], *, in_flight: int = REQUESTS_IN_FLIGHT, timeout_s: float | None = None
    ) -> Iterator[Outcome]:
        """Segment many images, several at a time; a bad one does not stop the others.

        Args:
            images: As for ``segment``; may be endless, no more than ``in_flight`` are taken ahead.
            in_flight: Requests that wait for the server at once, at least 1.
            timeout_s: Longest wait for each, in the place of the client's own.

        Yields:
            For each image, in their order, its segmentation or its error.

        Raises:
            UnreachableError: The server is gone.
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
        """Segment one of many."""
        try:
            return Outcome(image, self.segment(image, timeout_s=timeout_s), None)
        except UnreachableError:
            raise
        except TocoError as error:
            return Outcome(image, None, error)

    def _take(self, exchange: Exchange[T]) -> T:
        """Go through an exchange, step by step; what a step raises is the exchange's to understand."""
        try:
            step = next(exchange)
            while True:
                try:
                    result = self._do(step)
                except Exception as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(result)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            exchange.close()  # at once, also when this was cancelled: it may hold shared memory

    def _do(self, step: Step) -> Any:
        """Take one step."""
        if isinstance(step, Call):
            return getattr(self._triton, step.method)(**step.arguments)
        if isinstance(step, Work):
            return step.function()
        return time.sleep(step.seconds)


def check_in_flight(number: int) -> None:
    """Refuse to wait for an answer before anything is asked.

    Raises:
        ConfigError: The number is below 1.
    """
    if number < 1:
        raise ConfigError(f"{number} requests in flight would be none at all; give 1 or more")

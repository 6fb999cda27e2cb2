"""The client for asyncio: the protocol of ``Client``, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from tritonclient.grpc import aio

from toco_core.errors import ServeError, TocoError
from toco_core.palette import UInt8Array
from toco_serve.client.answer_formats import AnswerFormat, check_answer_format
from toco_serve.client.client import DEFAULT_OVERLAP, DEFAULT_TIMEOUT_S, REQUESTS_IN_FLIGHT, check_in_flight
from toco_serve.client.connection import DEFAULT_URL, Tls, channel_arguments
from toco_serve.client.images import ImageInput
from toco_serve.client.protocol import Conversation, connect
from toco_serve.client.retry import Retry
from toco_serve.client.segmentation import Outcome, Segmentation
from toco_serve.client.shared_memory import SharedMemoryPool
from toco_serve.client.steps import Call, Exchange, Step, T, Work
from toco_serve.errors import UnreachableError


class AsyncClient:
    """Ask a Triton server for segmentations from an event loop; connected inside an ``async with`` block.

    Arguments, answers and errors are those of ``Client``. A cancelled task cancels its request. Files are read and
    pixels are encoded in a thread.
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
        check_answer_format(answer_format)
        self.url = url
        self._timeout_s = timeout_s
        self._retry = retry
        self._answer_format = answer_format
        self._pool = SharedMemoryPool() if shared_memory else None
        self._channel_arguments = channel_arguments(url, tls)
        self._triton: Any = None
        self._conversation: Conversation | None = None

    async def __aenter__(self) -> AsyncClient:
        self._triton = aio.InferenceServerClient(**self._channel_arguments)
        try:
            model = await self._run(connect(self.url, self._timeout_s, self._pool))
        except BaseException:
            await self.close()
            raise
        self._conversation = Conversation(
            self.url, self._timeout_s, self._retry, self._answer_format, self._pool, model
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        return self._opened.model.classes

    async def close(self) -> None:
        """Close the connection, if there is one, and remove the shared memory."""
        if self._triton is None:
            return
        if self._pool is not None:
            await self._run(self._pool.close())
        await self._triton.close()

    async def segment(self, image: ImageInput, *, timeout_s: float | None = None) -> Segmentation:
        """Segment one image of any size; see ``Client.segment``."""
        return await self._run(self._opened.segment(image, timeout_s))

    async def segment_tensor(self, images: UInt8Array, *, timeout_s: float | None = None) -> tuple[Segmentation, ...]:
        """Segment a batch, uint8 ``[B, H, W, 3]``, at the network's own resolution; see ``Client.segment_tensor``."""
        return await self._run(self._opened.segment_tensor(images, timeout_s))

    async def segment_tiled(
        self, image: ImageInput, *, overlap: float = DEFAULT_OVERLAP, timeout_s: float | None = None
    ) -> Segmentation:
        """Segment a large image at its own resolution; see ``Client.segment_tiled``."""
        return await self._run(self._opened.segment_tiled(image, overlap, timeout_s))

    async def segment_many(
        self, images: Iterable[ImageInput], *, in_flight: int = REQUESTS_IN_FLIGHT, timeout_s: float | None = None
    ) -> AsyncIterator[Outcome]:
        """Segment many images, several at a time, and yield the outcomes in order; see ``Client.segment_many``."""
        check_in_flight(in_flight)
        waiting: deque[asyncio.Task[Outcome]] = deque()
        try:
            for image in images:
                waiting.append(asyncio.create_task(self._outcome(image, timeout_s)))
                if len(waiting) == in_flight:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _outcome(self, image: ImageInput, timeout_s: float | None) -> Outcome:
        """Segment one image of many."""
        try:
            return Outcome(image, await self.segment(image, timeout_s=timeout_s), None)
        except UnreachableError:
            raise
        except TocoError as error:
            return Outcome(image, None, error)

    @property
    def _opened(self) -> Conversation:
        """The conversation of a connected client."""
        if self._conversation is None:
            raise ServeError(f"the client of {self.url} is not connected; use it as 'async with AsyncClient(...)'")
        return self._conversation

    async def _run(self, exchange: Exchange[T]) -> T:
        """Run an exchange step by step; the exchange handles the errors of its steps."""
        try:
            step = next(exchange)
            while True:
                try:
                    result = await self._perform(step)
                except Exception as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(result)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            exchange.close()  # now, also after a cancellation: it may hold shared memory

    async def _perform(self, step: Step) -> Any:
        """Perform one step."""
        if isinstance(step, Call):
            return await getattr(self._triton, step.method)(**step.arguments)
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        return await asyncio.sleep(step.seconds)

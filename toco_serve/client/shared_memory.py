"""Shared memory that carries a client's tensors to a server on the same machine, instead of gRPC messages."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException

from toco_core.errors import ServeError
from toco_core.palette import UInt8Array
from toco_serve.client.steps import Call, Exchange, Pause

CLOSING_S = 1.0
IN_USE_PAUSE_S = 0.02
FOLDER = Path("/dev/shm")


class SharedMemoryPool:
    """The shared memory regions of one client. Thread-safe.

    A region is registered with the server once, under its own name, and is used by one request at a time. A failed
    request removes its region and all idle ones: the server may still read from its region, or may have restarted and
    know none of them. Their files are deleted; the server's mapping stays valid until the server releases it.
    """

    def __init__(self) -> None:
        self._idle: deque[SharedMemory] = deque()
        self._retired: set[str] = set()  # names that may still be registered with the server

    def infer(self, inference: Callable[[], Call], tensor: Any, images: UInt8Array, deadline: float) -> Exchange[Any]:
        """Run an inference with ``images``, of any shape, in shared memory.

        Args:
            inference: Makes the call, when the images are in place.
            tensor: tritonclient's ``InferInput``; it is pointed to the shared memory.
            images: The input.
            deadline: End of the call's time, on the monotonic clock.

        Raises:
            ServeError: This machine has too little shared memory.
        """
        region = self._fitting(images.nbytes) or (yield from self._registered(images.nbytes, deadline))
        try:
            np.copyto(np.ndarray(images.shape, images.dtype, region.buf), images)
            tensor.set_shared_memory(region.name, images.nbytes)
            result = yield inference()
        except BaseException:  # also of a cancelled task
            self._retire(region)
            raise
        self._idle.append(region)
        return result

    def open(self, num_bytes: int, deadline: float) -> Exchange[None]:
        """Register a first region; the server refuses it if it does not allow shared memory."""
        self._idle.append((yield from self._registered(num_bytes, deadline)))

    def close(self) -> Exchange[None]:
        """Remove every region, and unregister it with the server if that still runs.

        The server refuses while it still reads from a region, for a cancelled request or right after an answer: this
        is retried for ``CLOSING_S``, then the server keeps its mapping.
        """
        deadline = time.monotonic() + CLOSING_S
        self._retire()
        while (yield from self._unregistered(deadline)) and time.monotonic() < deadline:
            yield Pause(IN_USE_PAUSE_S)

    def _fitting(self, num_bytes: int) -> SharedMemory | None:
        """Take an idle region that is large enough; one that is too small is removed."""
        with suppress(IndexError):
            region = self._idle.pop()
            if region.size >= num_bytes:
                return region
            self._remove(region)
        return None

    def _registered(self, num_bytes: int, deadline: float) -> Exchange[SharedMemory]:
        """Make a region and register it with the server; unregister the retired ones first."""
        yield from self._unregistered(deadline)
        region = _created(num_bytes)
        try:
            yield Call("register_system_shared_memory", {
                "name": region.name, "key": f"/{region.name}", "byte_size": num_bytes,
                "client_timeout": max(deadline - time.monotonic(), 0.0),
            })  # fmt: skip
        except BaseException:
            self._retire(region)
            raise
        return region

    def _unregistered(self, deadline: float) -> Exchange[bool]:
        """Unregister retired regions; return whether the server still uses some, which stay retired."""
        in_use = False
        for name in tuple(self._retired):
            seconds = max(deadline - time.monotonic(), 0.0)
            try:
                yield Call("unregister_system_shared_memory", {"name": name, "client_timeout": seconds})
                self._retired.discard(name)
            except InferenceServerException as error:
                in_use |= "currently in use" in str(error.message())
        return in_use

    def _retire(self, *regions: SharedMemory) -> None:
        """Remove these regions and all idle ones."""
        for region in regions:
            self._remove(region)
        with suppress(IndexError):
            while True:
                self._remove(self._idle.pop())

    def _remove(self, region: SharedMemory) -> None:
        """Unlink a region's file."""
        self._retired.add(region.name)
        region.close()
        region.unlink()


def _created(num_bytes: int) -> SharedMemory:
    """Make a region with a new name. Its memory is reserved: writing to unreserved memory could kill this process.

    Raises:
        ServeError: There is too little shared memory.
    """
    region = SharedMemory(f"toco-client-{secrets.token_hex(8)}", create=True, size=num_bytes)
    try:
        with (FOLDER / region.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        region.close()
        region.unlink()
        raise ServeError(
            f"{FOLDER} has no room for {num_bytes} bytes; make it larger, or leave shared_memory out"
        ) from error
    return region

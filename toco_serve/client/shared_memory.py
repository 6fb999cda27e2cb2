"""Memory through which a client's tensors reach a server on the same machine, in the place of gRPC messages."""

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
    """The regions of one client; may be used from several threads.

    A region is registered with the server once, under a name of its own, and serves one request at a time. A request
    that fails takes its region and all idle ones along: the server may read the one still, and may have been started
    anew and know none. Their files are gone then; what the server has mapped stays whole until it lets go of it.
    """

    def __init__(self) -> None:
        self._idle: deque[SharedMemory] = deque()
        self._retired: set[str] = set()  # names that the server may still know

    def infer(self, inference: Callable[[], Call], tensor: Any, images: UInt8Array, deadline: float) -> Exchange[Any]:
        """Go through an inference whose input ``tensor`` is ``images``, of any shape.

        Args:
            inference: Gives the call when it is its turn.
            tensor: tritonclient's ``InferInput``, which is told where the images are.
            images: What to ask for.
            deadline: Of all of it, on the monotonic clock.

        Raises:
            ServeError: This machine has no memory for it.
        """
        region = self._fitting(images.nbytes) or (yield from self._registered(images.nbytes, deadline))
        try:
            np.copyto(np.ndarray(images.shape, images.dtype, region.buf), images)
            tensor.set_shared_memory(region.name, images.nbytes)
            result = yield inference()
        except BaseException:  # a cancelled task's too
            self._retire(region)
            raise
        self._idle.append(region)
        return result

    def opening(self, num_bytes: int, deadline: float) -> Exchange[None]:
        """Have a first region ready; the server refuses it where it shares no memory with this client."""
        self._idle.append((yield from self._registered(num_bytes, deadline)))

    def closing(self) -> Exchange[None]:
        """Remove every region, and let the server forget it if it is there.

        It refuses while it reads one still, for a request that was given up or just before its answer is done with:
        it is asked again for ``CLOSING_S``, then left to keep what it has mapped.
        """
        deadline = time.monotonic() + CLOSING_S
        self._retire()
        while (yield from self._unregistered(deadline)) and time.monotonic() < deadline:
            yield Pause(IN_USE_PAUSE_S)

    def _fitting(self, num_bytes: int) -> SharedMemory | None:
        """Take an idle region; one that is too small is replaced by another for good."""
        with suppress(IndexError):
            region = self._idle.pop()
            if region.size >= num_bytes:
                return region
            self._remove(region)
        return None

    def _registered(self, num_bytes: int, deadline: float) -> Exchange[SharedMemory]:
        """Make a region that the server knows; let it forget those of before."""
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
        """Let the server forget retired regions; return whether it uses some still, which are left for another time."""
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
        """Remove regions that are in use and all idle ones."""
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
    """Make a region under a new name, its memory reserved: writing where none is left would kill this process.

    Raises:
        ServeError: There is not that much.
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

"""The errors of client and server, each with a message of one sentence."""

from __future__ import annotations

from typing import Any

from toco_core.errors import DataError, ImageSizeError, ServeError, TocoError
from toco_core.text import one_line

# Errors that the served models name at the start of their message.
_NAMED_ERRORS: dict[str, type[TocoError]] = {"ImageSizeError": ImageSizeError, "DataError": DataError}

_CLOSED = ("socket closed", "connection reset", "broken pipe", "goaway")
_STOPPING = ("has no available versions", "Server not ready", "Server is stopping")
_NO_CONNECTION = ("connect", "dns", "name resolution")
_SHARED_MEMORY = ("shared memory region", "protocol is restricted")  # the only restricted protocol that the client uses


class TransientError(ServeError):
    """A failure that may not occur on a retry."""


class UnreachableError(TransientError):
    """No server answers at the address, or the connection was lost."""


class BusyError(TransientError):
    """The server's queue is full."""


class StoppingError(TransientError):
    """The server finishes its requests and accepts no more; another may be replacing it."""


class BackendLostError(TransientError):
    """The process that ran the model ended. Triton 24.06 and later does not restart it; ``EmbeddedTriton`` does."""


class DeadlineError(ServeError):
    """No answer came within the timeout."""


def error_from_triton(error: Any, url: str, timeout_s: float) -> TocoError:
    """Convert an ``InferenceServerException`` of tritonclient.

    Args:
        error: The exception.
        url: The server's address.
        timeout_s: The timeout of the call, in seconds.

    Returns:
        A ``TransientError`` if a retry may help, else the error that the model names, or a ``ServeError``.
    """
    status = str(error.status()).removeprefix("StatusCode.")
    message = one_line(error.message()).removeprefix("[request id: <id_unknown>] ")
    if status == "DEADLINE_EXCEEDED" or "Request timeout expired" in message:
        return DeadlineError(f"{url} did not answer within {timeout_s:g} s; allow more time or ask for less")
    if any(sign in message for sign in _STOPPING):
        return StoppingError(f"{url} is about to stop and takes on nothing more; ask again when it is back")
    if any(sign in message for sign in _SHARED_MEMORY):
        return _memory_not_shared(message, url)
    if status == "UNAVAILABLE":
        return _unavailable(message, url)
    if status == "INTERNAL" and "Stub process" in message:
        return BackendLostError(f"the process that runs the model at {url} ended; restart the server if that lasts")
    name, _, sentence = message.partition(": ")
    return (
        _NAMED_ERRORS[name](sentence)
        if name in _NAMED_ERRORS
        else ServeError(f"{url} answered with an error ({status.lower()}): {message}")
    )


def no_server(url: str) -> UnreachableError:
    """Return the error for an address where no server answers."""
    return UnreachableError(
        f"no server answers at {url}: start one with toco-serve, or give the address of one that runs"
    )


def _memory_not_shared(message: str, url: str) -> ServeError:
    """Return the error of a server that lost a region in a restart, or that allows no shared memory."""
    if "Unable to find" in message:
        return TransientError(f"{url} no longer knows this client's shared memory: it was started anew; ask again")
    return ServeError(
        f"{url} shares no memory with this client: that takes toco-serve --shared-memory, started by the same user on "
        "this machine; leave shared_memory out where it cannot be had"
    )


def _unavailable(message: str, url: str) -> TocoError:
    """Return the error for gRPC's status UNAVAILABLE: TLS failure, lost connection, no server or full queue."""
    lowered = message.lower()
    if "handshake" in lowered:
        return ServeError(
            f"no encrypted connection to {url} ({message.rpartition('last error: ')[2]}); give the root certificate "
            "that signed the server's, or do without TLS where the server does"
        )
    if any(sign in lowered for sign in _CLOSED):
        return UnreachableError(
            f"{url} closed the connection: it stopped, or it expects TLS or another certificate of this client"
        )
    if any(sign in lowered for sign in _NO_CONNECTION):
        return no_server(url)
    return BusyError(f"{url} is busy ({message}); ask again later, or send less at once")

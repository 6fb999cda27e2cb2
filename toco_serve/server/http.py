"""HTTP requests to the Triton of this machine."""

from __future__ import annotations

import http.client

from toco_serve.errors import UnreachableError
from toco_serve.server.ports import LOOPBACK

TIMEOUT_S = 5.0


def get(port: int, path: str) -> str:
    """Return the body of a successful GET request, sent past any proxy.

    Raises:
        UnreachableError: No server answers at the port, or not with status 200.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, OverflowError, http.client.HTTPException) as error:  # OverflowError: a port above 65535
        raise no_triton(port) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise no_triton(port)
    return body.decode()


def responds(port: int, path: str) -> bool:
    """Return whether a GET request succeeds."""
    try:
        get(port, path)
    except UnreachableError:
        return False
    return True


def no_triton(port: int) -> UnreachableError:
    """Return the error for a port of this machine where no Triton answers."""
    return UnreachableError(
        f"no server answers at {LOOPBACK}:{port}: start one with toco-serve, or give --http-port and --metrics-port of "
        "one that runs"
    )

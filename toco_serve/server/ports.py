"""The ports that Triton listens on: finds free ones and reports ports in use."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import astuple, dataclass, fields

from toco_core.errors import ServeError

# The wheel's Triton, release 24.10, lacks every security fix since: it must not be reachable from another machine.
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Triton's ports on the loopback address; 0: any free port."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


DEFAULT_PORTS = Ports()


def choose_ports(ports: Ports) -> Ports:
    """Replace each 0 by a free port, and check that the other ports are free.

    Raises:
        ServeError: A port is in use, not allowed, out of range, or given twice.
    """
    given = [port for port in astuple(ports) if port]
    if len(set(given)) < len(given):
        raise ServeError(f"gRPC, HTTP and metrics cannot share a port (got {given}); give each its own, or 0")
    with contextlib.ExitStack() as held:  # all at once, so that no free port is chosen twice
        chosen = [held.enter_context(_bound(port, ports)).getsockname()[1] for port in astuple(ports)]
    return Ports(*chosen)


def _bound(port: int, ports: Ports) -> socket.socket:
    """Bind a port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton does: a port just left is free
    try:
        listener.bind((LOOPBACK, port))
        listener.listen()
    except PermissionError as error:
        listener.close()
        raise ServeError(f"port {port} needs root rights; give one above 1023") from error
    except (OSError, OverflowError) as error:
        listener.close()
        raise port_error(port, ports) from error
    return listener


def port_error(port: int, ports: Ports) -> ServeError:
    """Return the error for a port that is in use or out of range."""
    if not 0 <= port <= 65535:
        return ServeError(f"{port} is not a port; expected 1 to 65535, or 0 for any free one")
    name = next(field.name for field in fields(ports) if getattr(ports, field.name) == port)
    return ServeError(
        f"port {port} is taken by another program: stop that, or give another with --{name}-port (0: any free one)"
    )

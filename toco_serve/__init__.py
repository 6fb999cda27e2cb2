"""Serving: Triton on this machine (``EmbeddedTriton``), typed clients (``Client``, ``AsyncClient``). Needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toco_serve.client.async_client import AsyncClient
    from toco_serve.client.client import Client
    from toco_serve.client.connection import Tls
    from toco_serve.client.retry import Retry
    from toco_serve.client.segmentation import Outcome, Segmentation
    from toco_serve.server.embedded import EmbeddedTriton
    from toco_serve.server.ports import Ports

__all__ = ["AsyncClient", "Client", "EmbeddedTriton", "Outcome", "Ports", "Retry", "Segmentation", "Tls"]

_HOMES = {
    "AsyncClient": "toco_serve.client.async_client",
    "Client": "toco_serve.client.client",
    "EmbeddedTriton": "toco_serve.server.embedded",
    "Outcome": "toco_serve.client.segmentation",
    "Ports": "toco_serve.server.ports",
    "Retry": "toco_serve.client.retry",
    "Segmentation": "toco_serve.client.segmentation",
    "Tls": "toco_serve.client.connection",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: gRPC alone takes longer to load than all else here."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Serving: Triton on this machine (``EmbeddedTriton``), typed clients (``Client``, ``AsyncClient``). Needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toco_serve.async_client import AsyncClient
    from toco_serve.client import Client
    from toco_serve.connection import Tls
    from toco_serve.ports import Ports
    from toco_serve.retry import Retry
    from toco_serve.segmentation import Outcome, Segmentation
    from toco_serve.server import EmbeddedTriton

__all__ = ["AsyncClient", "Client", "EmbeddedTriton", "Outcome", "Ports", "Retry", "Segmentation", "Tls"]

_HOMES = {
    "AsyncClient": "toco_serve.async_client",
    "Client": "toco_serve.client",
    "EmbeddedTriton": "toco_serve.server",
    "Outcome": "toco_serve.segmentation",
    "Ports": "toco_serve.ports",
    "Retry": "toco_serve.retry",
    "Segmentation": "toco_serve.segmentation",
    "Tls": "toco_serve.connection",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: gRPC alone takes longer to load than all else here."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

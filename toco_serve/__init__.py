"""Serving: Triton on this machine (``EmbeddedTriton``) and a typed client (``Client``). Needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toco_serve.client import Client
    from toco_serve.ports import Ports
    from toco_serve.segmentation import Segmentation
    from toco_serve.server import EmbeddedTriton

__all__ = ["Client", "EmbeddedTriton", "Ports", "Segmentation"]

_HOMES = {
    "Client": "toco_serve.client",
    "EmbeddedTriton": "toco_serve.server",
    "Ports": "toco_serve.ports",
    "Segmentation": "toco_serve.segmentation",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: gRPC alone takes longer to load than all else here."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

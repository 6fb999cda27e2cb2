"""The steps that an exchange with the server is made of: a client takes them, and sends back what came of each."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar


@dataclass(frozen=True)
class Call:
    """Ask the server: a method that tritonclient's two gRPC clients share, and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Compute something that takes longer than an event loop should wait."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Pause:
    """Let time pass."""

    seconds: float


T = TypeVar("T")
Step: TypeAlias = Call | Work | Pause
Exchange: TypeAlias = Generator[Step, Any, T]

"""The steps of an exchange with the server: a client performs each step and sends its result back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar


@dataclass(frozen=True)
class Call:
    """Call the server: a method that both gRPC clients of tritonclient have, and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Run a function that would block an event loop for too long."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


T = TypeVar("T")
Step: TypeAlias = Call | Work | Pause
Exchange: TypeAlias = Generator[Step, Any, T]

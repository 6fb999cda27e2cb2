"""The stages of a pipeline on a console: what runs now, how far it is, how long it took, and which one failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from toco_core.errors import ExportError, TocoError


class Stage:
    """One stage while it runs."""

    def __init__(self, name: str, status: Status) -> None:
        self.name = name
        self.outcome = ""
        self._status = status

    def progress(self, text: str) -> None:
        """Show how far the stage is; safe to call from any thread."""
        self._status.update(f"{self.name}: {escape(text)}")


class Stages:
    """Runs named stages one after the other on a console.

    Attributes:
        console: Where they are shown.
        seconds: Time of each stage that ended well; one that ran several times counts all of them.
    """

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self.console = console

    @contextmanager
    def stage(self, name: str, task: str) -> Iterator[Stage]:
        """Show a stage while its block runs and its time when it ends.

        Args:
            name: One word.
            task: What it does, shown while it runs. The block may set ``outcome``, shown when it has ended.

        Raises:
            TocoError: What the block raised, of the same class, its message led by the stage's name.
            ExportError: A file could not be written.
        """
        start = perf_counter()
        with self.console.status(f"{name}: {escape(task)}") as status:
            stage = Stage(name, status)
            try:
                yield stage
            except TocoError as error:
                raise type(error)(f"{name} failed: {error}") from error
            except OSError as error:
                reason = error.strerror or str(error)
                raise ExportError(f"{name} failed: a file cannot be written ({reason}); make room, or give another "
                                  "place with --repository") from error  # fmt: skip
        seconds = perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        line = f"[bold]{name:<9}[/bold]{seconds:6.1f} s  {escape(stage.outcome or task)}"
        self.console.print(line, highlight=False, soft_wrap=True)

"""What every command has: its argument parser, one-line errors with an exit status, progress bars."""

from __future__ import annotations

import argparse
import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from toco_core import __version__
from toco_core.errors import TocoError
from toco_core.text import nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Main = Callable[[Sequence[str] | None], int]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """An argument parser with one-line errors that name the nearest flag or value.

    Flags are declared with dashes; underscores are accepted in their place. A flag whose value may be left out
    (``nargs="?"``) takes the next word only if it is one of its choices.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def parse_args(  # type: ignore[override]  # argparse would also take a namespace to fill
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Read a command line; a mistake in it ends the program with one line and status 2."""
        given = list(self._spelled(sys.argv[1:] if args is None else args))
        arguments, unexpected = self.parse_known_args(given, namespace)
        if unexpected:
            self.error(f"unexpected argument {unexpected[0]!r}")
        return arguments

    def error(self, message: str) -> NoReturn:
        """Print an error in one line, with the way to the help, and exit with status 2."""
        print_error(self.prog, f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_BAD_INPUT)

    def _spelled(self, given: Sequence[str]) -> Iterator[str]:
        """Yield the words, each flag spelled as it was declared."""
        flags = self._flags()
        for index, word in enumerate(given):
            name, equals, value = word.partition("=")
            if word == "--":
                yield from given[index:]
                return
            if word.startswith("--") and " " not in name:
                name = name.replace("_", "-")
                if name not in flags:
                    self.error(f"unknown argument {word.partition('=')[0]!r}{_nearest_flag(name, flags)}")
                action, after = flags[name], given[index + 1] if index + 1 < len(given) else ""
                if action.nargs == "?" and not equals and after not in (action.choices or ()):
                    equals, value = "=", str(action.const)
            yield f"{name}{equals}{value}"

    def _flags(self) -> dict[str, argparse.Action]:
        """Return the flags of the command and its subcommands."""
        flags = dict(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    flags |= parser._flags()
        return flags

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            message = f"unknown value {value!r}{nearest(str(value), known)}; expected one of {', '.join(known)}"
            raise argparse.ArgumentError(action, message)


def _nearest_flag(name: str, flags: Iterable[str]) -> str:
    """Suggest a flag: one that ends in the name (``--optimizer.lr`` for ``--lr``), or the most similar."""
    ends = [flag for flag in flags if flag.rpartition(".")[2] == name.removeprefix("--")]
    return f", did you mean {' or '.join(map(repr, ends))}?" if ends else nearest(name, flags)


def progress_bars(console: Console, *, transient: bool = False) -> Progress:
    """Return progress bars with count, elapsed time and ETA.

    Args:
        console: Where they are shown.
        transient: Remove them at the end; where the console is no terminal, show none.
    """
    from rich.progress import (  # noqa: PLC0415  (rich takes longer to import than --help takes)
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        disable=transient and not console.is_terminal,
    )


def print_error(prog: str, message: str) -> None:
    """Print ``prog: error: message`` to standard error."""
    print(f"{prog}: error: {message}", file=sys.stderr)  # noqa: T201 (a command may print)


def run_command(prog: str) -> Callable[[Main], Main]:
    """Turn a ``main(argv)`` into a command that shows no traceback for what a user can correct.

    A ``TocoError`` gives its sentence and status 2, Ctrl-C status 130, a closed pipe status 0. Any other exception is
    a bug and keeps its traceback.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def command(argv: Sequence[str] | None = None) -> int:
            atexit.register(gc.freeze)  # otherwise the last garbage collection walks through torch for a second or two
            try:
                return main(argv)
            except TocoError as error:
                print_error(prog, str(error))
                return EXIT_BAD_INPUT
            except KeyboardInterrupt:
                print_error(prog, "interrupted")
                return EXIT_INTERRUPTED
            except BrokenPipeError:  # whoever read the output closed it, as `| head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0

        return command

    return decorate

"""The shell around every command: errors become one sentence and an exit status, never a traceback."""

from __future__ import annotations

import argparse
import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from toco_core import __version__
from toco_core.errors import TocoError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Main = Callable[[Sequence[str] | None], int]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one to speak of."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints have the same one-line form as all other errors."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the complaint in one line, with the way to the help, and exit with status 2."""
        print_error(self.prog, f"{message}; see {self.prog} --help")
        raise SystemExit(EXIT_BAD_INPUT)


def print_error(prog: str, message: str) -> None:
    """Print ``prog: error: message`` to standard error."""
    print(f"{prog}: error: {message}", file=sys.stderr)  # noqa: T201 (a command may print)


def run_command(prog: str) -> Callable[[Main], Main]:
    """Turn a ``main(argv)`` into a command that never shows a traceback for what a user can put right.

    A ``TocoError`` gives its sentence and status 2, Ctrl-C status 130, a closed pipe status 0. Anything else is a
    defect of ours and keeps its traceback.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def command(argv: Sequence[str] | None = None) -> int:
            atexit.register(gc.freeze)  # or Python's last collection searches all of torch, for a second or two
            try:
                return main(argv)
            except TocoError as error:
                print_error(prog, str(error))
                return EXIT_BAD_INPUT
            except KeyboardInterrupt:
                print_error(prog, "interrupted")
                return EXIT_INTERRUPTED
            except BrokenPipeError:  # the reader of our output went away, as `| head` does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 0

        return command

    return decorate

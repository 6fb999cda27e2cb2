"""Measuring in several fresh processes, one after the other: what two runs of a program differ by shows within one."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.harness.timing import Series
from toco_core.errors import TocoError

PROCESSES = 4
Found = Mapping[str, Any]
Work = Callable[..., Iterator[Found]]


def add_processes_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that says how many processes measure."""
    parser.add_argument(
        "--processes",
        type=int,
        choices=range(1, 21),
        default=PROCESSES,
        metavar="N",
        help=f"fresh processes that measure all of it, one after the other (default: {PROCESSES})",
    )


def in_words(number: int) -> str:
    """Say how many processes measured."""
    return "one process" if number == 1 else f"{number} fresh processes, one after the other"


def in_processes(number: int, work: Work, *arguments: Any) -> Iterator[Found]:
    """Let fresh processes measure the same, one after the other; a single one is this process.

    Args:
        number: Of processes.
        work: A function of a module that takes ``arguments`` and gives all that it has found so far, again and again.
        arguments: What can be pickled.

    Yields:
        What all of them have found so far, ``merged``.

    Raises:
        TocoError: A process was killed.
        Exception: What ``work`` raises.
    """
    finished: list[Found] = []
    for _ in range(number):
        latest: Found = {}
        for latest in work(*arguments) if number == 1 else in_another(work, *arguments):
            yield merged([*finished, latest])
        finished.append(latest)


def in_another(work: Work, *arguments: Any) -> Iterator[Found]:
    """Go through ``work`` in a fresh process; see ``in_processes``."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()
    try:
        with suppress(EOFError):
            while True:
                found = receiver.recv()
                if isinstance(found, Exception):
                    raise found
                yield found
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        process.join()
    if process.exitcode:
        raise TocoError(f"a measuring process ended with status {process.exitcode} (-9: often too little memory); "
                        "measure less at a time")  # fmt: skip


def merged(found: Sequence[Any]) -> Any:
    """Make one of what several processes found: series and lists are joined, mappings merged, else the first counts."""
    first = found[0]
    if isinstance(first, Series):
        return Series.joined(found)
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for one in found for key in one)
        return {key: merged([one[key] for one in found if key in one]) for key in keys}
    return [item for one in found for item in one] if isinstance(first, list) else first


def _send(sender: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    """Send what ``work`` gives, and what stops it."""
    with suppress(KeyboardInterrupt, BrokenPipeError):  # whoever reads was interrupted, too
        try:
            for found in work(*arguments):
                sender.send(found)
        except Exception as error:
            sender.send(error)

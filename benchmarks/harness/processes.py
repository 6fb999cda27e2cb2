"""Measuring in several fresh processes, one after the other, so that a report shows the difference between runs."""

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
    """Add the flag for the number of measuring processes."""
    parser.add_argument(
        "--processes",
        type=int,
        choices=range(1, 21),
        default=PROCESSES,
        metavar="N",
        help=f"number of fresh processes that each measure everything, one after the other (default: {PROCESSES})",
    )


def in_words(number: int) -> str:
    """Return the number of processes in words."""
    return "one process" if number == 1 else f"{number} fresh processes, one after the other"


def in_processes(number: int, work: Work, *arguments: Any) -> Iterator[Found]:
    """Measure the same in fresh processes, one after the other; with one process, in this process.

    Args:
        number: Number of processes.
        work: A module-level function that takes ``arguments`` and yields all its results so far, repeatedly.
        arguments: Arguments that can be pickled.

    Yields:
        The results of all processes so far, ``merged``.

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
    """Run ``work`` in a fresh process; see ``in_processes``."""
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
    """Merge the results of several processes: join series and lists, merge mappings, keep the first of other values."""
    first = found[0]
    if isinstance(first, Series):
        return Series.joined(found)
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for one in found for key in one)
        return {key: merged([one[key] for one in found if key in one]) for key in keys}
    return [item for one in found for item in one] if isinstance(first, list) else first


def _send(sender: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    """Send what ``work`` yields, and its exception."""
    with suppress(KeyboardInterrupt, BrokenPipeError):  # the reading process was interrupted, too
        try:
            for found in work(*arguments):
                sender.send(found)
        except Exception as error:
            sender.send(error)

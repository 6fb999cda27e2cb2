"""Files that appear whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toco_core.errors import ConfigError

_UNFINISHED = ".unfinished"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # from <fcntl.h> and <linux/fs.h>


def make_output_folder(path: Path) -> None:
    """Make the folder that ``--out`` names, before any work is done.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path} ({error.strerror}); make room or give another --out") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to, and rename it to ``path`` when the block ends well.

    If the block raises, the temporary file goes away and whatever stood at ``path`` still stands there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path``, whole or not at all; text is UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill, and put it in the place of ``path`` when the block ends well.

    The two trade places in one step where the file system can do that (Linux), so that even a kill leaves a whole
    folder at ``path``. What a killed process left beside it, the next one to write there takes away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"):
        with _held(left) as nobody_elses:
            if nobody_elses:
                shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent))
    temporary.chmod(0o755)
    try:
        with _held(temporary):
            yield temporary
            _put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder until the block or this process ends, however it ends; give whether no other process holds it."""
    if sys.platform == "win32":  # a folder cannot be locked there: none counts as left over
        yield False
        return
    import fcntl  # noqa: PLC0415

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; what stood at ``path`` ends up at ``temporary``."""
    if not path.exists():
        temporary.rename(path)
    elif not _exchange(temporary, path):
        previous = temporary.with_name(f"{temporary.name}.previous")
        path.rename(previous)
        try:
            temporary.rename(path)
        except BaseException:
            previous.rename(path)
            raise
        previous.rename(temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders trade places in one step; give whether this system and file system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    first, second = (os.fsencode(path.absolute()) for path in (one, other))
    return rename is not None and rename(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE) == 0

"""A process that supervises one Triton: ends it on request or when its owner has ended, and cleans up after it.

It is a process of its own because a killed owner cannot clean up, and because the kernel's parent-death signal follows
the parent's *thread*: a server started from a worker thread would end with that thread. Triton (2.51) itself leaves its
Python processes and their shared memory behind when a port is in use, and answers only errors after one of these
processes has died: then this process restarts it.

Run as a script, with the standard library alone:
``supervisor.py OWNER_PID SHARED_MEMORY_PREFIX WORKSPACE GRACE_S COMMAND...``; standard output is Triton's log file,
opened for reading too. SIGTERM ends it after running requests are answered, SIGINT at once, both with status 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

# From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# The owner sends the first, or the second if the server is not ready yet.
FINISH, AT_ONCE = signal.SIGTERM, signal.SIGINT

POLL_S = 0.2
POLL_STOPPING_S = 0.02
LOG_FD = 1
LOG_TAIL = 8192

# What Triton 2.51 prints last when every model is loaded and every port is open.
SERVES = b"Started Metrics Service"
# Triton 2.51 unloads a model when its requests are answered, and then sleeps one second per Python process. When `toco`
# is unloaded, no request is left and Triton only sleeps.
ANSWERED = b"successfully unloaded 'toco' version"
# What it prints when a model did not load, before it unloads the others.
GIVES_UP = b"All models are stopped, unloading models"

# Triton 24.06 and later does not restart a model's Python process: every request fails, but the server reports ready.
MAX_LOSSES, LOSSES_WITHIN_S = 5, 60.0
CHECK_S, SEARCH_S = 1.0, 10.0


class Ending(enum.Enum):
    """Why the server ends."""

    BY_ITSELF = enum.auto()
    ASKED = enum.auto()
    GAVE_UP = enum.auto()
    LOST_A_PROCESS = enum.auto()


def main() -> int:
    """Run the command until it ends; return 0 if that was requested, else its status as a shell gives it."""
    owner, shm_prefix, workspace, grace_s, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {FINISH, AT_ONCE, signal.SIGCHLD})
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # Triton's orphans become our children: what we reap has surely ended

    def in_own_group() -> None:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    losses: list[float] = []
    try:
        while True:
            log_start = os.fstat(LOG_FD).st_size
            server = subprocess.Popen(command, preexec_fn=in_own_group)  # noqa: PLW1509 (there is one thread here)
            ending = supervise(server, int(owner), float(grace_s), log_start)
            end_group(server)
            if ending is Ending.BY_ITSELF:
                return server.returncode if server.returncode >= 0 else 128 - server.returncode
            if ending is not Ending.LOST_A_PROCESS:
                return 0 if ending is Ending.ASKED else 1
            remove_shared_memory(shm_prefix)
            losses = [*(at for at in losses if time.monotonic() - at < LOSSES_WITHIN_S), time.monotonic()]
            if len(losses) >= MAX_LOSSES:
                report(f"error: a model's process ended {MAX_LOSSES} times in {LOSSES_WITHIN_S:.0f} s")
                return 1
            report("a model's process ended: Triton is started again")
    finally:
        remove_shared_memory(shm_prefix)
        shutil.rmtree(workspace, ignore_errors=True)


def supervise(server: subprocess.Popen[bytes], owner: int, grace_s: float, log_start: int) -> Ending:
    """Wait until the server has ended or has nothing left to do, and return why."""
    asked, serves, deadline, models = False, False, math.inf, Children(server.pid)
    while server.poll() is None and time.monotonic() < deadline:
        received = signal.sigtimedwait({FINISH, AT_ONCE, signal.SIGCHLD}, POLL_STOPPING_S if asked else POLL_S)
        if received and received.si_signo == AT_ONCE:
            return Ending.ASKED
        if not asked and ((received and received.si_signo == FINISH) or os.getppid() != owner):
            server.terminate()
            asked, deadline = True, time.monotonic() + grace_s
        if asked:
            if log_says(ANSWERED, log_start):
                break
        elif log_says(GIVES_UP, log_start):
            return Ending.GAVE_UP
        else:
            serves = serves or log_says(SERVES, log_start)
            if serves and models.lost_one():
                return Ending.LOST_A_PROCESS
    return Ending.ASKED if asked else Ending.BY_ITSELF


class Children:
    """The child processes of a process; the models run in some of them."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._known: list[int] = []
        self._next_check = self._next_search = 0.0

    def lost_one(self) -> bool:
        """Return whether one of them has ended; looks once a second."""
        now = time.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + CHECK_S
        if now >= self._next_search:  # reads every process of the machine
            everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (names only)
            self._known = [pid for pid in everyone if state_and_parent(pid)[1] == self._parent]
            self._next_search = now + SEARCH_S
        return any(state_and_parent(pid)[0] in "ZX" for pid in self._known)


def state_and_parent(pid: int) -> tuple[str, int]:
    """Return a process's state ("Z": ended, not yet reaped) and its parent; "X" and 0 if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "X", 0
    return fields[0], int(fields[1])


def log_says(words: bytes, log_start: int) -> bool:
    """Return whether the end of the running Triton's log contains these words."""
    size = os.fstat(LOG_FD).st_size
    return words in os.pread(LOG_FD, LOG_TAIL, max(log_start, size - LOG_TAIL))


def report(message: str) -> None:
    """Add a line to the log."""
    os.write(LOG_FD, f"{message}\n".encode())


def end_group(server: subprocess.Popen[bytes]) -> None:
    """Kill the server and its Python processes, and wait until all have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory files of the Python processes."""
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())

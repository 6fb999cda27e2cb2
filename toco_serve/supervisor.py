"""A process that keeps one Triton: ends it when asked, or when its owner is gone, and leaves nothing behind.

Why a process of its own: a killed owner cannot clean up, and the kernel's "signal me when my parent dies" follows the
parent's *thread*, so that a server started from a worker thread would die with that thread. Triton itself leaves its
Python processes and their shared memory behind when it fails to take a port (2.51).

Run as a script, with the standard library alone:
``supervisor.py OWNER_PID SHARED_MEMORY_PREFIX WORKSPACE GRACE_S COMMAND...``; standard output is Triton's log file,
opened for reading too. SIGTERM ends it when the requests in hand are answered, SIGINT at once, both with status 0.
"""

from __future__ import annotations

import contextlib
import ctypes
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

# Owners ask with the first, or with the second when nothing is served yet.
FINISH, AT_ONCE = signal.SIGTERM, signal.SIGINT

POLL_S = 0.2
POLL_STOPPING_S = 0.02
LOG_FD = 1

# Triton 2.51 unloads a model when its requests are answered, and sleeps a second for each Python process on the way,
# one after another. When `toco` is unloaded no request is left and only sleeping is.
ANSWERED = b"successfully unloaded 'toco' version"
# What it prints when a model did not load, before it unloads the others in the same way.
GIVES_UP = b"All models are stopped, unloading models"


def main() -> int:
    """Run the command until it is to stop; return 0 if that was asked for, else its status as a shell would."""
    owner, shm_prefix, workspace, grace_s, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {FINISH, AT_ONCE, signal.SIGCHLD})
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # Triton's orphans become ours: what we reap is gone for sure

    def in_own_group() -> None:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    try:
        server = subprocess.Popen(command, preexec_fn=in_own_group)  # noqa: PLW1509 (there is one thread here)
        asked = supervise(server, int(owner), float(grace_s))
        gave_up = server.poll() is None
        end_group(server)
        if asked or gave_up:
            return 0 if asked else 1
        return server.returncode if server.returncode >= 0 else 128 - server.returncode
    finally:
        remove_shared_memory(shm_prefix)
        shutil.rmtree(workspace, ignore_errors=True)


def supervise(server: subprocess.Popen[bytes], owner: int, grace_s: float) -> bool:
    """Wait until the server has ended or has nothing left to do; say whether it was asked to stop."""
    asked, deadline = False, math.inf
    while server.poll() is None and time.monotonic() < deadline:
        received = signal.sigtimedwait({FINISH, AT_ONCE, signal.SIGCHLD}, POLL_STOPPING_S if asked else POLL_S)
        if received and received.si_signo == AT_ONCE:
            return True
        if not asked and ((received and received.si_signo == FINISH) or os.getppid() != owner):
            server.terminate()
            asked, deadline = True, time.monotonic() + grace_s
        if log_says(ANSWERED if asked else GIVES_UP):
            break
    return asked


def log_says(words: bytes) -> bool:
    """Look for words at the end of Triton's log."""
    size = os.fstat(LOG_FD).st_size
    return words in os.pread(LOG_FD, 8192, max(0, size - 8192))


def end_group(server: subprocess.Popen[bytes]) -> None:
    """End what is left of the server and of its Python processes, and wait until all are gone."""
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

"""One Triton process and its supervisor, from start to end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

from toco_core.errors import ServeError
from toco_serve.server import supervisor
from toco_serve.server.http import responds
from toco_serve.server.options import EXIT_TIMEOUT_S, embedded_arguments
from toco_serve.server.ports import Ports, port_error
from toco_serve.server.triton_log import failure_reason, port_taken
from toco_serve.server.wheel import assemble_backends, find_triton

READY_POLL_S = 0.05


class TritonProcess:
    """A started Triton.

    Args:
        repository: The model repository.
        ports: Where it listens, on 127.0.0.1.
        log_file: Triton's log file; an existing one is renamed to end in ``.1``. None: no file.
        shared_memory: Whether clients may use shared memory.

    Raises:
        ServeError: There is no Triton for this Python, or the log cannot be written.
    """

    def __init__(self, repository: Path, ports: Ports, log_file: Path | None, *, shared_memory: bool) -> None:
        self._repository = repository
        self._ports = ports
        self._ready = False
        wheel = find_triton()
        self._log = open_log(log_file)
        self._workspace = Path(tempfile.mkdtemp(prefix="toco-serve-"))
        try:
            environment = assemble_backends(wheel, self._workspace)
            shm_prefix = f"toco_{secrets.token_hex(6)}_"
            options = embedded_arguments(repository, ports, self._workspace, shm_prefix, shared_memory=shared_memory)
            settings = [os.getpid(), shm_prefix, self._workspace, EXIT_TIMEOUT_S + 2]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, *map(str, settings), str(wheel.binary), *options],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only this process, which then stops the server in order
            )
        except BaseException:
            self._clean_up()
            raise

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the supervisor runs."""
        return self._process.poll() is None

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until every model is loaded and warm and the metrics, which start last, are served.

        Raises:
            ServeError: Triton ended before that (with its reason), or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not (responds(self._ports.metrics, "/metrics") and responds(self._ports.http, "/v2/health/ready")):
            if not self.running:
                raise self._startup_failure()
            if time.monotonic() > deadline:
                raise ServeError(
                    f"Triton is not ready after {timeout_s:g} s; give it longer (--ready-timeout), or see "
                    "its log (--log FILE) for what it waits for"
                )
            time.sleep(READY_POLL_S)
        self._ready = True

    def stop(self) -> None:
        """Let running requests finish, then end the server."""
        self._process.send_signal(supervisor.FINISH if self._ready else supervisor.AT_ONCE)
        try:
            self._process.wait(EXIT_TIMEOUT_S + 10)
        except subprocess.TimeoutExpired:  # the supervisor hangs; when it is killed, the kernel ends the server
            self._process.kill()
            self._process.wait()
        self._clean_up()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end of the server; return whether it ended within the time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_reason(self) -> str:
        """Return why the server ended: the signal that killed it, or its last error message."""
        status = self._process.returncode
        killed_by = -status if status < 0 else status - 128
        if killed_by > 0:
            return f"it was killed by {signal.Signals(killed_by).name}"
        return failure_reason(self._read_log())

    def _startup_failure(self) -> ServeError:
        """Return the error of a server that ended before it was ready."""
        if (port := port_taken(self._read_log())) is not None:
            return port_error(port, self._ports)
        return ServeError(f"Triton cannot serve {self._repository}: {self.end_reason()}")

    def _read_log(self) -> str:
        """Return all that Triton printed so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def _clean_up(self) -> None:
        """Close the log and remove the backend directory; the supervisor removes it if this process cannot."""
        self._log.close()
        shutil.rmtree(self._workspace, ignore_errors=True)


def open_log(path: Path | None) -> BinaryIO:
    """Open a new log file for writing and reading; an existing one is renamed to end in ``.1``. None: a temporary file.

    Raises:
        ServeError: The file cannot be written.
    """
    if path is None:
        return tempfile.TemporaryFile()
    try:
        if path.is_file():
            path.replace(path.with_name(f"{path.name}.1"))
        return path.open("w+b")
    except OSError as error:
        raise ServeError(f"cannot write the log file {path}: {error.strerror}; give another path") from error

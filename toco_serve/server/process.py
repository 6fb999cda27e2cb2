"""One Triton and the supervisor that keeps it, from its start to its end."""

from __future__ import annotations

import http.client
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
from toco_serve.server.log import failure_reason, port_taken
from toco_serve.server.options import EXIT_TIMEOUT_S, embedded_arguments
from toco_serve.server.ports import LOOPBACK, Ports, port_error
from toco_serve.server.wheel import assemble_backends, find_triton

READY_POLL_S = 0.05


class TritonProcess:
    """A started Triton.

    Args:
        repository: What it serves.
        ports: Where it listens, on 127.0.0.1.
        log_file: Where its log goes; what is there is kept, with ``.1`` at the end of its name.
        shared_memory: Whether clients may share memory with it.

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
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server in order
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
        """Ask until every model is loaded and warm and the metrics, which start last, are there.

        Raises:
            ServeError: It ended before, with the reason, or was not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while not (answers(self._ports.metrics, "/metrics") and answers(self._ports.http, "/v2/health/ready")):
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
        """Let the requests in hand finish, then end the server."""
        self._process.send_signal(supervisor.FINISH if self._ready else supervisor.AT_ONCE)
        try:
            self._process.wait(EXIT_TIMEOUT_S + 10)
        except subprocess.TimeoutExpired:  # the supervisor hangs; its end makes the kernel end the server
            self._process.kill()
            self._process.wait()
        self._clean_up()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end of the server; tell whether it came."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end_reason(self) -> str:
        """Say why the server ended: the signal that killed it, or what it printed last."""
        status = self._process.returncode
        killed_by = -status if status < 0 else status - 128
        if killed_by > 0:
            return f"it was killed by {signal.Signals(killed_by).name}"
        return failure_reason(self._read_log())

    def _startup_failure(self) -> ServeError:
        """Say why the server ended before it was ready."""
        if (port := port_taken(self._read_log())) is not None:
            return port_error(port, self._ports)
        return ServeError(f"Triton cannot serve {self._repository}: {self.end_reason()}")

    def _read_log(self) -> str:
        """Return all that Triton printed so far."""
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def _clean_up(self) -> None:
        """Let go of log and backend directory; the supervisor removes the latter too when this process cannot."""
        self._log.close()
        shutil.rmtree(self._workspace, ignore_errors=True)


def open_log(path: Path | None) -> BinaryIO:
    """Open a log file anew, for reading too, and keep the last one as ``.1``; without a path one that nobody sees.

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


def answers(port: int, path: str) -> bool:
    """Tell whether a GET of a path on this machine succeeds."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

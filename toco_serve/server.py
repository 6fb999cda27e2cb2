"""Triton on this machine, without a container: started, watched and stopped from Python."""

from __future__ import annotations

import http.client
import logging
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

from toco.errors import ServeError
from toco.manifest import Manifest, read_manifest, sha256_of
from toco_serve import supervisor
from toco_serve.ports import DEFAULT_PORTS, LOOPBACK, Ports, choose_ports, port_error
from toco_serve.triton_log import failure_reason, port_taken
from toco_serve.triton_wheel import assemble_backends, find_triton

READY_POLL_S = 0.05
EXIT_TIMEOUT_S = 20

# Nothing here needs these, and a client could read or change the server through them: the key is known to nobody.
RESTRICTED = "shared-memory,model-repository,trace,logging"

__all__ = ["EmbeddedTriton", "Ports"]

logger = logging.getLogger(__name__)


class EmbeddedTriton:
    """A Triton server of this machine, for as long as the ``with`` block lasts.

    The server ends with the block, and also when this process ends in any other way, with all its processes and
    shared memory: a supervisor process sees to that (``toco_serve/supervisor.py``).

    Args:
        repository: A model repository that ``toco-export`` wrote.
        ports: Where to listen, on 127.0.0.1 only.
        ready_timeout_s: How long loading and warming up the models may take.
        log_file: Where Triton's own log goes; without one it is kept until the server ends, for error messages.

    Raises:
        ServeError: On entry, one sentence for each of: no Triton for this Python, no repository, an artefact that is
            not the manifest's, a port that is taken, a model that does not load, not ready in time.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        ready_timeout_s: float = 120.0,
        log_file: str | Path | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.ports = ports
        self.ready_timeout_s = ready_timeout_s
        self._log_file = Path(log_file) if log_file else None
        self._manifest: Manifest | None = None
        self._workspace: Path | None = None
        self._log: BinaryIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def manifest(self) -> Manifest:
        """What is served."""
        if self._manifest is None:
            self._manifest = read_manifest(self.repository)
        return self._manifest

    @property
    def grpc_url(self) -> str:
        """Where clients ask, without a scheme, as gRPC wants it."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Triton's HTTP endpoint."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Triton's metrics, in Prometheus' format."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the supervisor, the parent of all that the server is: end it and the server ends."""
        if self._process is None:
            raise ServeError("the server is not running; start it first")
        return self._process.pid

    def start(self) -> None:
        """Check the repository, start the server and wait until it is ready; see the class for what it raises."""
        if self._process is not None:
            raise ServeError("the server is running already; stop it first")
        self._manifest = read_manifest(self.repository)
        check_artefacts(self.repository, self._manifest)
        self.ports = choose_ports(self.ports)
        try:
            self._launch()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        logger.info("Triton serves %s at %s", self.repository, self.grpc_url)

    def stop(self) -> None:
        """Let the requests in hand finish, then end the server; does nothing where none runs."""
        if self._process is not None:
            self._process.send_signal(supervisor.FINISH if self._ready else supervisor.AT_ONCE)
            try:
                self._process.wait(EXIT_TIMEOUT_S + 10)
            except subprocess.TimeoutExpired:  # the supervisor hangs; its end makes the kernel end the server
                self._process.kill()
                self._process.wait()
            self._process, self._ready = None, False
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._workspace is not None:  # the supervisor removes it too, when this process cannot
            shutil.rmtree(self._workspace, ignore_errors=True)
            self._workspace = None

    def wait(self) -> None:
        """Block for as long as the server runs.

        Raises:
            ServeError: It ended by itself, with Triton's reason.
        """
        assert self._process is not None
        self._process.wait()
        raise ServeError(f"Triton ended by itself: {self._end_reason()}; start it again")

    def _launch(self) -> None:
        """Start the supervisor, which starts Triton."""
        wheel = find_triton()
        self._workspace = Path(tempfile.mkdtemp(prefix="toco-serve-"))
        environment = assemble_backends(wheel, self._workspace)
        self._log = open_log(self._log_file)
        shm_prefix = f"toco_{secrets.token_hex(6)}_"
        command = [str(wheel.binary), *triton_arguments(self.repository, self.ports, self._workspace, shm_prefix)]
        settings = [os.getpid(), shm_prefix, self._workspace, EXIT_TIMEOUT_S + 2]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, *map(str, settings), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server in order
        )

    def _wait_until_ready(self) -> None:
        """Ask until every model is loaded and warm and the metrics, which start last, are there."""
        assert self._process is not None
        deadline = time.monotonic() + self.ready_timeout_s
        while not (answers(self.ports.http, "/v2/health/ready") and answers(self.ports.metrics, "/metrics")):
            if self._process.poll() is not None:
                raise self._startup_failure()
            if time.monotonic() > deadline:
                raise ServeError(
                    f"Triton is not ready after {self.ready_timeout_s:g} s; give it longer (--ready-timeout), or see "
                    "its log (--log FILE) for what it waits for"
                )
            time.sleep(READY_POLL_S)
        self._ready = True

    def _startup_failure(self) -> ServeError:
        """Say why the server ended before it was ready."""
        if (port := port_taken(self._read_log())) is not None:
            return port_error(port, self.ports)
        return ServeError(f"Triton cannot serve {self.repository}: {self._end_reason()}")

    def _end_reason(self) -> str:
        """Say why the server ended: the signal that killed it, or what it printed last."""
        assert self._process is not None
        status = self._process.returncode
        killed_by = -status if status < 0 else status - 128
        if killed_by > 0:
            return f"it was killed by {signal.Signals(killed_by).name}"
        return failure_reason(self._read_log())

    def _read_log(self) -> str:
        """Return all that Triton printed so far."""
        assert self._log is not None
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")


def open_log(path: Path | None) -> BinaryIO:
    """Open a log file anew, for reading too; without a path one that goes away when it is closed.

    Raises:
        ServeError: The file cannot be written.
    """
    if path is None:
        return tempfile.TemporaryFile()
    try:
        return path.open("w+b")
    except OSError as error:
        raise ServeError(f"cannot write the log file {path}: {error.strerror}; give another path") from error


def triton_arguments(repository: Path, ports: Ports, backends: Path, shm_prefix: str) -> list[str]:
    """Return Triton's command line: loopback only, no control by clients, nothing completed by guessing."""
    key = f"toco-admin={secrets.token_hex(16)}"
    options: dict[str, object] = {
        "model-repository": repository.resolve(),
        "backend-directory": backends,
        "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        "model-control-mode": "none",
        "strict-readiness": "true",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": LOOPBACK,
        "http-port": ports.http,
        "http-restricted-api": f"{RESTRICTED}:{key}",
        "grpc-address": LOOPBACK,
        "grpc-port": ports.grpc,
        "grpc-restricted-protocol": f"{RESTRICTED}:{key}",
        "metrics-address": LOOPBACK,
        "metrics-port": ports.metrics,
    }
    return ["--disable-auto-complete-config", *(f"--{name}={value}" for name, value in options.items())]


def check_artefacts(repository: Path, manifest: Manifest) -> None:
    """Compare every artefact with its checksum in the manifest.

    Raises:
        ServeError: One is missing or another file.
    """
    for artefact in manifest.artefacts:
        path = repository / "toco" / "1" / artefact.file
        if not path.is_file():
            raise ServeError(f"{path} is missing, but the manifest lists it; export the run again")
        if path.stat().st_size != artefact.num_bytes or sha256_of(path) != artefact.sha256:
            raise ServeError(f"{path} is not the file that was exported: its SHA-256 differs; export the run again")


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

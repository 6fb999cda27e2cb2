"""Triton on this machine without a container: started, supervised, updated and stopped from Python."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from toco_core.errors import ServeError
from toco_core.manifest import Manifest, read_manifest, sha256_of
from toco_serve.server.ports import DEFAULT_PORTS, LOOPBACK, Ports, choose_ports
from toco_serve.server.process import TritonProcess

__all__ = ["EmbeddedTriton", "Ports"]

logger = logging.getLogger(__name__)


class EmbeddedTriton:
    """A Triton server on this machine that runs inside a ``with`` block.

    The server ends with the block, and also when this process ends in any other way. A supervisor process
    (``toco_serve/server/supervisor.py``) then ends all its processes and removes their shared memory.

    Args:
        repository: A model repository that ``toco-export`` wrote.
        ports: Where to listen, on 127.0.0.1 only.
        ready_timeout_s: Longest time for loading and warming up the models, in seconds.
        log_file: File for Triton's log; an existing one is renamed to end in ``.1``. None: no file.
        shared_memory: Let clients send tensors in shared memory (``Client(url, shared_memory=True)``). Any process that
            reaches the port can then make the server read and write this user's shared memory.

    Raises:
        ServeError: On entry: there is no Triton for this Python, no repository, an artefact that differs from the
            manifest, a port in use, a model that does not load, or the server is not ready in time.
    """

    def __init__(
        self,
        repository: str | Path,
        *,
        ports: Ports = DEFAULT_PORTS,
        ready_timeout_s: float = 120.0,
        log_file: str | Path | None = None,
        shared_memory: bool = False,
    ) -> None:
        self.repository = Path(repository)
        self.ports = ports
        self.ready_timeout_s = ready_timeout_s
        self._log_file = Path(log_file) if log_file else None
        self._shared_memory = shared_memory
        self._manifest: Manifest | None = None
        self._process: TritonProcess | None = None

    def __enter__(self) -> EmbeddedTriton:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the served repository."""
        if self._manifest is None:
            self._manifest = read_manifest(self.repository)
        return self._manifest

    @property
    def grpc_url(self) -> str:
        """The gRPC address for clients, without a scheme."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """The URL of Triton's HTTP endpoint."""
        return f"http://{LOOPBACK}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """The URL of Triton's metrics in Prometheus format."""
        return f"http://{LOOPBACK}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the supervisor, the parent of all server processes: when it ends, the server ends."""
        return self._running.pid

    def start(self) -> None:
        """Check the repository, start the server and wait until it is ready; raises what the class describes."""
        if self._process is not None:
            raise ServeError("the server is running already; stop it first")
        self._manifest = checked_manifest(self.repository)
        self.ports = choose_ports(self.ports)
        self._process = self._started(self.repository, self.ports)
        logger.info("Triton serves %s at %s", self.repository, self.grpc_url)

    def roll_out(self, repository: str | Path | None = None) -> None:
        """Replace the served models by a repository's present content, without interruption.

        A second server starts on the same ports. When it is ready, the first finishes its requests and ends. Clients
        that the first refuses meanwhile must retry to reach the second; ``Client`` does. The metrics cannot share a
        port and move to another (``metrics_url``).

        Args:
            repository: Another repository; None: the same one, whose content may have changed.

        Raises:
            ServeError: As on entry, or the classes differ; the first server then keeps serving.
        """
        first, folder = self._running, self.repository if repository is None else Path(repository)
        manifest = checked_manifest(folder)
        if manifest.classes != self.manifest.classes:
            raise ServeError(
                f"{folder} has other classes than the served model, and connected clients would use the wrong "
                "names; stop the server and start it again"
            )
        ports = replace(self.ports, metrics=choose_ports(Ports(0, 0, 0)).metrics)
        self._process = self._started(folder, ports)
        self.repository, self.ports, self._manifest = folder, ports, manifest
        first.stop()
        logger.info("Triton serves %s at %s", self.repository, self.grpc_url)

    def stop(self) -> None:
        """Let running requests finish, then end the server; does nothing if none runs."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until the server ends, or for ``timeout_s``.

        Raises:
            ServeError: It ended by itself; with Triton's reason.
        """
        process = self._running
        if process.wait(timeout_s):
            raise ServeError(f"Triton ended by itself: {process.end_reason()}; start it again")

    @property
    def _running(self) -> TritonProcess:
        """The running process."""
        if self._process is None:
            raise ServeError("the server is not running; start it first")
        return self._process

    def _started(self, repository: Path, ports: Ports) -> TritonProcess:
        """Start a process and wait until it is ready."""
        process = TritonProcess(repository, ports, self._log_file, shared_memory=self._shared_memory)
        try:
            process.wait_until_ready(self.ready_timeout_s)
        except BaseException:
            process.stop()
            raise
        return process


def checked_manifest(repository: Path) -> Manifest:
    """Read the manifest and check that this Triton can serve it and that the artefacts match it.

    Raises:
        ServeError: There is no manifest, it is for another Triton backend, or an artefact is missing or differs.
    """
    manifest = read_manifest(repository)
    if manifest.backend != "python":
        built = manifest.versions.get("tensorrt") if manifest.backend == "tensorrt" else None
        raise ServeError(
            f"{repository} is for Triton's backend {manifest.backend}{f' with TensorRT {built}' if built else ''}, "
            "which the Triton of this machine does not have; serve it from NVIDIA's container (toco-serve --docker), "
            "or export with --backend python"
        )
    for artefact in manifest.artefacts:
        path = repository / "toco" / "1" / artefact.file
        if not path.is_file():
            raise ServeError(f"{path} is missing, but the manifest lists it; export the run again")
        if path.stat().st_size != artefact.num_bytes or sha256_of(path) != artefact.sha256:
            raise ServeError(f"{path} is not the file that was exported: its SHA-256 differs; export the run again")
    return manifest

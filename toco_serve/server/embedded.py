"""Triton on this machine, without a container: started, watched, renewed and stopped from Python."""

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
    """A Triton server of this machine, for as long as the ``with`` block lasts.

    The server ends with the block, and also when this process ends in any other way, with all its processes and
    shared memory: a supervisor process sees to that (``toco_serve/server/supervisor.py``).

    Args:
        repository: A model repository that ``toco-export`` wrote.
        ports: Where to listen, on 127.0.0.1 only.
        ready_timeout_s: How long loading and warming up the models may take.
        log_file: Where Triton's own log goes, the last one being kept as ``.1``; without one it is kept until the
            server ends, for error messages.
        shared_memory: Let clients hand over tensors in shared memory (``Client(url, shared_memory=True)``). Any process
            that reaches the port can then let the server read and write memory that this user shares.

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
        return self._running.pid

    def start(self) -> None:
        """Check the repository, start the server and wait until it is ready; see the class for what it raises."""
        if self._process is not None:
            raise ServeError("the server is running already; stop it first")
        self._manifest = checked_manifest(self.repository)
        self.ports = choose_ports(self.ports)
        self._process = self._started(self.repository, self.ports)
        logger.info("Triton serves %s at %s", self.repository, self.grpc_url)

    def roll_out(self, repository: str | Path | None = None) -> None:
        """Serve what a repository holds now in the place of what is served, without a gap.

        A second server is started on the same ports, and when it is ready the first answers what it has in hand and
        ends. A client that the first turns away meanwhile asks again and finds the second, as ``Client`` does by
        itself. The metrics, which cannot share a port, move to another (``metrics_url``).

        Args:
            repository: Another repository; without one the same, whose content may have been replaced.

        Raises:
            ServeError: As on entry, or the classes are others; what was served goes on being served.
        """
        first, folder = self._running, self.repository if repository is None else Path(repository)
        manifest = checked_manifest(folder)
        if manifest.classes != self.manifest.classes:
            raise ServeError(
                f"{folder} has other classes than what is served, which connected clients would call by the wrong "
                "names; stop the server and start it anew"
            )
        ports = replace(self.ports, metrics=choose_ports(Ports(0, 0, 0)).metrics)
        self._process = self._started(folder, ports)
        self.repository, self.ports, self._manifest = folder, ports, manifest
        first.stop()
        logger.info("Triton serves %s at %s", self.repository, self.grpc_url)

    def stop(self) -> None:
        """Let the requests in hand finish, then end the server; does nothing where none runs."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Block for as long as the server runs, or for ``timeout_s``.

        Raises:
            ServeError: It ended by itself, with Triton's reason.
        """
        process = self._running
        if process.wait(timeout_s):
            raise ServeError(f"Triton ended by itself: {process.end_reason()}; start it again")

    @property
    def _running(self) -> TritonProcess:
        """The process that serves."""
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
    """Read the manifest and check that this Triton can serve what it describes, and that this is what is there.

    Raises:
        ServeError: There is no manifest, it is for another of Triton's backends, or an artefact is missing or another
            file.
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

"""The processes of a server, and what they leave behind."""

import time
from pathlib import Path

import psutil

from toco_serve import EmbeddedTriton


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Footprint:
    """The processes and the shared memory files of a running server."""

    def __init__(self, pid: int) -> None:
        self.processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        stubs = [p.cmdline() for p in self.processes if p.cmdline()[0].endswith("triton_python_backend_stub")]
        self.shared_memory = [Path("/dev/shm", argument[2]) for argument in stubs]
        assert len(stubs) == 6, "two processes for toco and four for toco_image"
        assert all(path.exists() for path in self.shared_memory)

    def left(self) -> list[str]:
        return [str(process) for process in self.processes if is_alive(process)] + [
            str(path) for path in self.shared_memory if path.exists()
        ]

    def left_after(self, seconds: float) -> list[str]:
        deadline = time.monotonic() + seconds
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.left()


def stubs_of(server: EmbeddedTriton, model: str) -> list[psutil.Process]:
    """The living processes that run a model."""
    found = []
    for process in psutil.Process(server.pid).children(recursive=True):
        if is_alive(process) and any(f"/{model}/1/model.py" in argument for argument in process.cmdline()):
            found.append(process)
    return found

"""Runs pytest many times on one tree of sources, from a process that has imported the heavy libraries already.

``WarmPytest`` starts this file as a program. It forks for each run, so that a run sees the sources as they lie in the
tree at that moment, and leaves nothing behind for the next.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

LARGEST_MEMORY = 16 << 30  # bytes of address space of one process of a run: a mutant may ask for any size


@dataclass(frozen=True)
class PytestRun:
    """How a run ended.

    Attributes:
        passed: Every test passed.
        reason: The first test that failed, or what else ended the run.
        seconds: Wall time.
    """

    passed: bool
    reason: str
    seconds: float


class WarmPytest:
    """A process that runs the tests of one tree.

    Args:
        tree: The folder that pytest runs in, and the first that modules are imported from.
        scratch: An existing folder for temporary files and the output of the last run, ``output.txt``.
        preloaded: Modules to import before the first run.
    """

    def __init__(self, tree: Path, scratch: Path, preloaded: Sequence[str] = ()) -> None:
        self.tree, self.output = tree, scratch / "output.txt"
        self._scratch = scratch
        settings = {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other packages' plugins: a second or two a run
            "PYTHONPATH": str(tree),
            "TMPDIR": str(scratch),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, *preloaded],
            cwd=tree,
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> WarmPytest:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.terminate()  # a run in progress ends too: see _serve
        self._process.wait()

    def run(self, tests: Sequence[str], limit_s: float, *, write_bytecode: bool = False) -> PytestRun:
        """Run tests until the first fails.

        Args:
            tests: What pytest takes: options, files, tests.
            limit_s: Wall time after which the run counts as failed.
            write_bytecode: Keep the compiled sources for later runs: only for sources that stay as they are.
        """
        request = {"tests": [*tests, f"--basetemp={self._scratch / 'pytest'}"], "limit_s": limit_s,
                   "output": str(self.output), "write_bytecode": write_bytecode}  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that runs the tests ended with status {self._process.wait()}")
        return PytestRun(**json.loads(answer))


class _FirstFailure:
    """A plugin of pytest that keeps the first test, or the first file, that failed."""

    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.name = self.name or f"import of {report.nodeid}"


def _serve(preloaded: Sequence[str]) -> None:
    """Answer the requests on standard input, until it ends."""
    sys.path.remove(str(Path(__file__).parent))  # its modules are no top-level ones
    for name in preloaded:
        importlib.import_module(name)
    gc.freeze()  # or each child's collections would go through all of torch
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    """Run pytest in a child, with a time limit; end what the child started."""
    began = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _child(request, writer)
    os.close(writer)
    status = None
    try:
        while status is None and time.monotonic() - began < request["limit_s"]:
            time.sleep(0.01)
            ended, status_word = os.waitpid(child, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(status_word)
    finally:
        _kill(child)
        if status is None:
            os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        failed = pipe.read()
    reason = "" if status == 0 else "out of time" if status is None else failed or f"exit status {status}"
    return {"passed": status == 0, "reason": reason, "seconds": round(time.monotonic() - began, 2)}


def _kill(child: int) -> None:
    """Kill a child and the processes that it started, some of which leave its group."""
    started = []
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(child).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started, timeout=10)


def _child(request: dict[str, Any], writer: int) -> None:
    """Run pytest in this process, which ends with it."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (LARGEST_MEMORY, LARGEST_MEMORY))
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if not request["write_bytecode"]:
            sys.dont_write_bytecode = True
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        first = _FirstFailure()
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *request["tests"]], plugins=[first]))
        os.write(writer, first.name.encode())
        sys.stdout.flush()
    except BaseException:  # the child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    _serve(sys.argv[1:])

"""Triton from the wheel ``nvidia-pytriton``: where its parts are, and what they need to run."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from numpy import __version__ as numpy_version

from toco_core.errors import ServeError

PRODUCTION = "for production use NVIDIA's container nvcr.io/nvidia/tritonserver, 26.06 or newer"

STUB = "triton_python_backend_stub"
FIRST_UNSUPPORTED_NUMPY = 2  # the stub reads an array's size from NumPy 1's memory layout


@dataclass(frozen=True)
class TritonWheel:
    """The parts of the wheel.

    Attributes:
        binary: The server.
        python_backend: Folder of the python backend's library and of ``triton_python_backend_utils.py``.
        stub: The program that runs a ``model.py``, for the running Python version.
        libraries: Folder of the shared libraries that the server and the stub need.
    """

    binary: Path
    python_backend: Path
    stub: Path
    libraries: Path


def find_triton() -> TritonWheel:
    """Find Triton in the installed wheel.

    Raises:
        ServeError: The wheel is missing, or does not support the running Python version or NumPy.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServeError(
            "Triton is not installed: pip install nvidia-pytriton (Linux on x86-64 only); " + PRODUCTION,
        )
    package = Path(spec.submodule_search_locations[0])
    triton = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = triton / "python_backend_stubs"
    stub = stubs / version / STUB
    if not stub.is_file():
        available = sorted((path.parent.name for path in stubs.glob(f"*/{STUB}")), key=lambda v: int(v.split(".")[1]))
        raise ServeError(
            f"the installed nvidia-pytriton cannot run models on Python {version}: it has parts for "
            f"{', '.join(available) or 'no version'}; use one of these Pythons"
        )
    if int(numpy_version.split(".")[0]) >= FIRST_UNSUPPORTED_NUMPY:
        raise ServeError(
            f"NumPy {numpy_version} is installed, with which the installed nvidia-pytriton answers every request with "
            f"empty arrays; it needs an older one: pip install 'numpy<{FIRST_UNSUPPORTED_NUMPY}'"
        )
    return TritonWheel(
        binary=triton / "bin" / "tritonserver",
        python_backend=triton / "backends" / "python",
        stub=stub,
        libraries=package.parent / "nvidia_pytriton.libs",
    )


def assemble_backends(wheel: TritonWheel, folder: Path) -> dict[str, str]:
    """Make ``folder`` a backend directory for Triton and return the environment variables for Triton.

    The stub embeds Python. It must load the ``libpython`` of this process, which is linked into ``folder`` too. It
    finds the packages of this environment through the first ``python3`` on ``PATH``.

    Raises:
        ServeError: This Python has no shared library.
    """
    backend = folder / "python"
    backend.mkdir(parents=True)
    for part in (*wheel.python_backend.iterdir(), wheel.stub):
        if part.is_file():
            (backend / part.name).symlink_to(part)
    libpython = find_libpython()
    (folder / libpython.name).symlink_to(libpython)
    search = [str(folder), str(wheel.libraries), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONHOME", "PYTHONSTARTUP"}}
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, search))
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return environment


def find_libpython() -> Path:
    """Find the shared library of the running Python.

    Raises:
        ServeError: It was built without one.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    library_dir = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (library_dir, library_dir / multiarch, Path(sys.base_prefix) / "lib", Path("/usr/lib") / multiarch):
        if (folder / name).is_file():
            return folder / name
    raise ServeError(
        f"this Python ({sys.executable}) has no shared library {name}, which Triton's python backend loads; "
        f"install it (apt-get install {name.removesuffix('.so.1.0')}) or use a Python built with --enable-shared"
    )

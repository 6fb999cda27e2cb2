"""How much memory a process has taken, and how much there still is."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int | None:
    """Return the most bytes that this process has held, its libraries included; None where the system does not tell.

    Linux's own figure, where there is one: that of ``getrusage`` begins with the parent's, which a child has at birth.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines() if status.is_file() else []
    if kibibytes := [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]:
        return 1024 * kibibytes[0]
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  (not on Windows)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory() -> int | None:
    """Return the bytes that a process can still take without swapping; None where the system does not tell."""
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="ascii").splitlines() if info.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)

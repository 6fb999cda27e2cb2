"""Where and how the figures of a report were measured, and the report's files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import timm
import torch

from toco_core import __version__
from toco_core.files import write_atomic


def provenance(device: torch.device, module: str, argv: Sequence[str] | None) -> dict[str, Any]:
    """Return what figures depend on besides the code: machine, versions, date, command."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU: {cpu_name()}",
        "host": f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__,
                     "cuda": torch.version.cuda if on_gpu else None,
                     "cudnn": torch.backends.cudnn.version() if on_gpu else None  # type: ignore[no-untyped-call]
                     , "toco": __version__},
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join(["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]),
    }  # fmt: skip


def cpu_name() -> str:
    """Return the processor's name if Linux gives it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def provenance_text(found: Mapping[str, Any]) -> str:
    """Return the provenance as the first paragraph of a report."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    load = "" if found["load_average"] is None else f"; load average {found['load_average']:.1f}"
    return f"{found['device']}; host {found['host']}{load}; {versions}; {found['date']}.\n\n`{found['command']}`"


def save_report(path: Path, result: Mapping[str, Any], text: str) -> None:
    """Write a report to ``path`` with .json and with .md added."""
    write_atomic(path.with_name(path.name + ".json"), json.dumps(result, indent=1) + "\n")
    write_atomic(path.with_name(path.name + ".md"), text + "\n")

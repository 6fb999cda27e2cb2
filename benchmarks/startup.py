"""How long each command takes to say something: CPU seconds of `--help`, and of `from toco_serve import Client`.

    python -m benchmarks.startup
    python -m benchmarks.startup --repeats 15 --report benchmarks/results/NAME

Each call is a process of its own, as a user starts it.
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.provenance import provenance, provenance_text, save_report
from benchmarks.harness.timing import SPREAD, interleaved, spread_cell, warm_up
from toco_core.cli import run_command
from toco_core.text import markdown_table

CPU = torch.device("cpu")
LIMIT_S = {"--help": 0.7, "from toco_serve import Client": 0.3}
METHOD = """\
CPU seconds (user and system) of whole processes, which take turns, after one call of each that is not counted. {python}
is `python -c pass`: what Python itself takes, and part of every other row. """


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, choices=range(1, 101), default=9, metavar="N", help="rounds of all calls"
    )
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md")
    arguments = parser.parse_args(argv)
    origin = provenance(CPU, "benchmarks.startup", argv)
    result = {"provenance": origin, "repeats": arguments.repeats, "cpu_seconds": measure(commands(), arguments.repeats)}
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def commands() -> dict[str, list[str]]:
    """Return what is measured: the name of each row and its command line."""
    scripts = sorted(point.name for point in entry_points(group="console_scripts") if point.value.startswith("toco_"))
    folder = Path(sys.executable).parent
    return {
        "python": [sys.executable, "-c", "pass"],
        "from toco_serve import Client": [sys.executable, "-c", "from toco_serve import Client"],
        **{f"{name} --help": [str(folder / name), "--help"] for name in scripts},
    }


def measure(command_lines: Mapping[str, Sequence[str]], repeats: int) -> dict[str, Any]:
    """Run all command lines in turn, some times; return the CPU seconds of each."""
    calls: dict[str, Callable[[], object]] = {
        name: functools.partial(subprocess.run, line, check=True, stdout=subprocess.DEVNULL)
        for name, line in command_lines.items()
    }
    for call in calls.values():
        warm_up(call, CPU, 1)
    return {name: series.as_json() for name, series in interleaved(calls, CPU, repeats, cpu_seconds).items()}


def cpu_seconds() -> float:
    """Return the user and system time of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table, with what it was measured on and how."""
    rows = []
    for name, found in result["cpu_seconds"].items():
        limit = next((f"{seconds:g} s" for end, seconds in LIMIT_S.items() if name.endswith(end)), "")
        rows.append([f"`{name}`", f"{found['median']:.3f} s", spread_cell(found), limit])
    return "\n\n".join([
        "# CPU time of starting",
        provenance_text(result["provenance"]),
        markdown_table(("process", "median", "spread", "at most"), rows),
        METHOD.format(python="`python`") + SPREAD,
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("startup")(main)(None))

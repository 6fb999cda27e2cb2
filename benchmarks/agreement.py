"""Whether two runs of a benchmark agree: each figure of their reports, and whether its two intervals overlap.

    python -m benchmarks.agreement FIRST.json SECOND.json

Status 1 where some do not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toco_core.cli import run_command
from toco_core.errors import ConfigError
from toco_core.text import markdown_table

CELL = ("backend", "size", "batch")  # what tells the cells of a list apart


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two reports and print the figures that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs=2, type=Path, metavar="REPORT.json", help="what two runs wrote")
    first, second = (_read(path) for path in parser.parse_args(argv).reports)
    shared = [name for name in first if name in second]
    if not shared:
        raise ConfigError("the reports share no figure with a spread; give those of two runs of one benchmark")
    rows = [
        [name, *(f"{one['median']:.4g} ({one['low']:.4g} to {one['high']:.4g})" for one in (first[name], second[name])),
         f"{second[name]['median'] / first[name]['median']:.2f}"]
        for name in shared if not overlap(first[name], second[name])
    ]  # fmt: skip
    if rows:
        print(markdown_table(("figure", "first", "second", "second / first"), rows), end="\n\n")
    print(f"{len(shared) - len(rows)} of {len(shared)} figures agree within their stated spread.")
    return 1 if rows else 0


def figures(report: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give every figure of a report that has a spread, with its place in the report."""
    if isinstance(report, Mapping):
        if {"median", "low", "high"} <= report.keys():
            yield name, report
        for key, value in report.items():
            yield from figures(value, f"{name}/{key}" if name else key)
    elif isinstance(report, list):
        for index, value in enumerate(report):
            cell = value if isinstance(value, Mapping) else {}
            place = " ".join(str(cell[key]) for key in CELL if key in cell) or str(index)
            yield from figures(value, f"{name}/{place}")


def overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether the intervals of two figures overlap."""
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        return dict(figures(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no report of a benchmark ({error}); give its .json") from error


if __name__ == "__main__":
    sys.exit(run_command("agreement")(main)(None))

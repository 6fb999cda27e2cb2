"""The command ``toco-data``: look at a data set before training on it."""

# ruff: noqa: PLC0415  (the readers are imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from toco_core.cli import CommandParser, progress_bars, run_command
from toco_core.config import parse_config
from toco_core.errors import ConfigError, DataError
from toco_core.files import write_atomic
from toco_core.flags import add_setting, given_settings
from toco_core.text import percent
from toco_train.config import DataConfig

if TYPE_CHECKING:
    from toco_train.data.check import CheckReport, Finding, Severity

PROG = "toco-data"
EXIT_WOULD_FAIL = 1
_EXAMPLES = 3
_PAIRS = 8
_STYLES: dict[Severity, str] = {"stop": "bold red", "look": "yellow", "fine": "green"}


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-data``; return 0, or 1 if training would fail."""
    arguments = _parse(argv)
    config = parse_config(DataConfig, given_settings(arguments, DataConfig), "the command line")
    from toco_train.data.check import examine_all, report
    from toco_train.data.opening import open_source

    source = open_source(config, seed=arguments.seed, allow_missing=True)
    examined = examine_all(source, tiny_px=arguments.tiny, num_workers=arguments.workers)
    with progress_bars(Console(stderr=True), transient=True) as progress:
        total = len(source.train) + len(source.val)
        found = report(
            source, list(progress.track(examined, total=total, description="reading")), tiny_px=arguments.tiny
        )
    console = Console()
    for part in _rendered(found):
        console.print(part)
    console.print(_verdict(found, config, arguments.seed), soft_wrap=True)  # a command must stay one line, to be copied
    if arguments.json is not None:
        _save(arguments.json, found)
    return EXIT_WOULD_FAIL if found.training_would_fail else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(PROG, "Look at a data set before training on it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "Read every image of a data set once; report what would stop training and what deserves a look."
    check = commands.add_parser("check", description=about, help="read every image once and report what was found")
    check.add_argument("path", metavar="SOURCE", help="VOC devkit, COCO, images/ with labels.csv, or class folders")
    for name in ("no_class", "group_by", "val_fraction", "coco_year"):
        add_setting(check, DataConfig, name)
    check.add_argument("--seed", type=int, default=0, metavar="INT", help="seed of the split, as for training")
    check.add_argument("--tiny", type=int, default=32, metavar="PX", help="an image with a shorter side is called tiny")
    check.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N", help="threads that read images"
    )
    check.add_argument("--json", type=Path, metavar="FILE", help="write the whole report there, with every name")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}, expected 1 or more")
    return arguments


def _save(path: Path, found: CheckReport) -> None:
    """Write the report as JSON.

    Raises:
        DataError: It cannot be written.
    """
    try:
        write_atomic(path, found.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; give another --json") from error


def _rendered(found: CheckReport) -> Iterator[RenderableType]:
    """Yield the parts of the report."""
    yield Text(f"{found.kind} data {found.path}\n{found.description}\n")
    yield _class_table(found)
    if found.co_occurrence:
        yield _pair_table(found)
    if found.findings:
        yield _finding_table(found.findings)


def _class_table(found: CheckReport) -> Table:
    """Return images by class and split."""
    table = Table(title="images", title_justify="left")
    table.add_column("")
    for name in found.splits:
        table.add_column(name, justify="right")
        table.add_column("%", justify="right", style="dim")
    splits = list(found.splits.values())

    def add(name: str, numbers: Sequence[int], style: str | None = None) -> None:
        cells = [(f"{number:,}", percent(number / split.images) if split.images else "")
                 for number, split in zip(numbers, splits, strict=True)]  # fmt: skip
        table.add_row(escape(name), *(cell for pair in cells for cell in pair), style=style)

    add("all", [split.images for split in splits], "bold")
    add("without any class", [split.without_class for split in splits])
    add("with a mask", [split.with_mask for split in splits])
    table.add_section()
    for name in found.classes:
        add(name, [split.by_class[name] for split in splits])
    return table


def _pair_table(found: CheckReport) -> Table:
    """Return the classes that are most often in one image."""
    left_out = len(found.co_occurrence) - _PAIRS
    caption = f"and {left_out} rarer pairs" if left_out > 0 else None
    table = Table(title="classes in one image", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("class")
    table.add_column("and")
    table.add_column("images", justify="right")
    for first, second, number in found.co_occurrence[:_PAIRS]:
        table.add_row(escape(first), escape(second), f"{number:,}")
    return table


def _finding_table(findings: Sequence[Finding]) -> Table:
    """Return what was found, the worst first."""
    table = Table(title="found", title_justify="left", show_lines=True)
    table.add_column("", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("what, for example, and what is done or to do", overflow="fold")
    for finding in findings:
        what = Text(finding.title)
        for example in finding.examples[:_EXAMPLES]:
            what.append(f"\n  {example}", style="dim")
        if finding.count > _EXAMPLES:
            what.append(f"\n  and {finding.count - _EXAMPLES:,} more", style="dim italic")
        what.append(f"\n-> {finding.remedy}")
        table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), f"{finding.count:,}", what)
    return table


def _verdict(found: CheckReport, config: DataConfig, seed: int) -> Text:
    """Return the last line: what training would stop at, or the command that reads the same data in the same way."""
    if found.training_would_fail:
        reasons = "; ".join(f.title for f in found.findings if f.severity == "stop")
        return Text(f"training would fail: {reasons}", style=_STYLES["stop"])
    flags = {
        "--no-class": config.no_class,
        "--group-by": config.group_by,
        "--data.val-fraction": None if config.val_fraction == DataConfig().val_fraction else config.val_fraction,
        "--data.coco-year": config.coco_year,
        "--seed": seed or None,
    }
    given = [part for flag, value in flags.items() if value is not None for part in (flag, str(value))]
    command = shlex.join(["toco-train", "--data", config.path, *given, "--out", "RUN"])
    return Text(f"training can read all of it    next: {command}", style="bold")

"""The command ``toco-export``: a run folder in, a model repository out."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from toco_core.cli import CommandParser, print_error, run_command
from toco_core.config import parse_config
from toco_core.flags import add_setting, add_settings, given_settings
from toco_export.config import ExportConfig

PROG = "toco-export"
EXIT_DISAGREES = 1


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-export``; return 0, or 1 if an artefact does not agree with PyTorch."""
    arguments = _parse(argv)
    settings = given_settings(arguments, ExportConfig)
    if arguments.fp16:
        settings["precisions"] = [*settings.get("precisions", ()), "fp16"]
    config = parse_config(ExportConfig, settings, "the command line")
    from rich.console import Console

    from toco_export.parity.verification import ParityError
    from toco_export.pipeline.run import export_run

    try:
        export_run(arguments.run, arguments.repository or arguments.run / "repository", config, Console())
    except ParityError as error:
        print_error(PROG, str(error))
        return EXIT_DISAGREES
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(PROG, "Export a run as a model repository for Triton, and compare it with PyTorch.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder that toco-train wrote")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="model repository to write (default: RUN/repository)"
    )
    add_setting(parser, ExportConfig, "precisions", "--precision")
    parser.add_argument("--fp16", action="store_true", help="short for --precision fp16")
    add_settings(parser, ExportConfig, "settings")
    return parser.parse_args(argv)

"""The command ``toco-export``: a run folder in, a model repository out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from toco.command import CommandParser, print_error, run_command

PROG = "toco-export"
EXIT_DISAGREES = 1


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-export``; return 0, or 1 if an artefact does not agree with PyTorch."""
    options = vars(_parser().parse_args(argv))
    from rich.console import Console  # noqa: PLC0415 (after parsing: --help must not wait for torch)

    from toco_export.parity import ParityError  # noqa: PLC0415
    from toco_export.pipeline import ExportConfig, export_run  # noqa: PLC0415

    run = options.pop("run")
    repository = options.pop("repository", run / "repository")
    try:
        export_run(run, repository, ExportConfig(**options), Console())
    except ParityError as error:
        print_error(PROG, str(error))
        return EXIT_DISAGREES
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(PROG, "Export a run as a model repository that Triton serves, checked against PyTorch.")
    parser.argument_default = argparse.SUPPRESS  # what is not given is left to ExportConfig
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder that toco-train wrote")
    parser.add_argument(
        "--fp16", action="store_true", help="add an fp16 ONNX file and a TensorRT-RTX engine made of it"
    )
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="model repository to write (default: RUN/repository)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of real images to check with (default: the run's data set)"
    )
    return parser

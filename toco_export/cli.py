"""The command ``toco-export``: a run folder in, a model repository out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from toco_core.cli import CommandParser, print_error, run_command
from toco_core.config import parse_config
from toco_core.errors import ConfigError
from toco_core.manifest import Shape
from toco_export.config import RELEASE, ExportConfig, parse_shape

PROG = "toco-export"
EXIT_DISAGREES = 1
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
BACKENDS = ("auto", "python", "onnxruntime", "onnxruntime-tensorrt", "tensorrt")
TARGETS = ("onnx", "tensorrt", "tensorrt-rtx", "auto")


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-export``; return 0, or 1 if an artefact does not agree with PyTorch."""
    options = vars(_parser().parse_args(argv))
    from rich.console import Console  # noqa: PLC0415 (after parsing: --help must not wait for torch)

    from toco_export.parity.verification import ParityError  # noqa: PLC0415
    from toco_export.pipeline.run import export_run  # noqa: PLC0415

    run = options.pop("run")
    repository = options.pop("repository", run / "repository")
    if options.pop("fp16", False):
        options["precisions"] = [*options.get("precisions", ()), "fp16"]
    try:
        export_run(run, repository, parse_config(ExportConfig, options, "the command line"), Console())
    except ParityError as error:
        print_error(PROG, str(error))
        return EXIT_DISAGREES
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(PROG, "Export a run as a model repository that Triton serves, checked against PyTorch.")
    parser.argument_default = argparse.SUPPRESS  # what is not given is left to ExportConfig
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder that toco-train wrote")
    parser.add_argument(
        "--precision", dest="precisions", nargs="+", action="extend", choices=PRECISIONS, metavar="P",
        help=f"what to multiply in, one or more of {', '.join(PRECISIONS)} (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--fp16", action="store_true", help="short for --precision fp16")
    parser.add_argument(
        "--target", choices=TARGETS, help="ONNX files alone, or an engine of each precision too (default: auto, the "
        "engine whose library is here)",
    )  # fmt: skip
    for name, what in (("min", "smallest"), ("opt", "tuned"), ("max", "largest")):
        parser.add_argument(
            f"--{name}", type=_shape, metavar="SHAPE", help=f"{what} batch and size: BATCHxSIDE or BATCHxHEIGHTxWIDTH"
        )
    parser.add_argument("--static", action="store_true", help="fix height and width at those of --opt")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="model repository to write (default: RUN/repository)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of real images to check with (default: the run's data set)"
    )
    parser.add_argument(
        "--max-drop", type=float, metavar="POINTS", help="int8: percentage points of the pixels whose label may differ "
        "from PyTorch's; layers that would cost more stay in fp32 (default: 0.5)",
    )  # fmt: skip
    parser.add_argument("--workspace-gib", type=float, metavar="GIB", help="most memory that an engine's layers may "
                        "use beside its weights (default: all there is)")  # fmt: skip
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="TensorRT's kernel timings, to use again")
    parser.add_argument(
        "--in-container", type=_release, metavar="RELEASE", help="build TensorRT engines with docker inside NVIDIA's "
        "Triton image of a release, such as 26.06: only the TensorRT that built an engine loads it",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=BACKENDS, help="Triton's backend for the network (default: auto, tensorrt where there is "
        "such an engine, else python, which runs everywhere); onnxruntime-tensorrt: TensorRT builds an engine from the "
        "ONNX file on the machine that serves it",
    )  # fmt: skip
    parser.add_argument("--portable", action="store_true", help="a TensorRT engine for other GPUs and versions too")
    return parser


def _release(text: str) -> str:
    """Read a release of Triton as argparse wants it."""
    if not re.fullmatch(RELEASE, text):
        raise argparse.ArgumentTypeError(f"{text!r} is no release of Triton; give year and month, such as 26.06")
    return text


def _shape(text: str) -> Shape:
    """Read a shape as argparse wants it."""
    try:
        return parse_shape(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error

"""The command ``toco-train``: train a network, or go on with a run."""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape

from toco_core.cli import EXIT_BAD_INPUT, CommandParser, run_command
from toco_core.config import nearest
from toco_core.errors import ConfigError, DataError, TocoError
from toco_train.commands.display import TrainingDisplay
from toco_train.commands.evaluate import evaluation_table
from toco_train.config import TrainConfig, load_config, preset_names
from toco_train.data.mask_tags import refuse_unusable_masks
from toco_train.data.opening import open_source
from toco_train.data.source import with_masks
from toco_train.runs.layout import CONFIG_FILE
from toco_train.training.checkpoint import Progress
from toco_train.training.signals import StopSignals

PROG = "toco-train"
_SECONDS_TO_SPEAK = 10


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-train``; under torchrun this is one of several processes, and the first of them speaks."""
    from toco_train.training.loop import train  # noqa: PLC0415  (so that --help and complaints come at once)
    from toco_train.training.run_folder import RunFolder  # noqa: PLC0415

    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        with nullcontext() if first else redirect_stderr(io.StringIO()):
            config, arguments = _parse(sys.argv[1:] if argv is None else argv)
        source = open_source(config.data, seed=config.seed)  # complain of the data before anything is written
        refuse_unusable_masks(source.val)
        run = RunFolder(
            arguments.out,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            is_main=os.environ.get("RANK", "0") == "0",
        )
    except (TocoError, SystemExit):
        if first:
            raise
        return _leave_the_word_to_the_first()
    console = Console(quiet=not first)
    try:
        with TrainingDisplay(console, config.steps) as display:
            progress = train(config, run, display, StopSignals())
    except (TocoError, RuntimeError) as error:
        if first or (isinstance(error, DataError) and display.source is not None):  # an image of this process alone
            raise
        return _leave_the_word_to_the_first()
    finally:
        run.close()
    if display.evaluation is not None and display.source is not None:
        console.print(evaluation_table(display.evaluation, display.source.classes))
    if run.is_main and progress.evaluated == config.steps:
        _report(console, run.path, display)
    console.print(_closing_lines(run.path, config, progress), highlight=False, soft_wrap=True)
    return 0


def _report(console: Console, run: Path, display: TrainingDisplay) -> None:
    """Write the report of a finished run; whatever goes wrong there, the run stays finished."""
    from toco_train.reports.run_report import write_report  # noqa: PLC0415
    from toco_train.runs.load import load_run  # noqa: PLC0415  (as in main)

    source = display.source
    assert source is not None
    if display.evaluation is None and with_masks(source.val):  # resumed when nothing was left to do
        return
    try:
        model = load_run(run).to("cuda" if torch.cuda.is_available() else "cpu")
        path = write_report(run, model, load_config(None, run / CONFIG_FILE, {}), source, display.evaluation)
    except (Exception, KeyboardInterrupt) as error:
        what = "" if isinstance(error, TocoError) else f"{type(error).__name__} "
        reason = " ".join(f"{what}{error}".split())
        console.print(
            f"[bold]warning[/] the run is finished, but its report could not be written: {escape(reason)}; "
            f"try again with: toco-report {run}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    else:
        console.print(f"[bold]report[/] {path}", highlight=False, soft_wrap=True)


def _leave_the_word_to_the_first() -> int:
    """Return the exit status when the first process has had time to say what is wrong: torchrun ends all together."""
    time.sleep(_SECONDS_TO_SPEAK)
    return EXIT_BAD_INPUT


def _closing_lines(run: Path, config: TrainConfig, progress: Progress) -> str:
    """Say what there is now, and what to do with it."""
    if progress.evaluated < config.steps:
        return (
            f"[bold]stopped[/] at step {progress.step} of {config.steps}, and saved; "
            f"go on with: {PROG} --resume --out {run}"
        )
    lines = [f"[bold]run[/] {run}    next: toco-eval {run}    toco-export {run} --fp16"]
    if progress.best_step not in (0, progress.step):
        lines.append(
            f"[bold]best[/] segmentation mIoU on the way: {progress.best_miou:.3f} at step {progress.best_step}, "
            f"kept as the run {run}/best"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """Turn the command line into a configuration."""
    parser = CommandParser(
        PROG,
        "Learn segmentation masks from image-level labels. Any setting of the configuration is a flag "
        "(--optimizer.lr 1e-4); flags beat --config, which beats --preset. Ctrl-C saves and stops; --resume goes on.",
    )
    parser.usage = (
        f"{PROG} [--preset NAME] [--config FILE] --data DIR --out RUN [--SETTING VALUE ...]\n"
        f"       {PROG} --resume --out RUN"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"settings to start from: {', '.join(preset_names())}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("--data", metavar="DIR", help="VOC or COCO as downloaded, or a folder of tagged photographs")
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder to write")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    again.add_argument(
        "--resume", action="store_true", help="go on with the run that --out holds, or begin it if it holds none"
    )
    parser.add_argument("--no-class", metavar="NAME", help="sub-folder whose images have nothing in them")
    parser.add_argument("--group-by", metavar="REGEX", help="files with the same match stay in one split")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    start.add_argument("--weights", metavar="FILE", help="start from the backbone weights of a file")
    settings = parser.add_argument_group("settings (a value is read as YAML)")
    fields = dict(_settings(TrainConfig))
    for name, description in fields.items():
        if not name.startswith("data.path"):
            settings.add_argument(f"--{name}", metavar="VALUE", help=description, default=argparse.SUPPRESS)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-")
        raise ConfigError(f"unknown argument {unknown[0]!r}{nearest(name, fields)}; see {PROG} --help")
    flags: dict[str, Any] = {
        name: _yaml_value(name, value) for name, value in vars(arguments).items() if name in fields
    }
    needed = ("data", "out") if not arguments.resume else ("out",)
    missing = [f"--{name}" for name in needed if getattr(arguments, name) is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    resumed = arguments.out / CONFIG_FILE if arguments.resume and (arguments.out / CONFIG_FILE).exists() else None
    if arguments.data is not None:
        flags["data.path"] = str(Path(arguments.data).expanduser().absolute())
    elif resumed is None:
        parser.error(f"--resume finds no run in {arguments.out}: give another --out, or --data to begin one")
    if arguments.no_class is not None:
        flags["data.no_class"] = arguments.no_class
    if arguments.group_by is not None:
        flags["data.group_by"] = arguments.group_by
    if arguments.no_pretrained:
        flags["model.pretrained"] = False
    if arguments.weights is not None:
        flags["model.weights"] = str(Path(arguments.weights).expanduser().absolute())
    return load_config(arguments.preset, arguments.config, flags, resumed=resumed), arguments


def _settings(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the meaning of every setting."""
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _settings(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (field.description or "").replace("%", "%%")


def _yaml_value(name: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{name} {text!r} is not a value in YAML") from error
    if isinstance(value, str):  # YAML 1.1 takes 1e-4 for a word
        try:
            return float(value)
        except ValueError:
            pass
    return value

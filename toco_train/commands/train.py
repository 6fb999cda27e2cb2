"""The command ``toco-train``: train a network, or go on with a run."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from toco_core.cli import EXIT_BAD_INPUT, CommandParser, run_command
from toco_core.errors import DataError, TocoError
from toco_core.flags import add_setting, add_settings, given_settings
from toco_train.commands.display import TrainingDisplay, evaluation_table
from toco_train.config import TrainConfig, load_config, preset_names
from toco_train.runs.layout import CONFIG_FILE

if TYPE_CHECKING:
    from toco_train.data.source import DataSource
    from toco_train.evaluation.evaluate import Evaluation
    from toco_train.training.checkpoint import Progress

PROG = "toco-train"
_SECONDS_TO_SPEAK = 10


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-train``; under torchrun this is one of several processes, and only the first one prints."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        with nullcontext() if first else redirect_stderr(io.StringIO()):
            config, arguments = _parse(sys.argv[1:] if argv is None else argv)
        from toco_train.data.mask_tags import refuse_unusable_masks
        from toco_train.data.opening import open_source
        from toco_train.training.loop import train
        from toco_train.training.run_folder import RunFolder
        from toco_train.training.signals import StopSignals

        source = open_source(config.data, seed=config.seed)  # before anything is written
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
        return _let_the_first_speak()
    console = Console(quiet=not first)
    try:
        with TrainingDisplay(console, config.steps) as display:
            progress = train(config, source, run, display, StopSignals())
    except (TocoError, RuntimeError) as error:
        if first or (isinstance(error, DataError) and display.source is not None):  # an image that only this one read
            raise
        return _let_the_first_speak()
    finally:
        run.close()
    if display.evaluation is not None:
        console.print(evaluation_table(display.evaluation, source.classes))
    if run.is_main and progress.evaluated == config.steps:
        _report(console, run.path, source, display.evaluation)
    console.print(_closing_lines(run.path, config, progress), highlight=False, soft_wrap=True)
    return 0


def _report(console: Console, run: Path, source: DataSource, evaluation: Evaluation | None) -> None:
    """Write the report of a finished run; if that fails, the run stays finished."""
    from toco_train.data.source import with_masks
    from toco_train.reports.run_report import write_report
    from toco_train.runs.load import load_run

    if evaluation is None and with_masks(source.val):  # resumed when nothing was left to do
        return
    try:
        model = load_run(run, device="auto")
        path = write_report(run, model, load_config(None, run / CONFIG_FILE, {}), source, evaluation)
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


def _let_the_first_speak() -> int:
    """Wait until the first process has printed the error, since torchrun ends all at once; return the exit status."""
    time.sleep(_SECONDS_TO_SPEAK)
    return EXIT_BAD_INPUT


def _closing_lines(run: Path, config: TrainConfig, progress: Progress) -> str:
    """Say where the run is and what to do next."""
    if progress.evaluated < config.steps:
        return (
            f"[bold]stopped[/] at step {progress.step} of {config.steps}, and saved; "
            f"go on with: {PROG} --resume --out {run}"
        )
    lines = [f"[bold]run[/] {run}    next: toco-eval {run}    toco-export {run} --fp16"]
    if progress.best_step not in (0, progress.step):
        lines.append(
            f"[bold]best[/] segmentation mIoU: {progress.best_miou:.3f} at step {progress.best_step}, "
            f"kept as the run {run}/best"
        )
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """Turn the command line into a configuration."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    settings = given_settings(arguments, TrainConfig)
    needed = {"--data": arguments.resume or "data.path" in settings, "--out": arguments.out is not None}
    missing = [flag for flag, found in needed.items() if not found]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    saved = arguments.out / CONFIG_FILE
    resumed = saved if arguments.resume and saved.exists() else None
    if resumed is None and "data.path" not in settings:
        parser.error(f"--resume finds no run in {arguments.out}: give another --out, or --data to begin one")
    for name in ("data.path", "model.weights"):
        if settings.get(name):  # absolute, since a run may be resumed from another folder
            settings[name] = str(Path(settings[name]).expanduser().absolute())
    if arguments.no_pretrained:
        settings["model.pretrained"] = False
    return load_config(arguments.preset, arguments.config, settings, resumed=resumed), arguments


def _parser() -> CommandParser:
    """Describe the command line: the command's own flags, and one for each setting."""
    parser = CommandParser(
        PROG,
        "Learn segmentation masks from image-level labels. Every setting is a flag; flags beat --config, which beats "
        "--preset, which beats the defaults shown here. Ctrl-C saves and stops; --resume continues.",
    )
    parser.usage = (
        f"{PROG} [--preset NAME] [--config FILE] --data DIR --out RUN [--SETTING VALUE ...]\n"
        f"       {PROG} --resume --out RUN"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"settings to start from: {', '.join(preset_names())}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    add_setting(parser, TrainConfig, "data.path", "--data", "--data.path")
    parser.add_argument("--out", type=Path, metavar="RUN", help="run folder to write")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    again.add_argument("--resume", action="store_true", help="continue the run in --out, or begin it if there is none")
    add_setting(parser, TrainConfig, "data.no_class", "--no-class", "--data.no-class")
    add_setting(parser, TrainConfig, "data.group_by", "--group-by", "--data.group-by")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    add_setting(start, TrainConfig, "model.weights", "--weights", "--model.weights")
    add_settings(parser, TrainConfig, "run: steps, batch and precision")
    return parser

"""The command ``toco-train``: train a network, or evaluate one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from toco.command import CommandParser, run_command
from toco.config import nearest
from toco.errors import ConfigError, DataError
from toco_train.config import TrainConfig, load_config, preset_names
from toco_train.data.opening import DataConfig, open_source
from toco_train.data.source import DataSource
from toco_train.evaluation import Evaluation, evaluate

PROG = "toco-train"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-train``; ``toco-train evaluate`` scores a finished run."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["evaluate"]:
        return _evaluate_command(argv[1:])
    return _train_command(argv)


def _train_command(argv: Sequence[str]) -> int:
    from toco_train.engine import train  # noqa: PLC0415  (so that --help and complaints come at once)
    from toco_train.run_folder import RunFolder  # noqa: PLC0415

    config, arguments = _parse_training(argv)
    console = Console()
    open_source(config.data, seed=config.seed)  # complain of the data before anything is written
    run = RunFolder(arguments.out, overwrite=arguments.overwrite)
    try:
        with TrainingDisplay(console, config.steps) as display:
            train(config, run, display)
    finally:
        run.close()
    if display.evaluation is not None and display.source is not None:
        console.print(evaluation_table(display.evaluation, display.source.classes))
    console.print(f"[bold]run[/] {run.path}    next: toco-export {run.path} --fp16", highlight=False)
    return 0


def _parse_training(argv: Sequence[str]) -> tuple[TrainConfig, argparse.Namespace]:
    """Turn the command line into a configuration."""
    parser = CommandParser(
        PROG,
        "Learn segmentation masks from image-level labels. Any setting of the configuration is a flag "
        "(--optimizer.lr 1e-4); flags beat --config, which beats --preset. To score a run: toco-train evaluate RUN.",
    )
    parser.usage = f"{PROG} [--preset NAME] [--config FILE] --data DIR --out RUN [--SETTING VALUE ...]"
    parser.add_argument("--preset", metavar="NAME", help=f"settings to start from: {', '.join(preset_names())}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with settings")
    parser.add_argument("--data", required=True, metavar="DIR", help="VOC devkit, or one sub-folder per class")
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="run folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    parser.add_argument("--no-class", metavar="NAME", help="sub-folder whose images have nothing in them")
    parser.add_argument("--group-by", metavar="REGEX", help="files with the same match stay in one split")
    parser.add_argument("--no-pretrained", action="store_true", help="start from random weights")
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
    flags["data.path"] = str(Path(arguments.data).expanduser().absolute())
    if arguments.no_class is not None:
        flags["data.no_class"] = arguments.no_class
    if arguments.group_by is not None:
        flags["data.group_by"] = arguments.group_by
    if arguments.no_pretrained:
        flags["model.pretrained"] = False
    return load_config(arguments.preset, arguments.config, flags), arguments


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


def _evaluate_command(argv: Sequence[str]) -> int:
    """Run ``toco-train evaluate``."""
    parser = CommandParser(f"{PROG} evaluate", "Score the masks of a finished run on data with ground-truth masks.")
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train")
    parser.add_argument("--data", metavar="DIR", help="data set; default: the one that the run was trained on")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images")
    arguments = parser.parse_args(argv)
    from toco_train.model import load_run  # noqa: PLC0415

    model = load_run(arguments.run)
    config = load_config(None, arguments.run / "config.yaml", {})
    data = config.data if arguments.data is None else DataConfig(path=arguments.data)
    source = open_source(data, seed=config.seed)
    if source.classes != model.config.classes:
        raise DataError(
            f"{source.path} has the classes {', '.join(source.classes)}, but the network was trained on "
            f"{', '.join(model.config.classes)}; evaluate on data with the same classes"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()
    with _progress(console) as progress:
        task = progress.add_task("evaluating", total=None)
        evaluation = evaluate(
            model,
            source.train if arguments.split == "train" else source.val,
            scales=config.cam.scales,
            background_threshold=config.cam.background,
            batch_size=config.evaluation.batch_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(evaluation_table(evaluation, source.classes))
    return 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
    )


class TrainingDisplay:
    """Shows a run on the terminal: progress with ETA, losses, and mIoU at each evaluation."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console = console
        self._progress = _progress(console)
        self._steps = self._progress.add_task("training", total=steps)
        self._evaluation = self._progress.add_task("evaluating", total=None, visible=False)
        self._losses = Text(style="dim")
        self._live = Live(Group(self._progress, self._losses), console=console, refresh_per_second=4)
        self.evaluation: Evaluation | None = None
        self.source: DataSource | None = None

    def __enter__(self) -> TrainingDisplay:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def started(self, source: DataSource, device: torch.device) -> None:
        """Say what is trained on what."""
        self.source = source
        self._console.print(
            f"{source.kind} data {source.path}: {len(source.train)} images to train on, {len(source.val)} to validate, "
            f"{len(source.classes)} classes ({', '.join(source.classes)}); device {device}",
            highlight=False,
            soft_wrap=True,
        )

    def stepped(self, step: int, losses: dict[str, float] | None) -> None:
        """Move the bar."""
        self._progress.update(self._steps, completed=step)
        if losses is not None:
            self._losses.plain = "loss  " + "  ".join(f"{name} {value:.3f}" for name, value in losses.items())

    def evaluating(self, done: int, total: int) -> None:
        """Move the evaluation's bar."""
        self._progress.update(self._evaluation, completed=done, total=total, visible=done < total)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the scores."""
        self.evaluation = evaluation
        self._console.print(
            f"step {step:>6}  mIoU: CAM {evaluation.cam.mean_iou:.3f}  aux CAM {evaluation.aux_cam.mean_iou:.3f}  "
            f"segmentation {evaluation.seg.mean_iou:.3f}  ({evaluation.num_images} images)",
            highlight=False,
        )


def evaluation_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """Return the IoU of every class as a table, in per cent."""
    table = Table(title=f"IoU in %, {evaluation.num_images} images")
    table.add_column("class")
    kinds = (evaluation.cam, evaluation.aux_cam, evaluation.seg)
    for name in ("CAM", "aux CAM", "segmentation"):
        table.add_column(name, justify="right")
    for index, name in enumerate(("background", *classes)):
        values = [scores.iou[index] for scores in kinds]
        table.add_row(name, *("-" if value != value else f"{100 * value:.1f}" for value in values))  # noqa: PLR0124
    table.add_section()
    table.add_row("mean", *(f"{100 * scores.mean_iou:.1f}" for scores in kinds), style="bold")
    return table

"""The command ``toco-analyze``: the paper's two figures, for any run or plain backbone on any data."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toco_core.cli import CommandParser, progress_bars, run_command
from toco_core.errors import ConfigError, DataError
from toco_core.files import make_output_folder
from toco_core.flags import given_settings
from toco_core.sampling import evenly_spaced
from toco_core.text import nearest
from toco_train.commands.data_flags import add_data_flags
from toco_train.config import DataConfig, TrainConfig, load_config
from toco_train.runs.layout import ANALYSIS_FOLDER, CONFIG_FILE

if TYPE_CHECKING:
    import torch

    from toco_train.analysis.token_similarity import BlockSimilarity, Point, Subject
    from toco_train.data.source import DataSource, Sample

PROG = "toco-analyze"
_BATCH_SIZE = 4
_PLACES = 4  # rows of the second figure, where none is chosen


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-analyze``."""
    arguments = _parse(argv)
    import torch

    from toco_train.analysis.saving import save_figures
    from toco_train.analysis.token_similarity import look_at, similarity_by_block
    from toco_train.runs.load import best_device

    torch.manual_seed(0)  # the random weights of --no-pretrained are the same each time
    subjects = _subjects(arguments, best_device())
    source = _source(arguments, subjects)
    samples: tuple[Sample, ...] = getattr(source, arguments.split)
    if not samples:
        raise DataError(f"{source.path} has no image in the split {arguments.split!r}; give another --split")
    chosen = _chosen(arguments.show, samples)
    measured = evenly_spaced(samples, arguments.images)
    folder = _output_folder(arguments)

    console = Console()
    with progress_bars(console) as progress:
        task = progress.add_task("analysing", total=len(measured) * len(subjects) + len(chosen))
        curves = [
            similarity_by_block(subject, measured, _BATCH_SIZE, lambda images: progress.advance(task, images))
            for subject in subjects
        ]
        places = []
        for sample, point in chosen:
            places.append(look_at(subjects, sample, point))
            progress.advance(task)
    paths = save_figures(folder, curves, places, source.classes)
    console.print(_table(curves))
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        PROG,
        "Draw two figures, as PNG, SVG and CSV: how similar the patch tokens of networks become from block to block "
        "(over-smoothing), and, for places in images, each network's CAM and the similarity of its tokens to the one "
        "there.",
    )
    parser.add_argument(
        "networks", nargs="+", metavar="RUN|TIMM_ID", help="run folder of toco-train, or timm name of a plain "
        "backbone, which has no CAM",
    )  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the networks in the figures")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images")
    parser.add_argument(
        "--images", type=_count, default=100, metavar="N",
        help="number of images for the first figure, evenly spread; 0: all",
    )  # fmt: skip
    parser.add_argument(
        "--show", nargs="+", type=_place, metavar="IMAGE[@X,Y]",
        help="images of the split by name, and a place in them as shares of width and height, as a@0.5,0.25 (default: "
        "four tagged images, each where the CAMs of all networks together are strongest)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help=f"folder of the figures (default: {ANALYSIS_FOLDER} in the first run)")  # fmt: skip
    add_data_flags(parser)
    plain = parser.add_argument_group("plain backbones")
    plain.add_argument("--size", type=_count, metavar="PX",
                       help="side of the images that they see (default: each its own)")  # fmt: skip
    start = plain.add_mutually_exclusive_group()
    start.add_argument("--no-pretrained", action="store_true", help="start from random weights")
    start.add_argument("--weights", metavar="FILE", help="take the weights of a file; for one backbone")
    arguments = parser.parse_args(argv)
    if arguments.names is not None and len(arguments.names) != len(arguments.networks):
        parser.error(f"--names gives {len(arguments.names)} names for {len(arguments.networks)} networks")
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _place(text: str) -> tuple[str, Point | None]:
    """Take ``IMAGE`` or ``IMAGE@X,Y`` apart."""
    name, at, where = text.rpartition("@")
    if not at:
        return text, None
    try:
        x, y = map(float, where.split(","))
    except ValueError:
        x = y = -1
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not IMAGE@X,Y with X and Y from 0 to 1")
    return name, (x, y)


def _runs(arguments: argparse.Namespace) -> list[Path]:
    """Return those of the networks that are run folders."""
    return [Path(name) for name in arguments.networks if _is_folder(name)]


def _is_folder(name: str) -> bool:
    """Whether a network is given by the path of a folder and not by a timm name."""
    return Path(name).exists() or len(Path(name).parts) > 1


def _subjects(arguments: argparse.Namespace, device: torch.device) -> list[Subject]:
    """Load the networks.

    Raises:
        ConfigError: One is neither a folder nor known to timm, or the weights of one file are meant for several.
        RunError: A folder is no finished run, or a file of weights does not fit.
    """
    import timm

    from toco_train.analysis.token_similarity import run_subject, timm_subject
    from toco_train.runs.load import load_run

    plain = [name for name in arguments.networks if not _is_folder(name)]
    for name in plain:
        if not timm.is_model(name.partition(".")[0]):
            raise ConfigError(
                f"{name!r} is neither a folder nor a model of timm {timm.__version__}"
                f"{nearest(name, timm.list_models('*vit*'))}; give a run folder of toco-train or a timm name"
            )
    if arguments.weights is not None and len(plain) != 1:
        raise ConfigError(f"--weights is for one plain backbone, and {len(plain)} are given; leave it out")
    subjects = []
    for given, name in zip(arguments.networks, arguments.names or _default_names(arguments.networks), strict=True):
        if given in plain:
            subject = timm_subject(given, name, device, pretrained=not arguments.no_pretrained,
                                   weights=arguments.weights, image_size=arguments.size)  # fmt: skip
        else:
            model = load_run(given, device)
            subject = run_subject(model, name, load_config(None, Path(given) / CONFIG_FILE, {}).cam.scales)
        subjects.append(subject)
    return subjects


def _default_names(networks: Sequence[str]) -> list[str]:
    """Call a run by its folder's name, unless two have the same."""
    short = [Path(name).resolve().name if _is_folder(name) else name for name in networks]
    return [name if short.count(name) == 1 else given for name, given in zip(short, networks, strict=True)]


def _source(arguments: argparse.Namespace, subjects: Sequence[Subject]) -> DataSource:
    """Open the data, and check that the networks of all runs have its classes.

    Raises:
        ConfigError: There is no run whose data it could be, and none is given.
        DataError: It cannot be opened, or has other classes.
    """
    from toco_train.runs.source import open_run_source, require_classes

    runs, given = _runs(arguments), given_settings(arguments, DataConfig)
    if not runs and "path" not in given:
        raise ConfigError("a plain backbone has no data of its own: give --data DIR")
    config = load_config(None, runs[0] / CONFIG_FILE, {}) if runs else TrainConfig()
    source = open_run_source(config, arguments.networks[0], given)
    for subject in subjects:
        if subject.model is not None:
            require_classes(source, subject.model.config.classes)
    return source


def _chosen(
    asked: Sequence[tuple[str, Point | None]] | None, samples: tuple[Sample, ...]
) -> list[tuple[Sample, Point | None]]:
    """Return the images and places to show.

    Raises:
        DataError: An image is not in the split.
    """
    if asked is None:
        tagged = tuple(sample for sample in samples if sample.labels) or samples
        return [(sample, None) for sample in evenly_spaced(tagged, _PLACES)]
    by_name = {sample.name: sample for sample in samples}
    unknown = next((name for name, _ in asked if name not in by_name), None)
    if unknown is not None:
        raise DataError(
            f"no image of the split is called {unknown!r}{nearest(unknown, by_name)}; give a name without suffix"
        )
    return [(by_name[name], point) for name, point in asked]


def _output_folder(arguments: argparse.Namespace) -> Path:
    """Make the folder of the figures.

    Raises:
        ConfigError: It cannot be made, or none is given and there is no run to put them in.
    """
    runs = _runs(arguments)
    if arguments.out is None and not runs:
        raise ConfigError("there is no run to put the figures in: give --out DIR")
    folder: Path = arguments.out or runs[0] / ANALYSIS_FOLDER
    make_output_folder(folder)
    return folder


def _table(curves: Sequence[BlockSimilarity]) -> Table:
    """Return the ends of each line of the first figure."""
    table = Table(title=f"mean pairwise |cosine| of patch tokens, {len(curves[0].values)} images", box=box.SIMPLE_HEAD)
    table.add_column("network", overflow="fold")
    for heading in ("blocks", "first", "middle", "last", "final norm"):
        table.add_column(heading, justify="right")
    for curve in curves:
        last = curve.num_blocks - 1
        shown = [curve.mean[index] for index in (0, last // 2, last, last + 1)]
        table.add_row(Text(curve.name), str(curve.num_blocks), *(f"{value:.3f}" for value in shown))
    return table

"""The command ``toco-analyze``: the paper's two figures, for any run or plain backbone on any data."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from toco_core.charts import save_figure
from toco_core.cli import CommandParser, run_command
from toco_core.config import nearest
from toco_core.errors import ConfigError, DataError, RunError
from toco_core.files import write_atomic
from toco_core.sampling import evenly_spaced
from toco_train.analysis.figures import patch_figure, similarity_chart
from toco_train.analysis.token_similarity import (
    BlockSimilarity,
    PlaceInImage,
    Point,
    Subject,
    look_at,
    run_subject,
    similarity_by_block,
    timm_subject,
    token_at,
)
from toco_train.commands.data_flags import add_data_flags
from toco_train.commands.display import progress_bars
from toco_train.config import DataConfig, load_config
from toco_train.data.opening import open_source
from toco_train.data.source import DataSource, Sample
from toco_train.runs.layout import ANALYSIS_FOLDER, CONFIG_FILE
from toco_train.runs.load import load_run
from toco_train.runs.source import open_run_source, require_classes

PROG = "toco-analyze"
BLOCKS_STEM, PATCHES_STEM = "token_similarity", "patch_similarity"
BATCH_SIZE = 4
_PLACES = 4  # rows of the second figure, where none is chosen


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Run ``toco-analyze``."""
    arguments = _parse(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)  # the random weights of --no-pretrained are the same each time
    subjects = _subjects(arguments, device)
    source = _source(arguments, subjects)
    samples: tuple[Sample, ...] = getattr(source, arguments.split)
    if not samples:
        raise DataError(f"{source.path} has no image in the split {arguments.split!r}; give another --split")
    chosen = _chosen(arguments.show, samples)
    measured = evenly_spaced(samples, arguments.images)
    folder = _made(arguments)

    console = Console()
    with progress_bars(console) as progress:
        task = progress.add_task("analysing", total=len(measured) * len(subjects) + len(chosen))
        curves = [
            similarity_by_block(subject, measured, BATCH_SIZE, lambda images: progress.advance(task, images))
            for subject in subjects
        ]
        places = []
        for sample, point in chosen:
            places.append(look_at(subjects, sample, point))
            progress.advance(task)
    try:
        paths = [
            *_save(folder / BLOCKS_STEM, similarity_chart(curves), block_rows(curves)),
            *_save(folder / PATCHES_STEM, patch_figure(places, source.classes), patch_rows(places)),
        ]
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); give another --out") from error
    console.print(_table(curves))
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)
    return 0


def block_rows(curves: Iterable[BlockSimilarity]) -> Iterable[Sequence[object]]:
    """Yield the numbers of the first figure: a heading, then a row for each network and block."""
    yield "network", "block", "after_final_norm", "mean", "standard_deviation", "images"
    for curve in curves:
        for index, (mean, spread_) in enumerate(zip(curve.mean, curve.spread, strict=True)):
            block = min(index + 1, curve.num_blocks)
            yield curve.name, block, int(index == curve.num_blocks), f"{mean:.6f}", f"{spread_:.6f}", len(curve.values)


def patch_rows(places: Iterable[PlaceInImage]) -> Iterable[Sequence[object]]:
    """Yield the numbers of the second figure: a heading, then a row for each network, place and token.

    The CAM of a token is that at its centre; it is empty where there is none.
    """
    yield "network", "image", "x", "y", "row", "column", "similarity", "cam"
    for place in places:
        x, y = place.point
        for view in place.views:
            height, width = view.similarity.shape
            for row in range(height):
                for column in range(width):
                    cam = ""
                    if view.cam is not None:
                        centre = (column + 0.5) / width, (row + 0.5) / height
                        cam = f"{view.cam[token_at(centre, *view.cam.shape)]:.6f}"
                    yield (view.name, place.sample.name, f"{x:.4f}", f"{y:.4f}", row, column,
                           f"{view.similarity[row, column]:.6f}", cam)  # fmt: skip


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        PROG,
        "Draw how alike the patch tokens of networks become from block to block (over-smoothing), and, for places in "
        "images, each network's CAM and the similarity of its tokens to the one there; PNG, SVG and CSV.",
    )
    parser.add_argument("networks", nargs="+", metavar="RUN|TIMM_ID", help="run folder of toco-train, or plain timm "
                        "backbone, which has no CAM; each is a line and some columns")  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the networks are called in the figures")
    add_data_flags(parser)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="which images")
    parser.add_argument(
        "--images", type=_count, default=100, metavar="N",
        help="images that the similarity of each block is the mean of, evenly spread; 0: all",
    )  # fmt: skip
    parser.add_argument(
        "--show", nargs="+", type=_place, metavar="IMAGE[@X,Y]",
        help="images of the split by name, and a place in them as shares of width and height, as a@0.5,0.25 (default: "
        "four tagged images, each where the CAMs of all networks together are strongest)",
    )  # fmt: skip
    parser.add_argument("--size", type=_count, metavar="PX",
                        help="side at which plain backbones see an image (default: each its own)")  # fmt: skip
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--no-pretrained", action="store_true", help="plain backbones have random weights")
    start.add_argument("--weights", metavar="FILE", help="the plain backbone has the weights of a file")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help=f"where the figures go; default: {ANALYSIS_FOLDER} in the first run")  # fmt: skip
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
            model = load_run(given).to(device)
            subject = run_subject(model, name, load_config(None, Path(given) / CONFIG_FILE, {}).cam.scales)
        subjects.append(subject)
    return subjects


def _default_names(networks: Sequence[str]) -> list[str]:
    """Call a run by its folder's name, unless two have the same."""
    short = [Path(name).resolve().name if _is_folder(name) else name for name in networks]
    return [name if short.count(name) == 1 else given for name, given in zip(short, networks, strict=True)]


def _source(arguments: argparse.Namespace, subjects: Sequence[Subject]) -> DataSource:
    """Open the data, and check that all networks of runs know its classes.

    Raises:
        ConfigError: There is no run to take the data of, and none is given.
        DataError: It cannot be opened, or has other classes.
    """
    runs = _runs(arguments)
    flags = {"no_class": arguments.no_class, "group_by": arguments.group_by}
    if runs:
        config = load_config(None, runs[0] / CONFIG_FILE, {})
        source = open_run_source(config, runs[0], arguments.data, **flags)
    elif arguments.data is None:
        raise ConfigError("a plain backbone knows no data: give --data DIR")
    else:
        source = open_source(DataConfig(path=arguments.data, **flags), seed=0)
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


def _made(arguments: argparse.Namespace) -> Path:
    """Make the folder of the figures: if it cannot be written, the user hears of it before the work is done.

    Raises:
        ConfigError: There is no run to put them in, and no folder is given.
        RunError: It cannot be made.
    """
    runs = _runs(arguments)
    if arguments.out is None and not runs:
        raise ConfigError("there is no run to put the figures in: give --out DIR")
    folder: Path = arguments.out or runs[0] / ANALYSIS_FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); give another --out") from error
    return folder


def _save(stem: Path, figure: Figure, rows: Iterable[Sequence[object]]) -> list[Path]:
    """Write a figure and its numbers."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    table = stem.with_name(f"{stem.name}.csv")
    write_atomic(table, buffer.getvalue())
    return [*save_figure(figure, stem), table]


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

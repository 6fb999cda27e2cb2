"""The command ``toco-label``: write pseudo labels that a segmenter can train on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from toco_core.cli import CommandParser, run_command
from toco_core.config import parse_config
from toco_core.errors import DataError
from toco_core.palette import IGNORE_INDEX, UInt8Array

if TYPE_CHECKING:
    from toco_train.config import TrainConfig
    from toco_train.data.source import DataSource, Sample
    from toco_train.inference.pseudo_labels import LabelConfig

PROG = "toco-label"
EXIT_UNREADABLE = 1


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Label a data set; return the exit status: 1 if an image could not be read."""
    args = _parse(argv)
    import torch  # noqa: PLC0415  (so that --help comes at once)

    from toco_core.manifest import sha256_of  # noqa: PLC0415
    from toco_train.commands.display import progress_bars  # noqa: PLC0415
    from toco_train.config import load_config  # noqa: PLC0415
    from toco_train.inference.label_folder import LabelFolder, LabelRecord, label_all  # noqa: PLC0415
    from toco_train.inference.pseudo_labels import Labeller  # noqa: PLC0415
    from toco_train.method.crf import require_crf  # noqa: PLC0415
    from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE  # noqa: PLC0415
    from toco_train.runs.load import load_run  # noqa: PLC0415

    model = load_run(args.run)
    config = load_config(None, args.run / CONFIG_FILE, {})
    settings = _settings(args, config)
    if settings.refine == "crf":
        require_crf()
    source = _open_source(args, config, model.config.classes)
    splits = _splits(source, args.split)
    record = LabelRecord(
        weights=sha256_of(args.run / WEIGHTS_FILE),
        source=str(source.path),
        classes=source.classes,
        sizes=model.sizes,
        settings=settings,
    )
    folder = LabelFolder(args.out.resolve(), record, source.class_list, overwrite=args.overwrite)
    labeller = Labeller(model.to("cuda" if torch.cuda.is_available() else "cpu"), settings)

    summary, failures = Summary(source.classes), list[str]()
    labelled: list[Sample] = []
    with progress_bars(Console(stderr=True)) as progress:
        task = progress.add_task("labelling", total=sum(map(len, splits.values())))
        for split, samples in splits.items():
            before = len(labelled)
            for sample, outcome in label_all(labeller, samples, folder):
                if isinstance(outcome, DataError):
                    failures.append(str(outcome))
                else:
                    labelled.append(sample)
                    summary.add(sample, outcome)
                progress.advance(task)
            folder.write_list(split, labelled[before:])
    if labelled:
        folder.save_sheet(labelled)
    _report(args.out, summary, failures)
    return EXIT_UNREADABLE if failures else 0


class Summary:
    """Counts what pseudo labels hold.

    Args:
        classes: Foreground class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.num_images = 0
        self._classes = classes
        self._pixels = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
        self._tagged = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)
        self._found = np.zeros(IGNORE_INDEX + 1, dtype=np.int64)

    def add(self, sample: Sample, mask: UInt8Array) -> None:
        """Count a mask, uint8 ``[H, W]``."""
        pixels = np.bincount(mask.ravel(), minlength=IGNORE_INDEX + 1)
        self.num_images += 1
        self._pixels += pixels
        self._found += pixels > 0
        self._tagged[list(sample.labels)] += 1

    def share(self, label: int) -> float:
        """Return the share of all pixels that have a label, 0 to 1."""
        return float(self._pixels[label] / max(1, self._pixels.sum()))

    def sentence(self) -> str:
        """Return the number of images and the shares of background, foreground and 255."""
        foreground = 1 - self.share(0) - self.share(IGNORE_INDEX)
        return (
            f"{self.num_images} pseudo labels: {self.share(0):.1%} background, {foreground:.1%} foreground, "
            f"{self.share(IGNORE_INDEX):.1%} unsure (255)"
        )

    def table(self) -> Table:
        """Return what was counted, a row for each label."""
        table = Table()
        table.add_column("label")
        for heading in ("images tagged", "images with it", "pixels"):
            table.add_column(heading, justify="right")
        for label, name in enumerate(("background", *self._classes)):
            tagged = str(self._tagged[label]) if label else ""
            table.add_row(name, tagged, str(self._found[label]), f"{self.share(label):.2%}")
        table.add_row("unsure (255)", "", str(self._found[IGNORE_INDEX]), f"{self.share(IGNORE_INDEX):.2%}")
        return table


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        PROG,
        "Write a pseudo label for each image of a data set: a palette PNG of the image's own size, "
        "255 where the network is unsure, and its confidence. A run that was interrupted goes on where it stopped.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train or toco-import")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data set, as for toco-train --data")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--from", dest="maps", choices=("cam", "seg"), default="cam", help="activation maps of the classes that an "
        "image is tagged with, or the segmentation, which asks for no tags",
    )  # fmt: skip
    parser.add_argument("--refine", choices=("par", "crf", "none"), default="par", help="how labels come to follow "
                        "the edges of the image; crf needs the extra 'crf'")  # fmt: skip
    parser.add_argument("--split", choices=("train", "val", "all"), default="train", help="which images")
    parser.add_argument("--scales", type=float, nargs="+", metavar="S", help="sizes at which the network sees an "
                        "image, each flipped too (default: cam those of the run, seg 1 1.25 1.5)")  # fmt: skip
    parser.add_argument("--low", type=float, metavar="T", help="cam: background below it (default: the run's)")
    parser.add_argument("--high", type=float, metavar="T", help="cam: foreground above it (default: the run's)")
    parser.add_argument("--min-confidence", type=float, default=0.7, metavar="P",
                        help="seg: unsure below this probability")  # fmt: skip
    parser.add_argument("--no-class", metavar="NAME", help="as for toco-train, where SOURCE is not its data")
    parser.add_argument("--group-by", metavar="REGEX", help="as for toco-train, where SOURCE is not its data")
    parser.add_argument("--overwrite", action="store_true", help="make the labels that OUT holds anew")
    return parser.parse_args(argv)


def _settings(args: argparse.Namespace, config: TrainConfig) -> LabelConfig:
    """Return how labels are made: as the flags say, else as the run does.

    Raises:
        ConfigError: A number is out of range.
    """
    from toco_train.inference.predict import PROTOCOLS, SegmentConfig  # noqa: PLC0415
    from toco_train.inference.pseudo_labels import LabelConfig  # noqa: PLC0415

    scales = args.scales or (config.cam.scales if args.maps == "cam" else PROTOCOLS["published"].scales)
    values = {
        "maps": args.maps,
        "refine": args.refine,
        "scales": parse_config(SegmentConfig, {"scales": scales}, "--scales").scales,
        "low": config.cam.low if args.low is None else args.low,
        "high": config.cam.high if args.high is None else args.high,
        "min_confidence": args.min_confidence,
    }
    return parse_config(LabelConfig, values, "the command line")


def _open_source(args: argparse.Namespace, config: TrainConfig, classes: tuple[str, ...]) -> DataSource:
    """Open the data, with the run's own settings if it is what the run was trained on.

    Raises:
        DataError: It cannot be opened, has other classes than the network, or OUT lies in it.
    """
    from toco_train.config import DataConfig  # noqa: PLC0415
    from toco_train.data.opening import open_source  # noqa: PLC0415
    from toco_train.data.source import log_notices  # noqa: PLC0415

    path = args.source.expanduser().resolve()
    own = bool(config.data.path) and Path(config.data.path).resolve() == path
    data = config.data if own else DataConfig()
    flags = {"no_class": args.no_class, "group_by": args.group_by}
    given = {name: value for name, value in flags.items() if value is not None}
    source = open_source(data.model_copy(update={"path": str(path), **given}), seed=config.seed)
    log_notices(source)
    if source.classes != classes:
        hint = config.data.no_class
        raise DataError(
            f"{source.path} has the classes {', '.join(source.classes)}, but the network was trained on "
            f"{', '.join(classes)}; label data with the same classes"
            + (f" (the run was trained with --no-class {hint})" if hint and not own else "")
        )
    if args.out.resolve().is_relative_to(path):
        raise DataError(f"OUT {args.out} lies inside SOURCE {args.source}, where it would be taken for data; "
                        "give a folder beside it")  # fmt: skip
    return source


def _splits(source: DataSource, choice: str) -> dict[str, tuple[Sample, ...]]:
    """Return the samples of the chosen splits by the split's name.

    Raises:
        DataError: There are none.
    """
    splits = {name: samples for name, samples in (("train", source.train), ("val", source.val))
              if choice in (name, "all") and samples}  # fmt: skip
    if not splits:
        raise DataError(f"{source.path} has no image in the split {choice!r}; give another --split")
    return splits


def _report(out: Path, summary: Summary, failures: Sequence[str]) -> None:
    """Print what was made, and what could not be."""
    from toco_train.inference.label_folder import CONFIDENCE_FOLDER, MASKS_FOLDER, SHEET_FILE  # noqa: PLC0415

    console = Console()
    console.print(summary.table())
    console.print(summary.sentence(), highlight=False, soft_wrap=True)
    console.print(f"masks {out / MASKS_FOLDER}    confidence {out / CONFIDENCE_FOLDER}    look at {out / SHEET_FILE}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    errors = Console(stderr=True)
    for failure in failures:
        errors.print(f"no label: {failure}", highlight=False, soft_wrap=True, markup=False)

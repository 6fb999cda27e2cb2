"""The command ``toco-label``: write pseudo labels that a segmenter can train on."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from toco_core.cli import CommandParser, progress_bars, run_command
from toco_core.config import parse_config
from toco_core.errors import DataError
from toco_core.flags import add_setting, add_settings, given_settings
from toco_core.palette import IGNORE_INDEX, UInt8Array
from toco_train.config import PROTOCOLS, DataConfig, LabelConfig, TrainConfig, load_config
from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from toco_train.data.source import DataSource, Sample

PROG = "toco-label"
EXIT_UNREADABLE = 1


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Label a data set; return the exit status: 1 if an image could not be read."""
    args = _parse(argv)
    from toco_core.manifest import sha256_of
    from toco_train.inference.label_folder import LabelFolder, LabelRecord, label_all
    from toco_train.inference.pseudo_labels import Labeller
    from toco_train.method.crf import require_crf
    from toco_train.runs.load import load_run

    model = load_run(args.run, device="auto")
    config = load_config(None, args.run / CONFIG_FILE, {})
    settings = _settings(args, config)
    if settings.refine == "crf":
        require_crf()
    source = _open_source(args, config)
    splits = _splits(source, args.split)
    record = LabelRecord(
        weights=sha256_of(args.run / WEIGHTS_FILE),
        source=str(source.path),
        classes=source.classes,
        sizes=model.sizes,
        settings=settings,
    )
    folder = LabelFolder(args.out.resolve(), record, source.class_list, overwrite=args.overwrite)
    labeller = Labeller(model, settings)

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
    """Read the command line."""
    parser = CommandParser(
        PROG,
        "Write a pseudo label for each image of a data set: a palette PNG of the image's own size, 255 where the "
        "network is unsure, and its confidence. Run the same command again to continue after an interruption.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of toco-train or toco-import")
    parser.add_argument("path", metavar="SOURCE", help="data set, as for toco-train --data")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--split", choices=("train", "val", "all"), default="train", help="which images")
    parser.add_argument("--overwrite", action="store_true", help="make the labels in OUT again")
    for name in ("no_class", "group_by"):
        add_setting(parser, DataConfig, name, default="the run's, if SOURCE is its data")
    labels = parser.add_argument_group("labels")
    add_setting(labels, LabelConfig, "maps", "--from")
    seg = " ".join(f"{scale:g}" for scale in PROTOCOLS["published"].scales)
    add_setting(labels, LabelConfig, "scales", default=f"the run's for cam, {seg} for seg")
    for name in ("low", "high"):
        add_setting(labels, LabelConfig, name, default="the run's")
    add_settings(parser, LabelConfig, "refinement and confidence")
    return parser.parse_args(argv)


def _settings(args: argparse.Namespace, config: TrainConfig) -> LabelConfig:
    """Return how labels are made: as the flags say, else as the run does.

    Raises:
        ConfigError: A number is out of range.
    """
    given = given_settings(args, LabelConfig)
    scales = PROTOCOLS["published"].scales if given.get("maps") == "seg" else config.cam.scales
    values = {"scales": scales, "low": config.cam.low, "high": config.cam.high, **given}
    return parse_config(LabelConfig, values, "the command line")


def _open_source(args: argparse.Namespace, config: TrainConfig) -> DataSource:
    """Open the data, with the run's own settings if the run was trained on it.

    Raises:
        DataError: It cannot be opened, has other classes than the network, or OUT lies in it.
    """
    from toco_train.runs.source import open_run_source

    source = open_run_source(config, args.run, given_settings(args, DataConfig))
    if args.out.resolve().is_relative_to(source.path):
        raise DataError(f"OUT {args.out} lies inside SOURCE {args.path}, where it would be read as data; "
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
    from toco_train.inference.label_folder import CONFIDENCE_FOLDER, MASKS_FOLDER, SHEET_FILE

    console = Console()
    console.print(summary.table())
    console.print(summary.sentence(), highlight=False, soft_wrap=True)
    console.print(f"masks {out / MASKS_FOLDER}    confidence {out / CONFIDENCE_FOLDER}    look at {out / SHEET_FILE}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    errors = Console(stderr=True)
    for failure in failures:
        errors.print(f"no label: {failure}", highlight=False, soft_wrap=True, markup=False)

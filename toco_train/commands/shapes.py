"""``toco-shapes``: make the synthetic data set, in the layout of PASCAL VOC."""

# ruff: noqa: PLC0415  (drawing is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from toco_core.cli import CommandParser, run_command
from toco_core.errors import ConfigError, DataError
from toco_train.shapes.config import RECIPE_FILE

PROG = "toco-shapes"
MIN_IMAGES = 10  # leaves two for validation
MIN_SIZE_PX = 32
SIZE_STEP_PX = 16  # the largest patch size of the backbones


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Make the data set, unless it is already there; return the exit status."""
    args = _parse(argv)
    _check_numbers(args)
    from toco_train.shapes.voc import Recipe, make_dataset

    recipe = Recipe(images=args.images, size=args.size, seed=args.seed)
    out = args.out.resolve()
    if _already_there(out, recipe.model_dump(mode="json")):
        print(f"{args.out} already holds this data set: nothing to do")  # noqa: T201
        return 0
    make_dataset(out, recipe, num_workers=args.workers)
    num_train = recipe.images - recipe.num_val
    print(f"{args.out}: {num_train} training and {recipe.num_val} validation images; look at contact_sheet.png")  # noqa: T201
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(PROG, "Make a synthetic data set for weakly supervised segmentation, in PASCAL VOC layout.")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to make; it must be new or empty")
    parser.add_argument(
        "--images",
        type=int,
        default=1500,
        metavar="N",
        help="number of images: 80 %% for training, 20 %% for validation",
    )
    parser.add_argument(
        "--size", type=int, default=96, metavar="PX", help="side of the square images in pixels, a multiple of 16"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed; the same seed gives the same bytes")
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N", help="processes that draw"
    )
    return parser.parse_args(argv)


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers out of range.

    Raises:
        ConfigError: A number is out of range; the sentence names every one.
    """
    problems = []
    if args.images < MIN_IMAGES:
        problems.append(f"--images is {args.images}, too few for two splits: give at least {MIN_IMAGES}")
    if args.size < MIN_SIZE_PX or args.size % SIZE_STEP_PX:
        nearest = max(MIN_SIZE_PX, round(args.size / SIZE_STEP_PX) * SIZE_STEP_PX)
        problems.append(
            f"--size is {args.size}, expected a multiple of {SIZE_STEP_PX} from {MIN_SIZE_PX} up: try {nearest}"
        )
    if args.seed < 0:
        problems.append(f"--seed is {args.seed}, expected 0 or more")
    if args.workers < 1:
        problems.append(f"--workers is {args.workers}, expected 1 or more")
    if problems:
        raise ConfigError("; ".join(problems))


def _already_there(out: Path, wanted: dict[str, object]) -> bool:
    """Tell whether ``out`` holds exactly the data set of a recipe.

    Raises:
        DataError: Something else is there.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise DataError(f"{out} is a file, expected a new or empty folder: give another path")
    try:
        if not any(out.iterdir()):
            return False
        found = json.loads((out / RECIPE_FILE).read_text(encoding="utf-8"))
    except PermissionError as error:
        raise DataError(f"cannot read {out}: {error.strerror}; give another folder") from error
    except (OSError, ValueError):
        found = None
    if found == wanted:
        return True
    raise DataError(f"{out} is not empty: {_describe(found, wanted)}; give another folder or remove this one")


def _describe(found: object, wanted: dict[str, object]) -> str:
    """Say what a folder holds instead of the wanted data set."""
    if not isinstance(found, dict):
        return f"it holds something that {PROG} did not make"
    others = [f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value]
    plain = [text for text in others if "{" not in text] or ["other scene settings"]
    return f"it holds a data set made with {' and '.join(plain)}"

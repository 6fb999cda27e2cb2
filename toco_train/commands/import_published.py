"""The command ``toco-import``: turn a checkpoint that the authors of ToCo released into a run folder."""

# ruff: noqa: PLC0415  (torch is imported when work begins, so that --help is fast)
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from toco_core.cli import CommandParser, run_command
from toco_core.config import parse_config, read_yaml
from toco_core.errors import ConfigError, RunError
from toco_core.text import nearest

if TYPE_CHECKING:
    from toco_train.config import ViTSpec

PROG = "toco-import"


@run_command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Import a checkpoint; return the exit status."""
    args = _parse(argv)
    _check_out(args.out, overwrite=args.overwrite)
    from toco_train.models.pretrained import read_state_dict
    from toco_train.runs.import_published import import_published, published_shape

    state_dict = read_state_dict(args.checkpoint)
    shape = published_shape(state_dict)
    backbone = _backbone(args.backbone) if args.backbone else shape.backbone
    if backbone is None:
        raise ConfigError(f"no ViT of the usual sizes fits {args.checkpoint} ({shape.description}); give --backbone")
    classes = _class_names(args.classes, shape.num_classes)
    import_published(state_dict, args.out, backbone=backbone, classes=classes)
    out = args.out
    print(  # noqa: T201
        f"{out}: {backbone} with {len(classes)} classes ({_shortened(classes)})\n"
        f"next: toco-eval {out} --data DIR    toco-label {out} DIR OUT    toco-export {out} --fp16 --images DIR"
    )
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        PROG, "Turn a published ToCo checkpoint (.pth) into a run folder to evaluate, label with and export."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the .pth file; no code in it is run")
    parser.add_argument("out", type=Path, metavar="OUT", help="run folder to write")
    parser.add_argument(
        "--backbone", metavar="NAME", help="timm name of the ViT, or the numbers of a small one (default: by the "
        "shapes of the weights; those of ViT-B and DeiT-B are the same, and so is what they compute)",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="FILE", help="class names: voc, coco, or a classes.yaml (default: VOC's for 20 classes, "
        "COCO's for 80, else class_1, class_2, ...)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the run in OUT")
    return parser.parse_args(argv)


def _check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse to replace what may not be replaced.

    Raises:
        RunError: Something is there.
    """
    from toco_train.runs.layout import CONFIG_FILE

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG_FILE).is_file():
        raise RunError(f"{out} holds something that is not a run; give another OUT")
    if not overwrite:
        raise RunError(f"{out} holds a run already; give another OUT, or --overwrite to replace it")


def _backbone(text: str) -> str | ViTSpec:
    """Read a timm name, or the numbers of a small ViT as ``toco-train --model.backbone`` takes them.

    Raises:
        ConfigError: The numbers are none.
    """
    from toco_train.config import ViTSpec

    if not text.lstrip().startswith("{"):
        return text
    try:
        return parse_config(ViTSpec, yaml.safe_load(text), "--backbone")
    except yaml.YAMLError as error:
        raise ConfigError(f"--backbone {text!r} is not a value in YAML") from error


def _class_names(choice: str | None, number: int) -> tuple[str, ...]:
    """Return the names that were asked for, or those that the number of classes suggests.

    Raises:
        ConfigError: The names cannot be read, or are not as many as the network has classes.
    """
    from toco_train.runs.import_published import KNOWN_CLASSES

    if choice is None:
        known = {len(names): names for names in KNOWN_CLASSES.values()}
        return known.get(number) or tuple(f"class_{label}" for label in range(1, number + 1))
    names = KNOWN_CLASSES.get(choice) or _read_classes(choice)
    if len(names) != number:
        raise ConfigError(f"--classes {choice} names {len(names)} classes, but the checkpoint has {number}; "
                          "give as many names as classes, in label order")  # fmt: skip
    return names


def _read_classes(file: str) -> tuple[str, ...]:
    """Read the names of a ``classes.yaml``.

    Raises:
        ConfigError: There is no such file, or it does not hold class names.
    """
    from toco_train.data.classes import ClassList
    from toco_train.runs.import_published import KNOWN_CLASSES

    if not Path(file).exists():
        raise ConfigError(f"--classes {file} is neither {' nor '.join(KNOWN_CLASSES)} nor a file"
                          f"{nearest(file, KNOWN_CLASSES)}")  # fmt: skip
    return parse_config(ClassList, read_yaml(Path(file)), file).classes


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:3])}, ..., {names[-1]}"

"""Do damaged data sets ever end in a traceback, or take memory without bound?

    python -m benchmarks.fuzz_readers [--inputs 10000] [--seed 0] [--report FOLDER/NAME]

Writes a small data set of each layout, changes bytes of its lists, tables, annotations and masks (some are changed,
cut, repeated or replaced by what breaks parsers), and opens it: each must be read or refused in one sentence. What was
read may hold no label that is no class.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.harness.provenance import provenance, provenance_text, save_report
from toco_core.cli import run_command
from toco_core.errors import TocoError
from toco_core.palette import save_mask
from toco_core.text import markdown_table
from toco_train.config import DataConfig
from toco_train.data.opening import open_source
from toco_train.data.source import image_labels, read_mask, with_masks

MAX_GROWTH_MB = 200.0
_SIZE = (10, 8)
_TOKENS = (
    b"NaN", b"1e999", b"-1", b"2e8", b"99999999999999999999", b"null", b"true", b"[", b"]", b"{", b"}", b'"', b"'",
    b",", b";", b"|", b"\t", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xe9", b" ", b"..", b"/",
    b"<", b">", b"&a;", b"]]>", b"utf-16", b"gb2312", b"1", b"0", b"1.0", b"cat dog", b"[[[[", b"0" * 50,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2.0, 0.5, 2e8, -(10**30), float("nan"), float("inf"), "", "1", "x", "../a.jpg",
    "/a.jpg", "\ud800", "a\0b", [], {}, [[]], [1], [1, 2, 3, 4, 5, 6], [[1, 2], [3, 4], [5, 6]], [[0, 0, 9, 0, 9, 9]],
    [[None] * 6],
    {"size": [8, 10], "counts": "0" * 400}, {"size": [8, 10], "counts": [80, 10**9]}, {"size": "x"}, "9" * 60,
)  # fmt: skip
METHOD = """\
Each input is one data set with one file damaged: up to six changes of a byte, cuts, repetitions, moved pieces, or
insertions of text that breaks parsers, drawn from the seed; of JSON, three times in four, up to three values are
replaced by odd ones instead. Read: it was opened, and all masks were drawn or refused;
refused: one sentence said why. Growth: the peak resident memory of the process after all inputs of the layout less that
before the first, in MB."""

Write = Callable[[Path], Sequence[Path]]


@dataclass
class Outcome:
    """What became of the damaged data sets of a layout."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    growth_mb: float = 0.0
    faults: list[str] = field(default_factory=list)


def _image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", _SIZE, (90, 120, 30)).save(path)


def _mask(path: Path, label: int) -> None:
    mask = np.zeros(_SIZE[::-1], dtype=np.uint8)
    mask[2:6] = label
    save_mask(path, mask)


def write_voc(root: Path) -> Sequence[Path]:
    """Write a VOC devkit; return the files to damage."""
    files = []
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "Annotations"):
        folder.mkdir(parents=True)
    for number in range(4):
        _image(root / "JPEGImages" / f"00{number}.jpg")
        _mask(root / "SegmentationClass" / f"00{number}.png", 1 + number % 2)
        annotation = root / "Annotations" / f"00{number}.xml"
        encoding = ("utf-8", "gb2312", "utf-16", "latin-1")[number]
        annotation.write_bytes(
            f'<?xml version="1.0" encoding="{encoding}"?><annotation><size><width>10</width></size>'
            f"<object><name>{('cat', 'dog')[number % 2]}</name></object></annotation>".encode(encoding)
        )
        files.append(annotation)
    for name, content in {"train_aug": "/J/000.jpg /S/000.png\n001\n", "val": "002\n003\n"}.items():
        (lists / f"{name}.txt").write_text(content)
        files.append(lists / f"{name}.txt")
    (root / "classes.yaml").write_text("classes: [cat, dog]\n")
    return [*files, root / "classes.yaml", root / "SegmentationClass" / "002.png"]


def _instances() -> dict[str, Any]:
    outlines: list[Any] = [
        [[1, 1, 5, 1, 5, 5, 1, 5]],
        {"size": [8, 10], "counts": [9, 4, 4, 4, 59]},
        {"size": [8, 10], "counts": "94400g1"},
    ]
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 10} for n in range(3)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1 + 2 * (n % 2), "segmentation": outlines[n], "iscrowd": n % 2}
            for n in range(3)
        ],
    }


def write_coco(root: Path) -> Sequence[Path]:
    """Write COCO; return the files to damage."""
    (root / "annotations").mkdir(parents=True)
    files = [root / "annotations" / f"instances_{split}.json" for split in ("train", "val")]
    for split, file in zip(("train", "val"), files, strict=True):
        file.write_text(json.dumps(_instances()))
        for number in range(3):
            _image(root / split / f"{number}.jpg")
    return files


def write_split_folders(root: Path) -> Sequence[Path]:
    """Write COCO in folders of splits, as Roboflow does; return the files to damage."""
    files = [root / split / "_annotations.coco.json" for split in ("train", "valid")]
    for file in files:
        for number in range(3):
            _image(file.parent / f"{number}.jpg")
        file.write_text(json.dumps(_instances()))
    return files


_TABLES = (
    "image,cat,dog\na.jpg,1,0\nb.jpg,0.0,1.0\nc.jpg,1,1\n",
    "image,labels\na.jpg,cat|dog\nb.jpg,dog\nc.jpg,\n",
    "image;labels\na.jpg;\"['cat', 'dog']\"\nb.jpg;['dog']\nc.jpg;[]\n",
    ",filename,width,class,xmin,split\n0,a.jpg,9,cat,1,train\n1,b.jpg,9,dog,2,val\n2,c.jpg,9,dog,2,train\n",
    "a.jpg,cat,dog\nb.jpg,dog\nc.jpg\n",
)


def write_table(root: Path, table: str) -> Sequence[Path]:
    """Write images with a table of labels; return the files to damage."""
    for name in "abc":
        _image(root / "images" / f"{name}.jpg")
        _mask(root / "masks" / f"{name}.png", 1)
    (root / "labels.csv").write_text(table)
    return [root / "labels.csv"] * 6 + [root / "masks" / "a.png"]


def _table_writer(table: str) -> Write:
    return lambda root: write_table(root, table)


LAYOUTS: Mapping[str, Write] = {
    "VOC": write_voc,
    "COCO": write_coco,
    "COCO in folders of splits": write_split_folders,
    **{f"table {place}": _table_writer(table) for place, table in enumerate(_TABLES, start=1)},
}


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """Return JSON with some values replaced by others, or their keys taken away."""
    whole = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        inside = whole
        while True:
            key = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            deeper = inside[key]
            if not isinstance(deeper, (dict, list)) or not deeper or draw.random() < 0.15:
                break
            inside = deeper
        if draw.random() < 0.1:
            del inside[key]
        else:
            inside[key] = draw.choice(_VALUES)
        if not whole:
            break
    return json.dumps(whole).encode()


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return a file's content with a few changes."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        size = len(changed)
        start = draw.randrange(size + 1)
        end = min(size, start + draw.choice((1, 1, 2, 8, 40)))
        kind = draw.randrange(6)
        if kind == 0 and size:
            changed[start % size] = draw.randrange(256)
        elif kind == 1:
            del changed[start:end]
        elif kind == 2:
            changed[start:start] = changed[start:end] * draw.choice((1, 2, 50))
        elif kind == 3:
            piece = changed[start:end]
            del changed[start:end]
            place = draw.randrange(len(changed) + 1)
            changed[place:place] = piece
        elif kind == 4:
            changed[start:end] = draw.choice(_TOKENS)
        else:
            changed[start:start] = draw.choice(_TOKENS)
    return bytes(changed)


def fuzz(layout: str, inputs: int, seed: int) -> Outcome:
    """Damage a data set of a layout so many times, and open it each time."""
    outcome, write = Outcome(), LAYOUTS[layout]
    with tempfile.TemporaryDirectory() as folder, _cache_in(Path(folder) / "cache"):
        root = Path(folder) / "data"
        root.mkdir()
        files = write(root)
        whole = {file: file.read_bytes() for file in files}
        _use(root)  # also loads what is loaded once
        began, before = time.perf_counter(), _peak_mb()
        for number in range(inputs):
            draw = random.Random(f"{seed} {layout} {number}")
            file = files[number % len(files)]
            damage = damaged_json if file.suffix == ".json" and number % 4 else damaged
            file.write_bytes(damage(whole[file], draw))
            outcome.inputs += 1
            try:
                outcome.read += _use(root)
            except Exception:
                outcome.faults.append(f"{layout}, seed {seed}, input {number}: {traceback.format_exc(limit=-3)}")
            file.write_bytes(whole[file])
            shutil.rmtree(Path(folder) / "cache", ignore_errors=True)
        outcome.refused = outcome.inputs - outcome.read - len(outcome.faults)
        outcome.seconds, outcome.growth_mb = time.perf_counter() - began, _peak_mb() - before
    return outcome


def _use(root: Path) -> bool:
    """Open a data set and read all that is in it; give whether it was not refused.

    Raises:
        AssertionError: A refusal is no sentence, or what was read makes no sense.
    """
    refusals: list[str] = []
    with _collecting(refusals):
        source = open_source(DataConfig(path=str(root)), seed=0, allow_missing=True)
    if refusals:
        return False
    samples = (*source.train, *source.val)
    for sample in samples:
        assert sample.image.is_relative_to(root.resolve()), f"outside the data: {sample.image}"
        assert image_labels(sample, len(source.classes)).sum() == len(sample.labels)
    for sample in with_masks(samples):
        with _collecting(refusals):
            read_mask(sample)
    assert all("\n" not in str(notice) for notice in source.notices)
    return True


@contextmanager
def _collecting(refusals: list[str]) -> Iterator[None]:
    """Add what a reader refuses in the block, which must be one sentence."""
    before = len(refusals)
    try:
        yield
    except TocoError as error:
        refusals.append(str(error))
    assert not any("\n" in one for one in refusals[before:]), f"more than one line: {refusals[before:]!r}"


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Keep what is made once in a folder of its own."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before


def _peak_mb() -> float:
    """Return the peak resident memory of this process in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Damage data sets of every layout, and print what became of them; return 1 if one was not refused properly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="damaged data sets of all layouts together")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md")
    arguments = parser.parse_args(argv)
    origin = provenance(torch.device("cpu"), "benchmarks.fuzz_readers", argv)
    share = -(-arguments.inputs // len(LAYOUTS))
    outcomes = {layout: fuzz(layout, share, arguments.seed) for layout in LAYOUTS}
    result = {"provenance": origin, "layouts": {name: vars(outcome) for name, outcome in outcomes.items()}}
    text = as_markdown(outcomes, origin)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return int(any(one.faults or one.growth_mb > MAX_GROWTH_MB for one in outcomes.values()))


def as_markdown(outcomes: Mapping[str, Outcome], origin: Mapping[str, Any]) -> str:
    """Return the table, with what it was made on and how."""
    rows = [
        [name, f"{one.inputs:,}", f"{one.read:,}", f"{one.refused:,}", str(len(one.faults)), f"{one.growth_mb:.0f}",
         f"{1000 * one.seconds / max(1, one.inputs):.1f}"]
        for name, one in outcomes.items()
    ]  # fmt: skip
    total = sum(one.inputs for one in outcomes.values())
    faults = [fault for one in outcomes.values() for fault in one.faults]
    return "\n\n".join(
        [
            f"# {total:,} damaged data sets: {len(faults)} not read and not refused in a sentence",
            provenance_text(origin),
            markdown_table(("layout", "inputs", "read", "refused", "faults", "growth, MB", "ms an input"), rows),
            METHOD,
            *(f"```\n{fault}```" for fault in faults[:10]),
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command("fuzz_readers")(main)(None))

"""Write scenes as a data set in the layout of PASCAL VOC."""

from __future__ import annotations

import json
import multiprocessing
import signal
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from pydantic import Field
from rich.console import Console

from toco_core.cli import progress_bars
from toco_core.config import FrozenModel
from toco_core.errors import DataError
from toco_core.files import atomic_folder
from toco_core.palette import mask_png
from toco_train.shapes.canvas import BoolArray
from toco_train.shapes.config import RECIPE_FILE, SceneConfig
from toco_train.shapes.objects import CLASS_NAMES
from toco_train.shapes.plan import SceneObject
from toco_train.shapes.scene import Scene, make_scene
from toco_train.shapes.sheet import COLUMNS, ROWS, save_contact_sheet

DRAWING_VERSION = 1
"""To be raised when a change of the drawing code makes other images from the same recipe."""

FOLDERS = ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation", "ImageSets/Main")
JPEG_QUALITY = 95
VAL_SHARE = 0.2
POOL_PAYS_FROM = 64  # fewer images are drawn faster than worker processes start


class Recipe(FrozenModel):
    """All that determines a data set, byte for byte."""

    images: int = Field(description="Number of images, both splits together.")
    size: int = Field(description="Side of the square images, in pixels.")
    seed: int = Field(description="Seed of the whole data set.")
    scene: SceneConfig = Field(default_factory=SceneConfig, description="How hard the scenes are.")
    drawing_version: int = Field(DRAWING_VERSION, description="Version of the drawing code.")

    @property
    def num_val(self) -> int:
        """Number of validation images: the last ones."""
        return round(self.images * VAL_SHARE)

    def make_scene(self, index: int) -> Scene:
        """Draw one scene of the data set."""
        return make_scene(self.seed, index, self.size, self.scene)


def image_id(index: int) -> str:
    """Return the file stem of an image, as VOC 2007 numbers them: ``000001`` first."""
    return f"{index + 1:06d}"


def write_images(folder: Path, recipe: Recipe, num_workers: int) -> Iterator[frozenset[str]]:
    """Draw every image into the VOC folders and yield, in order, the names of the classes that it shows.

    The workers' number changes nothing but the time: each image depends on the recipe and its index alone.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    write = partial(_write_image, folder, recipe)
    if num_workers == 1 or recipe.images < POOL_PAYS_FROM:
        yield from map(write, range(recipe.images))
        return
    spawn = multiprocessing.get_context("spawn")  # the progress bar runs a thread, with which forking is unsafe
    pool = ProcessPoolExecutor(num_workers, spawn, initializer=_leave_interrupts_to_the_parent)
    try:
        yield from pool.map(write, range(recipe.images), chunksize=16)
    finally:
        pool.shutdown(cancel_futures=True)


def write_lists(folder: Path, recipe: Recipe, contents: list[frozenset[str]]) -> None:
    """Write the split lists, VOC's list of each class (1 shown, -1 not), the class names and the recipe."""
    ids = [image_id(index) for index in range(recipe.images)]
    num_train = recipe.images - recipe.num_val
    splits = {"train": slice(0, num_train), "val": slice(num_train, None), "trainval": slice(0, None)}
    for split, span in splits.items():
        for kind in ("Segmentation", "Main"):
            _write_lines(folder / "ImageSets" / kind / f"{split}.txt", ids[span])
        for name in CLASS_NAMES:
            pairs = zip(ids[span], contents[span], strict=True)
            lines = [f"{stem} {1 if name in shown else -1:2d}" for stem, shown in pairs]
            _write_lines(folder / "ImageSets" / "Main" / f"{name}_{split}.txt", lines)
    classes = yaml.safe_dump({"classes": list(CLASS_NAMES)}, default_flow_style=None)
    (folder / "classes.yaml").write_text(classes, encoding="utf-8")
    (folder / RECIPE_FILE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def annotation(stem: str, scene: Scene) -> str:
    """Return the VOC annotation of a scene, XML: boxes count pixels from 1 and enclose what is visible."""
    height, width = scene.labels.shape
    root = ET.Element("annotation")
    _add(root, folder="toco-shapes", filename=f"{stem}.jpg")
    _add(ET.SubElement(root, "source"), database="toco-shapes", annotation="toco-shapes", image="synthetic")
    _add(ET.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=1)
    for item in scene.objects:
        _add_object(root, item)
    ET.indent(root, "\t")
    return ET.tostring(root, encoding="unicode") + "\n"


def _write_image(folder: Path, recipe: Recipe, index: int) -> frozenset[str]:
    """Draw one scene, write its three files and return the names of its classes."""
    stem, scene = image_id(index), recipe.make_scene(index)
    Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{stem}.jpg", quality=JPEG_QUALITY)
    (folder / "SegmentationClass" / f"{stem}.png").write_bytes(mask_png(scene.labels))
    (folder / "Annotations" / f"{stem}.xml").write_text(annotation(stem, scene), encoding="utf-8")
    return frozenset(item.name for item in scene.objects)


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone answers it, by cancelling what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _add_object(root: ET.Element, item: SceneObject) -> None:
    """Append one object's element."""
    element = ET.SubElement(root, "object")
    _add(element, name=item.name, pose="Unspecified", truncated=int(item.truncated), difficult=0)
    _add(ET.SubElement(element, "bndbox"), **_bounding_box(item.mask))


def _bounding_box(mask: BoolArray) -> dict[str, int]:
    """Return the box around a mask, both ends included, counted from 1."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = {"xmin": columns[0], "ymin": rows[0], "xmax": columns[-1], "ymax": rows[-1]}
    return {name: int(value) + 1 for name, value in corners.items()}


def _add(parent: ET.Element, **values: str | int) -> None:
    """Append one text element per keyword."""
    for name, value in values.items():
        ET.SubElement(parent, name).text = str(value)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_dataset(out: Path, recipe: Recipe, num_workers: int = 1) -> None:
    """Draw and write a data set; the folder appears whole or not at all.

    Raises:
        DataError: The folder cannot be written, or a worker process died.
    """
    console = Console(stderr=True)
    try:
        with atomic_folder(out) as folder:
            images = write_images(folder, recipe, num_workers)
            with progress_bars(console, transient=True) as progress:
                scenes = list(progress.track(images, total=recipe.images, description="drawing"))
            write_lists(folder, recipe, scenes)
            shown = range(min(COLUMNS * ROWS, recipe.images))
            save_contact_sheet(folder / "contact_sheet.png", [recipe.make_scene(index) for index in shown])
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot write {out}: {reason}; give a folder that can be created and written to") from error
    except BrokenProcessPool as error:
        raise DataError(f"a worker process died before {out} was complete (memory?); try --workers 1") from error

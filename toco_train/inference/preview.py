"""Grids of images to look at: an image, its activation maps, its masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from toco_core.files import atomic_path
from toco_core.palette import IGNORE_INDEX, UInt8Array, colour_mask, overlay
from toco_train.data.classes import ClassList
from toco_train.data.source import Sample, read_mask
from toco_train.inference.predict import Prediction, resized

Row = Sequence[UInt8Array]


def heat(image: UInt8Array, strength: npt.NDArray[np.float32]) -> UInt8Array:
    """Lay a map in [0, 1], ``[H, W]``, over its image, ``[H, W, 3]`` uint8: dark blue is 0, yellow 1."""
    from matplotlib import colormaps  # noqa: PLC0415  (slow to import, and only images need it)

    colours = colormaps["viridis"](np.clip(strength, 0, 1))[..., :3] * 255
    return (0.35 * image + 0.65 * colours).round().astype(np.uint8)


def prediction_row(sample: Sample, prediction: Prediction, palette: UInt8Array) -> list[UInt8Array]:
    """Return image, aux CAM, CAM, predicted mask and truth of a sample, each uint8 ``[H, W, 3]``.

    ``palette``: colours of the labels 0..C, uint8 ``[C + 1, 3]``.

    The maps show the strongest of the classes that the image is tagged with; the truth is left out where there is none.
    """
    image = np.asarray(prediction.image)
    row = [image]
    for cam in (prediction.aux_cam, prediction.cam):
        strongest = cam.amax(dim=0, keepdim=True) if sample.labels else cam.new_zeros(1, *cam.shape[1:])
        row.append(heat(image, resized(strongest, prediction.size)[0].cpu().numpy()))
    row.append(overlay(image, prediction.seg_mask().numpy(), palette=palette))
    if sample.mask is not None:
        row.append(labelled(image, read_mask(sample), palette))
    return row


def labelled(image: UInt8Array, mask: UInt8Array, palette: UInt8Array) -> UInt8Array:
    """Lay a label map, uint8 ``[H, W]``, over its image, ``[H, W, 3]`` uint8, with pixels of 255 in plain cream."""
    shown = overlay(image, mask, palette=palette)
    ignored = mask == IGNORE_INDEX
    shown[ignored] = colour_mask(mask)[ignored]
    return shown


PREDICTION_TITLES = ("image", "aux CAM", "CAM", "predicted mask", "truth")


def save_grid(path: Path, rows: Sequence[Row], titles: Sequence[str], class_list: ClassList, caption: str = "") -> None:
    """Write rows of images with column titles and a legend of the classes, as PNG, whole or not at all.

    Args:
        path: Where to write.
        rows: For each row its images, uint8 ``[H, W, 3]``, at most as many as ``titles``.
        titles: Column titles.
        class_list: Names and colours for the legend.
        caption: One line above everything.
    """
    classes, colours = class_list.classes, class_list.rgb[1:] / 255
    cell, heading, legend = 1.75, 0.62 if caption else 0.36, 0.34 * -(-len(classes) // 6) + 0.15
    figure = Figure(figsize=(cell * len(titles), cell * len(rows) + heading + legend), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, cells in zip(rows, axes, strict=True):
        for axis in cells:
            axis.set_axis_off()
        for image, axis in zip(row, cells, strict=False):
            axis.imshow(image, interpolation="nearest")
    for title, axis in zip(titles, axes[0], strict=True):
        axis.set_title(title, fontsize=11, pad=5)
    if caption:
        figure.text(0.5, 0.995, caption, ha="center", va="top", fontsize=10, color="#444444")
    handles = [Patch(color=colour, label=name) for name, colour in zip(classes, colours, strict=True)]
    figure.legend(handles=handles, loc="lower center", ncol=min(6, len(handles)), frameon=False, fontsize=10)
    height = figure.get_figheight()
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - heading / height, bottom=legend / height, wspace=0.03, hspace=0.03
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)

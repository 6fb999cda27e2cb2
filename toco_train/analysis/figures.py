"""The figure of chosen places: each network's CAM and how alike its patch tokens are to the one there."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from toco_core.charts import chart_axes, legend_above, line_style, plain_text
from toco_core.palette import UInt8Array
from toco_train.analysis.token_similarity import BlockSimilarity, PlaceInImage
from toco_train.inference.predict import resized
from toco_train.inference.preview import heat

_CELL_IN = 1.5
_MAX_SIDE_PX = 480
_LETTERS_PER_IN = 110  # bold ones of one point
_LEGEND_PER_IN = 16
_LEGEND = "|cosine| of final patch tokens with the one at the circle"
_LEFT_IN, _TOP_IN, _BOTTOM_IN = 0.3, 0.62, 0.55


def patch_figure(places: Sequence[PlaceInImage], classes: Sequence[str]) -> Figure:
    """Draw a row for each place: the image with the place marked, then for each network CAM and similarity map.

    Args:
        places: The places; all of the same networks.
        classes: Names of labels 1..C: the tags stand beside each row.
    """
    names = [view.name for view in places[0].views]
    with_cam = [any(place.views[index].cam is not None for place in places) for index in range(len(names))]
    num_columns = 1 + sum(1 + has for has in with_cam)
    width, height = _LEFT_IN + _CELL_IN * num_columns, _TOP_IN + _CELL_IN * len(places) + _BOTTOM_IN
    figure = Figure(figsize=(width, height), facecolor="white")
    grid = figure.subplots(len(places), num_columns, squeeze=False)
    figure.subplots_adjust(
        left=_LEFT_IN / width, right=1, top=1 - _TOP_IN / height, bottom=_BOTTOM_IN / height, wspace=0.04, hspace=0.04
    )
    grid[0][0].set_title("image", fontsize=9, pad=4)
    for place, cells in zip(places, grid, strict=True):
        image = _shown(place)
        remaining = iter(cells)
        first = next(remaining)
        _draw(first, image, place)
        tags = ", ".join(classes[label - 1] for label in place.sample.labels) or "no tag"
        first.set_ylabel(tags.replace("$", r"\$"), fontsize=8)
        for view, has_cam in zip(place.views, with_cam, strict=True):
            if has_cam:
                axis = next(remaining)
                _draw(axis, heat(image, _fitted(view.cam, image)) if view.cam is not None else None, None)
                axis.set_title("CAM" if place is places[0] else "", fontsize=9, pad=4)
            axis = next(remaining)
            _draw(axis, heat(image, _fitted(view.similarity, image)), place)
            axis.set_title("similarity" if place is places[0] else "", fontsize=9, pad=4)
    _name_networks(figure, names, with_cam, width, height)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), "viridis"),
        cax=figure.add_axes((_LEFT_IN / width, 0.3 / height, _CELL_IN / width, 0.1 / height)), orientation="horizontal",
        ticks=[0, 0.5, 1],
    )  # fmt: skip
    bar.ax.tick_params(labelsize=8, pad=1, length=2)
    left = _LEFT_IN + _CELL_IN + 0.15
    legend = textwrap.fill(("CAM; " if any(with_cam) else "") + _LEGEND, int((width - left) * _LEGEND_PER_IN))
    figure.text(left / width, 0.28 / height, legend, fontsize=8, va="center", linespacing=1.1)
    return figure


def _name_networks(figure: Figure, names: Sequence[str], with_cam: Sequence[bool], width: float, height: float) -> None:
    """Write each network's name over its columns, with a line under it."""
    column = 1
    for name, has_cam in zip(names, with_cam, strict=True):
        left, right = (_LEFT_IN + _CELL_IN * (column + side) for side in (0.04, has_cam + 0.96))
        column += 1 + has_cam
        figure.text((left + right) / 2 / width, 1 - 0.1 / height, name.replace("$", r"\$"), ha="center", va="top",
                    fontsize=min(10, (right - left) * _LETTERS_PER_IN / len(name)), weight="bold")  # fmt: skip
        y = 1 - 0.34 / height
        figure.add_artist(Line2D([left / width, right / width], [y, y], color="#808080", linewidth=0.8))


def _draw(axis: Axes, pixels: UInt8Array | None, marked: PlaceInImage | None) -> None:
    """Show pixels without axes, and the place on them; nothing where there are none."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    if pixels is None:
        axis.text(0.5, 0.5, "no tag", ha="center", va="center", fontsize=8, transform=axis.transAxes)
        return
    axis.imshow(pixels, interpolation="nearest")
    if marked is not None:
        x, y = marked.point
        height, width = pixels.shape[:2]
        axis.plot(
            [x * width - 0.5], [y * height - 0.5], "o", markersize=7, markerfacecolor="none", markeredgecolor="white",
            markeredgewidth=1.4, path_effects=[withStroke(linewidth=3, foreground="black")],
        )  # fmt: skip


def _shown(place: PlaceInImage) -> UInt8Array:
    """Return the image, no larger than it is seen, uint8 ``[H, W, 3]``."""
    image = place.image.copy()
    image.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    return np.asarray(image)


def _fitted(values: npt.NDArray[np.float32], image: UInt8Array) -> npt.NDArray[np.float32]:
    """Resize a map to its image, bilinearly."""
    fitted: npt.NDArray[np.float32] = resized(torch.from_numpy(values)[None], (image.shape[0], image.shape[1]))[
        0
    ].numpy()
    return fitted


def similarity_chart(curves: Sequence[BlockSimilarity], size: tuple[float, float] = (6.4, 3.9)) -> Figure:
    """Draw how alike patch tokens are after each block, one line for each network.

    Args:
        curves: The networks; they may have different numbers of blocks.
        size: Width and height in inches.
    """
    figure, axes = chart_axes(size, "block", "mean pairwise |cosine|\nof patch tokens")
    for index, curve in enumerate(curves):
        style = line_style(index)
        last, mean = curve.num_blocks, curve.mean
        axes.plot(np.arange(1, last + 1), mean[:-1], label=plain_text(curve.name), **style)
        axes.plot([last, last + 1], mean[-2:], color=style["color"], linewidth=1, linestyle=":")
        axes.plot([last + 1], mean[-1:], **{**style, "markerfacecolor": "none", "linestyle": "none"})
    depth = max(curve.num_blocks for curve in curves)
    ticks = {block: str(block) for block in range(1, depth + 1, 1 if depth <= 16 else 2)}
    if all(curve.num_blocks == depth for curve in curves):
        ticks[depth + 1] = "norm"
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_ylim(0, 1)
    open_marker = Line2D([], [], color="#808080", marker="o", markersize=4.5, markerfacecolor="none", linestyle="none")
    handles, names = axes.get_legend_handles_labels()
    legend_above(figure, [*handles, open_marker], [*names, "open: after the final norm"])
    return figure

"""The confusion matrix as a figure: which label is predicted for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from toco_core.files import atomic_path

_MOST_LABELS_WITH_NUMBERS = 32
_LONGEST_NAME = 16
_LEAST_SHARE_WRITTEN = 0.005  # rounds to 1 %
_DARK = 0.45  # cells above this share have white text


def save_confusion(path: Path, counts: Tensor, labels: Sequence[str], title: str) -> None:
    """Write a confusion matrix as PNG, whole or not at all.

    Args:
        path: Where to write.
        counts: Pixels by true and predicted label, int64 ``[L, L]``.
        labels: Names of the labels, background first.
        title: Heading.
    """
    figure = confusion_figure(counts, labels, title)
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", pad_inches=0.15)


def confusion_figure(counts: Tensor, labels: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: the darker a cell, the larger its share of the true label.

    One hue from light to dark, which colour-blind readers see as well. With up to 32 labels, each share of 1 % or more
    is written in its cell. A label that does not occur in the ground truth has a grey row.

    Args:
        counts: Pixels by true and predicted label, int64 ``[L, L]``.
        labels: Names of the labels, background first.
        title: Heading.
    """
    shares = _shares(counts)
    num_labels = len(labels)
    numbered = num_labels <= _MOST_LABELS_WITH_NUMBERS
    cell = 0.62 if num_labels <= 10 else 0.4 if numbered else 0.155
    size = 11 if num_labels <= 10 else 8.5 if numbered else 7
    side = cell * num_labels
    figure = Figure(figsize=(side, side), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("#d9d9d9")
    axes.set_title(title, fontsize=12, pad=12)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    names = [_short(name) for name in labels]
    axes.set_xticks(range(num_labels), names, rotation=90, fontsize=size)
    axes.set_yticks(range(num_labels), names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=size + 1)
    axes.set_ylabel("true", fontsize=size + 1)
    edges = np.arange(num_labels + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6 if numbered else 0.3)
    axes.tick_params(which="minor", length=0)
    for (row, column), share in np.ndenumerate(shares) if numbered else ():
        if share >= _LEAST_SHARE_WRITTEN:
            colour = "white" if share > _DARK else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=size)
    bar_axes = figure.add_axes((1 + 0.2 / side, 0, 0.16 / side, min(1, 4 / side)))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "25", "50", "100 %"], fontsize=9)
    return figure


def _short(name: str) -> str:
    """Shorten a name, and keep matplotlib from reading ``$`` as a formula."""
    return (name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…").replace("$", r"\$")


def _shares(counts: Tensor) -> npt.NDArray[np.float64]:
    """Divide each row by its sum; NaN where that is 0."""
    numbers = counts.numpy().astype(np.float64)
    totals = numbers.sum(axis=1, keepdims=True)
    return np.divide(numbers, totals, out=np.full_like(numbers, np.nan), where=totals > 0)

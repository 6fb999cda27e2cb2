"""Charts of numbers: one look, colours that every kind of colour vision tells apart, and two ways out of matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toco_core.files import atomic_path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_THEME = {"#010203": "var(--ink)", "#040506": "var(--soft)", "#070809": "var(--line)"}  # colours that nothing else has
_INK, _SOFT, _LINE = _THEME
_PX_PER_PT = 96 / 72
_MOST_MARKERS = 15


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name, and its points in order."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curve_chart(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    size: tuple[float, float],
    x_limits: tuple[float, float],
    y_limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw lines over a common x.

    Args:
        curves: The lines; one of few points shows them.
        x: What x is, with its unit.
        y: What y is, with its unit.
        size: Width and height in inches.
        x_limits: Range of x.
        y_limits: Range of y; None for that of the lines.
    """
    figure, axes = _chart(size, x, y)
    for index, curve in enumerate(curves):
        style = line_style(index)
        if len(curve.x) > _MOST_MARKERS:
            style |= {"marker": "", "linewidth": 1.4}
        axes.plot(curve.x, curve.y, label=_plain(curve.name), **style)
    axes.set_xlim(*x_limits)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    if len(curves) > 1:
        _legend(figure, *axes.get_legend_handles_labels())
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line; the first 42 lines differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": "-" if index < len(COLOURS) else "--",
        "linewidth": 1.6,
        "markersize": 4.5,
    }


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem`` with .png and .svg after it, each whole or not at all, and return the paths.

    Raises:
        OSError: They cannot be written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".svg")]
    metadata: tuple[Mapping[str, str | None], ...] = ({}, {"Date": None})
    FigureCanvasAgg(figure)
    for path, known in zip(paths, metadata, strict=True):
        with atomic_path(path) as temporary, matplotlib.rc_context({"svg.hashsalt": stem.name}):
            figure.savefig(temporary, dpi=150, bbox_inches="tight", pad_inches=0.1, metadata=known)
    return paths


@contextmanager
def themed() -> Iterator[None]:
    """Draw figures in this block with the colours of the page that ``inline_svg`` puts them in, light or dark."""
    with matplotlib.rc_context({
        "text.color": _INK, "axes.labelcolor": _SOFT, "axes.edgecolor": _LINE, "xtick.color": _SOFT,
        "ytick.color": _SOFT, "grid.color": _LINE, "legend.labelcolor": _INK,
    }):  # fmt: skip
        yield


def inline_svg(figure: Figure, name: str, least: float = 0.0) -> str:
    """Return a figure that was drawn ``themed`` as an SVG element to stand in a page.

    It is at most as wide as drawn, its text stays text, and its colours are the page's variables ``--ink``, ``--soft``
    and ``--line``.

    Args:
        figure: The figure.
        name: What it shows, for those who cannot see it; its identifiers in the page are made from it.
        least: Width below which it does not shrink, as a share of the width that it is drawn at.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.02, metadata={"Date": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # the same in every figure, and nothing refers to them
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1]) * _PX_PER_PT  # type: ignore[index]
    limits = f'style="max-width: {width:.0f}px; min-width: {least * width:.0f}px"'
    svg = re.sub(r'<svg ([^>]*?)width="[\d.]+pt"', rf"<svg \1{limits}", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"', rf'<svg \1role="img" aria-label="{escape(name)}"', svg, count=1)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg


def _chart(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Put the legend above the axes, where no line is."""
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13 // max(map(len, names)))))
    figure.legend(handles, names, loc="outside upper left", ncol=columns, frameon=False, fontsize=9)


def _plain(name: str) -> str:
    """Keep matplotlib from taking a name for a formula, or for one to leave out."""
    return name.replace("$", r"\$").lstrip("_") or name

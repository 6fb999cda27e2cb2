"""Charts with matplotlib: one style, colours that colour-blind readers can tell apart, PNG, SVG or inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toco_core.files import atomic_path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_THEME = {"#010203": "var(--ink)", "#040506": "var(--soft)", "#070809": "var(--line)"}  # colours that nothing else uses
_INK, _SOFT, _LINE = _THEME
_PX_PER_PT = 96 / 72
_MOST_MARKERS = 15


@dataclass(frozen=True)
class Curve:
    """A line of a chart: its name and its points in order."""

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
        curves: The lines; a line with few points has markers.
        x: Label of the x axis, with the unit.
        y: Label of the y axis, with the unit; empty if the chart has its title elsewhere.
        size: Width and height in inches.
        x_limits: Range of x.
        y_limits: Range of y; None for the range of the lines.
    """
    figure, axes = chart_axes(size, x, y)
    for index, curve in enumerate(curves):
        style = line_style(index)
        if len(curve.x) > _MOST_MARKERS:
            style |= {"marker": "", "linewidth": 1.4}
        axes.plot(curve.x, curve.y, label=plain_text(curve.name), **style)
    axes.set_xlim(*x_limits)
    if y_limits is not None:
        axes.set_ylim(*y_limits)
    if len(curves) > 1:
        legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def line_style(index: int) -> dict[str, Any]:
    """Return colour, marker and dashes of a line; the first 42 lines all differ."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": "-" if index < len(COLOURS) else "--",
        "linewidth": 1.6,
        "markersize": 4.5,
    }


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem.png`` and ``stem.svg``, each whole or not at all, and return the paths.

    Raises:
        OSError: A file cannot be written.
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
    """Draw the figures in this block so that ``inline_svg`` gives them the colours of the page, light or dark."""
    with matplotlib.rc_context({
        "text.color": _INK, "axes.labelcolor": _SOFT, "axes.edgecolor": _LINE, "xtick.color": _SOFT,
        "ytick.color": _SOFT, "grid.color": _LINE, "legend.labelcolor": _INK,
    }):  # fmt: skip
        yield


def inline_svg(figure: Figure, name: str, least: float = 0.0) -> Markup:
    """Return a figure, drawn inside ``themed``, as an SVG element for a page.

    It is at most as wide as drawn. Its text stays text. Its colours are the page's CSS variables ``--ink``, ``--soft``
    and ``--line``.

    Args:
        figure: The figure.
        name: What it shows, for screen readers; must be unique in the page, because the SVG's ids are made from it.
        least: Smallest width, as a share of the drawn width.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(
            buffer, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.02, metadata={"Date": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # repeated in every figure, and nothing refers to them
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1]) * _PX_PER_PT  # type: ignore[index]
    limits = f'style="max-width: {width:.0f}px; min-width: {least * width:.0f}px"'
    svg = re.sub(r'<svg ([^>]*?)width="[\d.]+pt"', rf"<svg \1{limits}", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[\d.]+pt"', rf'<svg \1role="img" aria-label="{escape(name)}"', svg, count=1)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return Markup(svg)


def chart_axes(size: tuple[float, float], x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in inches, and its axes with these labels."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def legend_above(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Put the legend above the axes, where it covers no line."""
    columns = max(1, min(len(names), int(figure.get_figwidth() * 13 // max(map(len, names)))))
    figure.legend(handles, names, loc="outside upper left", ncol=columns, frameon=False, fontsize=9)


def plain_text(name: str) -> str:
    """Return a name that matplotlib shows as it is: not as a formula (``$``), not left out of the legend (``_``)."""
    return name.replace("$", r"\$").lstrip("_") or name

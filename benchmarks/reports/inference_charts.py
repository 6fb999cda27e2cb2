"""The charts of an inference report: latency and throughput over the grid, and the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.harness.peaks import Roofline
from toco_core.charts import legend_above, line_style

ROOF = "#555555"
SPACE_FOR_A_NOTE = 1.3  # between two lines of the roofline, as a ratio
Cell = Mapping[str, Any]


def grid_chart(result: Mapping[str, Any]) -> Figure:
    """Draw latency and throughput over the batch size, with a column per image size and a line per backend.

    Args:
        result: The content of the report's JSON, with at least one cell.
    """
    cells: Sequence[Cell] = result["cells"]
    sizes = sorted({cell["size"] for cell in cells})
    batches = sorted({cell["batch"] for cell in cells})
    figure = Figure(figsize=(max(5.0, 1.6 + 2.5 * len(sizes)), 5.2), layout="constrained")
    rows = figure.subplots(2, len(sizes), sharex=True, squeeze=False)
    for axes in rows[0][1:]:
        axes.sharey(rows[0][0])
    for size, top, bottom in zip(sizes, *rows, strict=True):
        for name, style in _styles(cells).items():
            line = sorted((c for c in cells if c["backend"] == name and c["size"] == size), key=lambda c: c["batch"])
            x = [cell["batch"] for cell in line]
            top.plot(x, [1e3 * cell["time_s"]["median"] for cell in line], label=name, **style)
            bottom.plot(x, [cell["images_per_second"] for cell in line], **style)
        top.set_title(f"{size} px", fontsize=10)
        bottom.set_xlabel("batch, images")
        for axes in (top, bottom):
            axes.set_xscale("log", base=2)
            axes.set_xlim(batches[0] / 1.4, batches[-1] * 1.4)
            axes.set_xticks(batches, [str(batch) for batch in batches])
            axes.xaxis.set_minor_locator(NullLocator())
            _quiet(axes)
        _log_axis(top)
        bottom.set_ylim(0, 1.1 * max(cell["images_per_second"] for cell in cells if cell["size"] == size))
    rows[0][0].set_ylabel("latency, ms per batch")
    rows[1][0].set_ylabel("throughput, images/s")
    legend_above(figure, *rows[0][0].get_legend_handles_labels())
    return figure


def roofline_chart(result: Mapping[str, Any]) -> Figure:
    """Draw the performance of each backend over its arithmetic intensity, below the best measured peaks of the machine.

    Args:
        result: The content of the report's JSON, with at least one cell.
    """
    cells: Sequence[Cell] = result["cells"]
    memory = {place: max(found) for place, found in result["memory_bytes_per_second"].items()}
    roofs = {name: Roofline(max(found), memory[name.split(" on ")[1]])
             for name, found in result["gemm_flops_per_second"].items()}  # fmt: skip
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    ridges = [roof.flops_per_second / roof.bytes_per_second for roof in roofs.values()]
    intensities = [cell["intensity"] for cell in cells]
    left, right = min(ridges + intensities) / 4, 2 * max(ridges + intensities)
    x = np.geomspace(left, right, 200)
    for roof in roofs.values():
        axes.plot(x, [roof.bound(at) / 1e9 for at in x], color=ROOF, linewidth=1.4, zorder=1)
    for group in _close_together({name: roof.flops_per_second / 1e9 for name, roof in roofs.items()}):
        peaks = "; ".join(f"{name}: {peak:,.0f}" for name, peak in group.items())
        _note(axes, f"products, {peaks} GFLOP/s", (right, max(group.values())), (-4, 3), "right")
    for place, rate in memory.items():
        _note(axes, f"memory, {place}: {rate / 1e9:,.0f} GB/s", (2 * left, 2 * left * rate / 1e9), (10, -12), "left")
    for name, style in _styles(cells).items():
        mine = [cell for cell in cells if cell["backend"] == name]
        axes.plot([cell["intensity"] for cell in mine], [cell["flops_per_second"] / 1e9 for cell in mine],
                  label=name, **{**style, "linestyle": "none"})  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set(xlabel="arithmetic intensity, FLOP/byte", ylabel="GFLOP/s")
    _log_axis(axes)
    _quiet(axes)
    reached = [cell["flops_per_second"] / 1e9 for cell in cells]
    axes.set_ylim(min(reached) / 10, 2 * max(roof.flops_per_second / 1e9 for roof in roofs.values()))
    legend_above(figure, *axes.get_legend_handles_labels())
    return figure


def _close_together(peaks: Mapping[str, float]) -> list[dict[str, float]]:
    """Group peaks whose lines are too close for a note between them, each group from the highest down."""
    groups: list[dict[str, float]] = []
    for name, peak in sorted(peaks.items(), key=lambda item: -item[1]):
        if groups and peak > min(groups[-1].values()) / SPACE_FOR_A_NOTE:
            groups[-1][name] = peak
        else:
            groups.append({name: peak})
    return groups


def _styles(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Return the line style of each backend, in the order of the tables."""
    return {name: line_style(index) for index, name in enumerate(dict.fromkeys(cell["backend"] for cell in cells))}


def _log_axis(axes: Axes) -> None:
    """Make y logarithmic, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,.12g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _quiet(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], align: str) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", ha=align, va="bottom", fontsize=8)

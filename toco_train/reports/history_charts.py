"""Charts of a run's history: losses, learning rate and mIoU, as SVG in the colours of the page."""

from __future__ import annotations

import math

from markupsafe import Markup

from toco_core.charts import Curve, curve_chart, inline_svg, themed
from toco_train.runs.history import History, thinned

_SIZE_IN = (3.4, 2.2)
_LOSSES = {
    "total loss, weighted": ("total",),
    "classification loss": ("cls", "aux_cls"),
    "patch token contrast": ("ptc",),
    "class token contrast": ("ctc",),
    "segmentation loss": ("seg",),
    "dense energy": ("reg",),
}
MASKS = {"cam": "CAM", "aux_cam": "aux CAM", "seg": "segmentation"}


def history_charts(history: History) -> dict[str, Markup]:
    """Return an SVG chart by title, of each group of losses that was ever on, the learning rate, and the mIoU.

    In a long run each point of a loss is the mean of several neighbours.
    """
    charts = {}
    losses = history.losses()
    for title, names in _LOSSES.items():
        if curves := [Curve(name, *thinned(*losses[name])) for name in names if name in losses]:
            charts[title] = _chart(title, curves)
    if history.steps:
        rates = [line["step"] for line in history.steps], [line["lr"] for line in history.steps]
        charts["learning rate"] = _chart("learning rate", [Curve("learning rate", *thinned(*rates))])
    if history.evaluations:
        steps = [line["step"] for line in history.evaluations]
        curves = [
            Curve(name, steps, [_percent(line["evaluation"][kind]["mean_iou"]) for line in history.evaluations])
            for kind, name in MASKS.items()
        ]
        charts["mIoU, %"] = _chart("mIoU, %", curves, limits=(0, 100))
    return charts


def _percent(share: float | None) -> float:
    """Return a share of 1 in per cent; NaN, which is not drawn, for None."""
    return math.nan if share is None else 100 * share


def _chart(title: str, curves: list[Curve], limits: tuple[float, float] | None = None) -> Markup:
    last = max(curve.x[-1] for curve in curves)
    with themed():
        figure = curve_chart(curves, x="step", y="", size=_SIZE_IN, x_limits=(0, 1.03 * last), y_limits=limits)
    return inline_svg(figure, title)

"""The charts of a run's history, as HTML figures in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Iterator

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


def history_charts(history: History) -> Iterator[str]:
    """Yield a figure of each group of losses that was ever on, of the learning rate, and of mIoU at each evaluation.

    In a long run each point of a loss is the mean of some neighbours.
    """
    losses = history.losses()
    for title, names in _LOSSES.items():
        if curves := [Curve(name, *thinned(*losses[name])) for name in names if name in losses]:
            yield _figure(title, curves)
    if history.steps:
        rates = [line["step"] for line in history.steps], [line["lr"] for line in history.steps]
        yield _figure("learning rate", [Curve("learning rate", *thinned(*rates))])
    if history.evaluations:
        steps = [line["step"] for line in history.evaluations]
        yield _figure(
            "mIoU, %",
            [
                Curve(name, steps, [_percent(line["evaluation"][kind]["mean_iou"]) for line in history.evaluations])
                for kind, name in MASKS.items()
            ],
            limits=(0, 100),
        )


def _percent(share: float | None) -> float:
    """Return a share of 1 in per cent; NaN, which is not drawn, where there is none."""
    return math.nan if share is None else 100 * share


def _figure(title: str, curves: list[Curve], limits: tuple[float, float] | None = None) -> str:
    last = max(curve.x[-1] for curve in curves)
    with themed():
        figure = curve_chart(curves, x="step", y=title, size=_SIZE_IN, x_limits=(0, 1.03 * last), y_limits=limits)
    return f"<figure>{inline_svg(figure, title)}</figure>"

"""Write the paper's two figures, each as PNG and SVG with its numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from toco_core.charts import save_figure
from toco_core.errors import RunError
from toco_core.files import write_atomic
from toco_train.analysis.figures import patch_figure, similarity_chart
from toco_train.analysis.token_similarity import BlockSimilarity, PlaceInImage, token_at

BLOCKS_STEM, PATCHES_STEM = "token_similarity", "patch_similarity"


def save_figures(
    folder: Path, curves: Sequence[BlockSimilarity], places: Sequence[PlaceInImage], classes: Sequence[str]
) -> list[Path]:
    """Write both figures into a folder that exists; return the files.

    Args:
        folder: Where they go.
        curves: Each network's similarity of tokens by block.
        places: The places to show, as each network sees them.
        classes: Foreground class names in label order.

    Raises:
        RunError: A file cannot be written.
    """
    try:
        return [
            *_save(folder / BLOCKS_STEM, similarity_chart(curves), block_rows(curves)),
            *_save(folder / PATCHES_STEM, patch_figure(places, classes), patch_rows(places)),
        ]
    except OSError as error:
        raise RunError(f"cannot write to {folder} ({error.strerror}); make room or give another --out") from error


def block_rows(curves: Iterable[BlockSimilarity]) -> Iterable[Sequence[object]]:
    """Yield the numbers of the first figure: a heading, then a row for each network and block."""
    yield "network", "block", "after_final_norm", "mean", "standard_deviation", "images"
    for curve in curves:
        for index, (mean, spread_) in enumerate(zip(curve.mean, curve.spread, strict=True)):
            block = min(index + 1, curve.num_blocks)
            yield curve.name, block, int(index == curve.num_blocks), f"{mean:.6f}", f"{spread_:.6f}", len(curve.values)


def patch_rows(places: Iterable[PlaceInImage]) -> Iterable[Sequence[object]]:
    """Yield the numbers of the second figure: a heading, then a row for each network, place and token.

    The CAM of a token is that at its centre; it is empty where there is none.
    """
    yield "network", "image", "x", "y", "row", "column", "similarity", "cam"
    for place in places:
        x, y = place.point
        for view in place.views:
            height, width = view.similarity.shape
            for row in range(height):
                for column in range(width):
                    cam = ""
                    if view.cam is not None:
                        centre = (column + 0.5) / width, (row + 0.5) / height
                        cam = f"{view.cam[token_at(centre, *view.cam.shape)]:.6f}"
                    yield (view.name, place.sample.name, f"{x:.4f}", f"{y:.4f}", row, column,
                           f"{view.similarity[row, column]:.6f}", cam)  # fmt: skip


def _save(stem: Path, figure: Figure, rows: Iterable[Sequence[object]]) -> list[Path]:
    """Write a figure and its numbers."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    table = stem.with_name(f"{stem.name}.csv")
    write_atomic(table, buffer.getvalue())
    return [*save_figure(figure, stem), table]

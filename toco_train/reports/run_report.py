"""The HTML report of a run: one page that needs no other file."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from toco_core import __version__
from toco_core.charts import inline_svg, themed
from toco_core.config import dump_yaml
from toco_core.errors import RunError
from toco_core.files import write_atomic
from toco_core.fitting import Size
from toco_core.html import ImageStrip, image_strip, render
from toco_core.palette import IGNORE_INDEX, colour_mask
from toco_core.sampling import evenly_spaced
from toco_core.text import percent
from toco_train.analysis.figures import similarity_chart
from toco_train.analysis.token_similarity import Subject, run_subject, similarity_by_block
from toco_train.config import SegmentConfig, TrainConfig
from toco_train.data.classes import ClassList
from toco_train.data.source import DataSource
from toco_train.evaluation.evaluate import Evaluation
from toco_train.models.toco import ToCo
from toco_train.reports.confusion_matrix import confusion_figure
from toco_train.reports.evaluation_report import CLASS_COLUMNS, EvaluationReport, head_rows, mask_rows
from toco_train.reports.gallery import Exhibit, choose, exhibit_images
from toco_train.reports.history_charts import history_charts
from toco_train.runs.history import History, read_history
from toco_train.runs.layout import CONFIG_FILE, METRICS_FILE, REPORT_FILE

SIMILARITY_IMAGES = 32
_BATCH_SIZE = 4
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")
_GROUPS = {
    "best": "Best",
    "typical": "Typical, around the median",
    "worst": "Worst, the very worst first",
    "images": "Images",
}


def write_report(
    folder: Path, model: ToCo, config: TrainConfig, source: DataSource, evaluation: Evaluation | None
) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Takes a few predictions, and the patch tokens of ``SIMILARITY_IMAGES`` images: less than 1 % of the demo's training
    time. The page states its own time.

    Args:
        folder: The run folder.
        model: Its network, in evaluation mode.
        config: Its configuration.
        source: Its data.
        evaluation: Scores of its network on the whole validation split; None if no validation image has a mask.

    Raises:
        RunError: The metrics cannot be read, or the page cannot be written.
        DataError: An image or mask cannot be read.
    """
    began = time.perf_counter()
    history, name = read_history(folder / METRICS_FILE), folder.resolve().name
    sections = {
        "name": name,
        "summary": _summary(config, source, history),
        "cards": _cards(history, evaluation),
        "charts": history_charts(history),
        "metrics_file": METRICS_FILE,
        "scores": None if evaluation is None else _scores(folder, config, source, evaluation, model.sizes),
        **_gallery(model, config, source, evaluation),
        "similarity": _similarity(run_subject(model, name, config.cam.scales), source),
        **_origin(config),
    }
    page = render(
        "toco_train.reports",
        "run_report.html.j2",
        **sections,
        times=[*_times(config, history), ("this report", _duration(time.perf_counter() - began), "")],
    )
    path = folder / REPORT_FILE
    try:
        write_atomic(path, page)
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}); make room and write it with toco-report") from error
    return path


def _summary(config: TrainConfig, source: DataSource, history: History) -> str:
    done = history.steps[-1]["step"] if history.steps else 0
    return (
        f"{source.kind} data {source.path.name}: {len(source.train)} training images, {len(source.val)} validation "
        f"images, {len(source.classes)} classes. {done} of {config.steps} steps with {config.batch_size} images each."
    )


def _cards(history: History, evaluation: Evaluation | None) -> dict[str, str]:
    """Return the most important numbers by name."""
    cards: dict[str, str] = {}
    if evaluation is not None:
        cards = {
            "mIoU of the segmentation": f"{percent(evaluation.seg.mean_iou)} %",
            "mIoU of the CAM, tags given": f"{percent(evaluation.cam.mean_iou)} %",
            "mIoU of the aux CAM, tags given": f"{percent(evaluation.aux_cam.mean_iou)} %",
            "token similarity": f"{evaluation.token_similarity:.3f}",
        }
    if history.steps:
        cards["time to the last step"] = _duration(history.steps[-1]["seconds"])
    return cards


def _scores(
    folder: Path, config: TrainConfig, source: DataSource, evaluation: Evaluation, sizes: tuple[Size, ...]
) -> dict[str, object]:
    report = EvaluationReport(
        evaluation,
        run=folder,
        data=source.path,
        split="val",
        classes=source.classes,
        cam_scales=config.cam.scales,
        background=config.cam.background,
        segment=SegmentConfig(),
        sizes=sizes,
        crf=False,
    )
    with themed():
        confusion = confusion_figure(evaluation.confusion[2], report.labels, "")
    return {
        "num_images": evaluation.num_images,
        "masks": mask_rows(evaluation),
        "heads": head_rows(evaluation),
        "class_columns": CLASS_COLUMNS,
        "classes": report.class_rows(),
        "notes": report.notes(),
        "confusion": inline_svg(confusion, "confusion of the segmentation", least=0.6),
    }


def _gallery(model: ToCo, config: TrainConfig, source: DataSource, evaluation: Evaluation | None) -> dict[str, object]:
    """Return strips of images by the title of their group, and the colours of the labels in them."""
    exhibits = choose(source, None if evaluation is None else evaluation.image_iou)
    gallery: dict[str, list[ImageStrip]] = {}
    shown: set[int] = set()
    found = exhibit_images(model, exhibits, config.cam, source.class_list.rgb)
    for exhibit, (images, labels) in zip(exhibits, found, strict=True):
        strip = image_strip(images, _caption(exhibit, source.classes), "JPEG")
        gallery.setdefault(_GROUPS[exhibit.group], []).append(strip)
        shown |= labels
    return {"gallery": gallery, "legend": _legend(sorted(shown), source.class_list)}


def _legend(labels: Sequence[int], class_list: ClassList) -> dict[str, str]:
    """Return the CSS colour of each label but the background, by name."""
    names = dict(enumerate(class_list.classes, start=1)) | {IGNORE_INDEX: "unsure or ignored (255)"}
    shown = np.array([label for label in labels if label != 0], np.uint8)
    colours = colour_mask(shown, class_list.rgb).tolist()
    return {names[label]: f"rgb{tuple(colour)}" for label, colour in zip(shown.tolist(), colours, strict=True)}


def _caption(exhibit: Exhibit, classes: Sequence[str]) -> str:
    tags = ", ".join(classes[label - 1] for label in exhibit.sample.labels) or "no tag"
    iou = "" if math.isnan(exhibit.iou) else f"; mIoU of this image {percent(exhibit.iou)} %"
    return f"{exhibit.sample.name}: {tags}{iou}"


def _similarity(subject: Subject, source: DataSource) -> dict[str, object]:
    samples = evenly_spaced(source.val or source.train, SIMILARITY_IMAGES)
    with themed():
        figure = similarity_chart([similarity_by_block(subject, samples, _BATCH_SIZE)], size=(4.8, 3.0))
    chart = inline_svg(figure, "similarity of patch tokens by block")
    return {"chart": chart, "num_images": len(samples), "image_size": subject.image_size}


def _times(config: TrainConfig, history: History) -> list[tuple[str, str, str]]:
    """Return what took time, how long, and the time of one step."""
    rows = [
        (f"steps {span.first} to {span.last}: {', '.join(span.losses)}", _duration(span.seconds),
         _per_step(span.seconds / (span.last - span.first + 1)))
        for span in history.spans(config)
    ]  # fmt: skip
    if history.evaluations:
        rows.append((f"evaluations: {len(history.evaluations)}", _duration(history.evaluation_seconds()), ""))
    return rows


def _origin(config: TrainConfig) -> dict[str, object]:
    """Return the settings, and when, where and with which versions the report is written."""
    versions = {"toco-seg": __version__, "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "versions": versions,
        "config_file": CONFIG_FILE,
        "config": dump_yaml(config),
    }


def _duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours; a dash if it is not known."""
    if math.isnan(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _per_step(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds:.3f} s"

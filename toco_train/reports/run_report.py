"""The report of a run: ``report.html``, one page that is whole in itself."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import numpy as np
import torch

from toco_core import __version__
from toco_core.charts import inline_svg, themed
from toco_core.config import dump_yaml
from toco_core.errors import RunError
from toco_core.files import write_atomic
from toco_core.fitting import Size
from toco_core.html import image_strip, page, table
from toco_core.palette import IGNORE_INDEX, colour_mask
from toco_train.analysis.figures import similarity_chart
from toco_train.analysis.token_similarity import Subject, run_subject, similarity_by_block
from toco_train.config import SegmentConfig, TrainConfig
from toco_train.data.classes import ClassList
from toco_train.data.source import DataSource, spread
from toco_train.evaluation.evaluate import Evaluation
from toco_train.models.toco import ToCo
from toco_train.reports.confusion_matrix import confusion_figure
from toco_train.reports.evaluation_report import CLASS_COLUMNS, EvaluationReport, head_rows, mask_rows, percent
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

STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .5rem; margin: 1rem 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .6rem .75rem; color: var(--soft);
  font-size: .85rem; } .cards b { display: block; font-size: 1.35rem; color: var(--ink); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); gap: .75rem; }
table { margin-bottom: 1rem; } th, td:first-child { white-space: normal; } td:first-child { min-width: 6.5rem;
  overflow-wrap: anywhere; }
.charts figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem .9rem; padding: 0; list-style: none; font-size: .85rem; }
.legend i { display: inline-block; width: .85em; height: .85em; border-radius: .2em; margin-right: .35em;
  border: 1px solid var(--line); vertical-align: -.08em; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--card); border-radius: .5rem; padding: .75rem; font-size: .8rem; }
"""


def write_report(
    folder: Path, model: ToCo, config: TrainConfig, source: DataSource, evaluation: Evaluation | None
) -> Path:
    """Write ``report.html`` into a run folder, whole or not at all, and return its path.

    Beside what is given it takes a handful of predictions, and the tokens of ``SIMILARITY_IMAGES`` images: at the size
    of the demo 5 s on two busy cores, 0.7 % of the training before it (2026-11-25). The page states its own time.

    Args:
        folder: The run folder.
        model: Its network, in evaluation mode.
        config: Its configuration.
        source: Its data.
        evaluation: Scores of its network on the whole validation split; None where that has no masks.

    Raises:
        RunError: Its metrics cannot be read, or the page cannot be written.
        DataError: An image or mask cannot be read.
    """
    began = time.perf_counter()
    history = read_history(folder / METRICS_FILE)
    body = [
        f"<h1>Run {escape(folder.resolve().name)}</h1>",
        f"<p>{escape(_summary(config, source, history))}</p>",
        _cards(history, evaluation),
        *_training(history),
        *(_scores(folder, config, source, evaluation, model.sizes) if evaluation is not None else _no_scores()),
        *_gallery(model, config, source, evaluation),
        *_similarity(run_subject(model, folder.resolve().name, config.cam.scales), source),
    ]
    body += _time(config, history, time.perf_counter() - began)
    body += _origin(config)
    path = folder / REPORT_FILE
    try:
        write_atomic(path, page(f"Run {folder.resolve().name}", body, STYLE))
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}); make room and write it with toco-report") from error
    return path


def _summary(config: TrainConfig, source: DataSource, history: History) -> str:
    done = history.steps[-1]["step"] if history.steps else 0
    return (
        f"{source.kind} data {source.path.name}: {len(source.train)} images to train on, {len(source.val)} to "
        f"validate, {len(source.classes)} classes. {done} of {config.steps} steps with {config.batch_size} images each."
    )


def _cards(history: History, evaluation: Evaluation | None) -> str:
    """Return the few numbers that matter most, large."""
    cards: dict[str, str] = {}
    if evaluation is not None:
        cards |= {
            "mIoU of the segmentation": f"{percent(evaluation.seg.mean_iou)} %",
            "mIoU of the CAM, tags given": f"{percent(evaluation.cam.mean_iou)} %",
            "mIoU of the aux CAM, tags given": f"{percent(evaluation.aux_cam.mean_iou)} %",
            "token similarity": f"{evaluation.token_similarity:.3f}",
        }
    if history.steps:
        cards["time to the last step"] = _duration(history.steps[-1]["seconds"])
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in cards.items())
    return f'<div class="cards">{cells}</div>'


def _training(history: History) -> Iterator[str]:
    yield "<h2>Training</h2>"
    if charts := list(history_charts(history)):
        yield f'<div class="charts">{"".join(charts)}</div>'
        yield "<p>Losses are shown before they are weighted, but for the total.</p>"
    else:
        yield f"<p>This folder has no {METRICS_FILE}: its network was imported, or copied out of a run.</p>"


def _no_scores() -> Iterator[str]:
    yield "<h2>Scores</h2><p>No image that was held back has a mask, so nothing is scored. Training needs no masks.</p>"


def _scores(
    folder: Path, config: TrainConfig, source: DataSource, evaluation: Evaluation, sizes: tuple[Size, ...]
) -> Iterator[str]:
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
    yield f"<h2>Scores on {evaluation.num_images} images that were held back</h2>"
    yield table(["mask", "mIoU %", "boundary mIoU %", "pixel accuracy %"], mask_rows(evaluation))
    yield table(["class head", "mAP %", "mean F1 %"], head_rows(evaluation))
    yield "<h2>Each class, %</h2>"
    yield table(CLASS_COLUMNS, list(report.class_rows()))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes())
    yield f"<details><summary>Which number is which</summary><ul>{notes}</ul></details>"
    yield "<h2>Which label is taken for which</h2>"
    with themed():
        figure = confusion_figure(evaluation.confusion[2], report.labels, "")
    yield f'<figure class="wide">{inline_svg(figure, "confusion of the segmentation", least=0.6)}<figcaption>'
    yield "Share of the true label's pixels that the segmentation takes for each label, in %.</figcaption></figure>"


def _gallery(model: ToCo, config: TrainConfig, source: DataSource, evaluation: Evaluation | None) -> Iterator[str]:
    """Yield strips of images by group, and before them the colours of the labels that they show."""
    exhibits = choose(source, None if evaluation is None else evaluation.image_iou)
    found = list(exhibit_images(model, exhibits, config.cam, source.class_list.rgb))
    yield "<h2>Gallery</h2>"
    yield _legend(sorted(set().union(*(labels for _, labels in found))), source.class_list)
    group = ""
    for exhibit, (images, _) in zip(exhibits, found, strict=True):
        if exhibit.group != group:
            group = exhibit.group
            yield f"<h3>{_GROUPS[group]}</h3>"
        yield image_strip(images, _caption(exhibit, source.classes), "JPEG")


def _legend(labels: Sequence[int], class_list: ClassList) -> str:
    names = dict(enumerate(class_list.classes, start=1)) | {IGNORE_INDEX: "unsure or ignored (255)"}
    shown = np.array([label for label in labels if label != 0], np.uint8)
    items = (
        f'<li><i style="background: rgb{tuple(colour)}"></i>{escape(names[label])}</li>'
        for label, colour in zip(shown.tolist(), colour_mask(shown, class_list.rgb).tolist(), strict=True)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _caption(exhibit: Exhibit, classes: Sequence[str]) -> str:
    tags = ", ".join(classes[label - 1] for label in exhibit.sample.labels) or "no tag"
    iou = "" if math.isnan(exhibit.iou) else f"; mIoU of this image {percent(exhibit.iou)} %"
    return f"{exhibit.sample.name}: {tags}{iou}"


def _similarity(subject: Subject, source: DataSource) -> Iterator[str]:
    samples = spread(source.val or source.train, SIMILARITY_IMAGES)
    with themed():
        figure = similarity_chart([similarity_by_block(subject, samples, _BATCH_SIZE)], size=(4.8, 3.0))
    yield "<h2>How alike patch tokens become</h2>"
    yield f"<figure>{inline_svg(figure, 'similarity of patch tokens by block')}<figcaption>"
    yield (
        f"Mean |cosine| over pairs of patch tokens after each block, over {len(samples)} images, each seen as a square "
        f"of {subject.image_size} px: what rises towards 1 is over-smoothed. toco-analyze draws several networks on "
        "one chart.</figcaption></figure>"
    )


def _time(config: TrainConfig, history: History, report_s: float) -> Iterator[str]:
    yield "<h2>Time</h2>"
    rows = [
        [f"steps {span.first} to {span.last}: {', '.join(span.losses)}", _duration(span.seconds),
         _per_step(span.seconds / (span.last - span.first + 1))]
        for span in history.spans(config)
    ]  # fmt: skip
    if history.evaluations:
        rows.append([f"evaluations: {len(history.evaluations)}", _duration(history.evaluation_seconds()), ""])
    yield table(["what", "time", "a step"], [*rows, ["this report", _duration(report_s), ""]])
    yield "<p>Steps include reading images and saving checkpoints.</p>"


def _origin(config: TrainConfig) -> Iterator[str]:
    versions = {"toco": __version__, "Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    date = datetime.now(timezone.utc)
    yield f"<h2>Versions and settings</h2><p>Report written {date:%Y-%m-%d %H:%M} UTC on {escape(device)} with:</p>"
    yield table(["package", "version"], [[*pair] for pair in versions.items()])
    yield f"<details><summary>{CONFIG_FILE}</summary><pre>{escape(dump_yaml(config))}</pre></details>"


def _duration(seconds: float) -> str:
    """Return a time as a person says it; a dash where it is not known."""
    if math.isnan(seconds):
        return "-"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _per_step(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds:.3f} s"

"""The report of an evaluation, as JSON, Markdown and an image of the confusion matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toco_core import __version__
from toco_core.errors import RunError
from toco_core.files import write_atomic
from toco_core.fitting import Size
from toco_core.text import listed, markdown_table, percent
from toco_train.config import SegmentConfig
from toco_train.evaluation.boundary_iou import BOUNDARY_RATIO
from toco_train.evaluation.evaluate import Evaluation, evaluation_numbers
from toco_train.evaluation.metrics import ClassScores, Scores
from toco_train.inference.predict import MAX_CRF_PIXELS
from toco_train.reports.confusion_matrix import save_confusion

CLASS_COLUMNS = (
    "label", "IoU CAM", "IoU aux CAM", "IoU segmentation", "boundary IoU CAM", "boundary IoU aux CAM",
    "boundary IoU segmentation", "AP", "AP aux", "F1", "F1 aux",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation and its settings.

    Attributes:
        evaluation: The scores.
        run: The run folder of the network.
        data: The data set.
        split: Split of the data set: ``train`` or ``val``.
        classes: Foreground class names.
        cam_scales: Scales of the CAM.
        background: Background threshold of the CAM.
        segment: Scales of the segmentation.
        sizes: Height and width of the sizes that images were fitted to, where that was not their own.
        crf: Whether the masks were refined by a dense CRF.
    """

    evaluation: Evaluation
    run: Path
    data: Path
    split: str
    classes: tuple[str, ...]
    cam_scales: tuple[float, ...]
    background: float
    segment: SegmentConfig
    sizes: tuple[Size, ...]
    crf: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of labels 0..C."""
        return ("background", *self.classes)

    @property
    def stem(self) -> str:
        """File name without suffix; different settings give different names."""
        scales = [] if self.segment.scales == (1.0,) else [f"{scale:g}" for scale in self.segment.scales]
        own_size = ["own-size"] * self.segment.own_size
        return "-".join([self.split, *own_size, *scales, *["flip"] * self.segment.flip, *["crf"] * self.crf])

    def notes(self) -> list[str]:
        """Return what each number means, in one or two sentences each."""
        evaluation, segment = self.evaluation, self.segment
        seen = f"scale{'s' * (len(segment.scales) > 1)} {listed(segment.scales)}{' with flips' * segment.flip}"
        notes = [
            f"segmentation: argmax of the decoder, {seen}. No tags are given; this is the mask that is exported and "
            "served (there at the nearest of the run's sizes, at one scale, without flips and CRF).",
            self._size_note(),
            f"CAM, aux CAM: label maps of the activation maps (scales {listed(self.cam_scales)} with flips, "
            f"background at or below {self.background:g}) with each image's true tags given. They tell how good pseudo "
            "labels are, not how good the mask of an image without tags is.",
            "mIoU: IoU of each label over the pixels of all images together, at each image's own size; then the mean "
            "over background and classes. Pixels labelled 255 in the ground truth are ignored.",
            f"boundary IoU: the same over the pixels within {100 * BOUNDARY_RATIO:g} % of the image's diagonal of an "
            "edge of their region (Cheng et al., CVPR 2021).",
            "AP, F1: how well the class heads predict an image's tags, F1 at probability 0.5; mAP and mean F1 are over "
            "the classes that occur among the tags.",
        ]
        if self.crf:
            notes.insert(
                3,
                "CRF: all three masks are refined by a dense CRF with the published parameters; larger images "
                f"are reduced to {MAX_CRF_PIXELS:,} pixels for it.",
            )
        absent = [name for name, iou in zip(self.labels, evaluation.seg.iou, strict=True) if math.isnan(iou)]
        if absent:
            notes.append(
                f"absent: no ground truth here holds {listed(absent)}. Such a label shows '-' and is left out of "
                "every mean. Pixels that are predicted as it still count as wrong for their true label."
            )
        return notes

    def _size_note(self) -> str:
        if self.segment.own_size:
            return "size: the network saw each image at its own size, rounded to patches, as published."
        sizes = listed([f"{height}x{width}" for height, width in self.sizes], len(self.sizes))
        return (
            "size: the network saw each image at the nearest in shape of the run's sizes (height x width, in pixels): "
            f"{sizes}."
        )

    def numbers(self) -> dict[str, object]:
        """Return the JSON report; ``confusion`` counts pixels, rows by true label, columns by predicted label."""
        confusion = dict(zip(("cam", "aux_cam", "seg"), self.evaluation.confusion.tolist(), strict=True))
        return {
            "toco": __version__,
            "run": str(self.run),
            "data": str(self.data),
            "split": self.split,
            "labels": self.labels,
            "settings": {
                "own_size": self.segment.own_size,
                "sizes": self.sizes,
                "scales": self.segment.scales,
                "flip": self.segment.flip,
                "crf": self.crf,
                "cam_scales": self.cam_scales,
                "cam_background": self.background,
                "boundary_ratio": BOUNDARY_RATIO,
            },
            "notes": self.notes(),
            **evaluation_numbers(self.evaluation),
            "confusion": confusion,
        }

    def markdown(self) -> str:
        """Return the report as Markdown; numbers in per cent."""
        evaluation = self.evaluation
        return "\n\n".join(
            [
                f"# Evaluation of {self.run.name}",
                f"{evaluation.num_images} images of the {self.split} split of `{self.data}`; all numbers but the token "
                f"similarity ({evaluation.token_similarity:.3f}) in per cent.",
                markdown_table(("mask", "mIoU", "boundary mIoU", "pixel accuracy"), mask_rows(evaluation)),
                markdown_table(("class head", "mAP", "mean F1"), head_rows(evaluation)),
                "## What each number means",
                "\n".join(f"- {note}" for note in self.notes()),
                "## Each class",
                markdown_table(CLASS_COLUMNS, self.class_rows()),
                "## Confusion of the segmentation",
                f"![Confusion matrix of the segmentation]({self.stem}.png)\n",
            ]
        )

    def write(self, folder: Path) -> list[Path]:
        """Write JSON, Markdown and image, each whole or not at all, and return their paths.

        Raises:
            RunError: The folder cannot be written.
        """
        paths = [folder / f"{self.stem}{suffix}" for suffix in (".json", ".md", ".png")]
        title = f"segmentation, {self.split}: share of each true label's pixels by predicted label"
        try:
            write_atomic(paths[0], json.dumps(self.numbers(), allow_nan=False) + "\n")
            write_atomic(paths[1], self.markdown())
            save_confusion(paths[2], self.evaluation.confusion[2], self.labels, title)
        except OSError as error:
            raise RunError(f"cannot write the evaluation to {folder} ({error.strerror}); give another --out") from error
        return paths

    def class_rows(self) -> Iterable[Sequence[str]]:
        """Yield a row per label with the columns ``CLASS_COLUMNS``, in per cent."""
        evaluation = self.evaluation
        masks = (evaluation.cam, evaluation.aux_cam, evaluation.seg)
        heads = (evaluation.cls, evaluation.aux_cls)
        for label, name in enumerate(self.labels):
            values = [scores.iou[label] for scores in masks] + [scores.boundary_iou[label] for scores in masks]
            values += [head.average_precision[label - 1] if label else math.nan for head in heads]
            values += [head.f1[label - 1] if label else math.nan for head in heads]
            yield name, *map(percent, values)


def mask_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return a row per kind of mask: name, mIoU, boundary mIoU, pixel accuracy."""
    kinds: list[tuple[str, Scores]] = [
        ("CAM, tags given", evaluation.cam),
        ("aux CAM, tags given", evaluation.aux_cam),
        ("segmentation", evaluation.seg),
    ]
    return [
        (name, percent(scores.mean_iou), percent(scores.mean_boundary_iou), percent(scores.pixel_accuracy))
        for name, scores in kinds
    ]


def head_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Return a row per class head: name, mAP, mean F1."""
    heads: list[tuple[str, ClassScores]] = [("final tokens", evaluation.cls), ("auxiliary tokens", evaluation.aux_cls)]
    return [(name, percent(head.mean_average_precision), percent(head.mean_f1)) for name, head in heads]

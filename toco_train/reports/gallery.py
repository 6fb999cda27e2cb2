"""The gallery of a run: its best, typical and worst images, each from image to prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from toco_core.palette import UInt8Array
from toco_core.sampling import evenly_spaced
from toco_train.config import CamConfig, LabelConfig
from toco_train.data.source import DataSource, Sample, with_masks
from toco_train.inference.predict import predict
from toco_train.inference.preview import PREDICTION_TITLES, labelled, prediction_row
from toco_train.inference.pseudo_labels import Labeller
from toco_train.models.toco import ToCo

_OF_EACH = 3
_WITHOUT_TRUTH = 6
_PSEUDO_LABEL_COLUMN = PREDICTION_TITLES.index("CAM") + 1


@dataclass(frozen=True)
class Exhibit:
    """An image to show.

    Attributes:
        group: ``best``, ``typical`` or ``worst``; ``images`` if there are no masks to compare with.
        sample: The image.
        iou: Mean IoU of its segmentation over the labels of its mask; NaN without a mask.
    """

    group: str
    sample: Sample
    iou: float


def choose(source: DataSource, image_iou: Sequence[float] | None) -> list[Exhibit]:
    """Choose images of the validation split or, if that is empty, of the training split.

    Args:
        source: The data.
        image_iou: IoU of each validation image that has a mask, in order; None if none has a mask.

    Returns:
        The best first, then those around the median, then the worst, starting with the very worst; no image twice.
    """
    if image_iou is None:
        samples = evenly_spaced(source.val or source.train, _WITHOUT_TRUTH)
        return [Exhibit("images", sample, math.nan) for sample in samples]
    scored = [
        (iou, sample) for iou, sample in zip(image_iou, with_masks(source.val), strict=True) if not math.isnan(iou)
    ]
    ranked = sorted(scored, key=lambda pair: -pair[0])
    count = max(1, min(_OF_EACH, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    places = {
        "best": range(count),
        "worst": range(len(ranked) - 1, len(ranked) - 1 - count, -1),
        "typical": range(middle, middle + count),
    }
    taken: set[int] = set()
    groups: dict[str, list[Exhibit]] = {}
    for group, indices in places.items():
        fresh = [index for index in indices if 0 <= index < len(ranked) and index not in taken]
        taken.update(fresh)
        groups[group] = [Exhibit(group, ranked[index][1], ranked[index][0]) for index in fresh]
    return [*groups["best"], *groups["typical"], *groups["worst"]]


def exhibit_images(
    model: ToCo, exhibits: Sequence[Exhibit], cam: CamConfig, palette: UInt8Array
) -> Iterator[tuple[dict[str, UInt8Array], set[int]]]:
    """Yield for each exhibit what is shown of it, uint8 ``[H, W, 3]`` by title, and the labels that this shows.

    Args:
        model: The network, in evaluation mode.
        exhibits: The images.
        cam: How CAMs are taken, and the thresholds of the pseudo label, which PAR refines as in training.
        palette: Colours of the labels 0..C, uint8 ``[C + 1, 3]``.

    Raises:
        DataError: An image or mask cannot be read.
    """
    labeller = Labeller(model, LabelConfig(scales=cam.scales, low=cam.low, high=cam.high))
    titles = list(PREDICTION_TITLES)
    titles.insert(_PSEUDO_LABEL_COLUMN, "pseudo label")
    for exhibit in exhibits:
        sample = exhibit.sample
        prediction = next(predict(model, [sample], cam.scales, 1))
        row = prediction_row(sample, prediction, palette)
        pseudo_label = labeller.label(prediction).mask
        row.insert(_PSEUDO_LABEL_COLUMN, labelled(np.asarray(prediction.image), pseudo_label, palette))
        masks = (pseudo_label, prediction.seg_mask().numpy())
        shown = {*sample.labels}.union(*(np.unique(mask).tolist() for mask in masks))
        yield dict(zip(titles, row, strict=False)), shown

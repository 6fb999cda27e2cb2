import math
from pathlib import Path

import pytest

from toco_train.data.masks import LabelMask
from toco_train.data.source import Sample
from toco_train.reports.gallery import choose


def _chosen(tmp_path, iou):
    """Return group and name of what is chosen of images with these IoU."""
    (tmp_path / "mask.png").touch()
    samples = [Sample(str(index), Path("x"), (), LabelMask(tmp_path / "mask.png")) for index in range(len(iou))]
    source = type("Source", (), {"val": (*samples, Sample("no mask", Path("x"), ())), "train": ()})
    return [(exhibit.group, exhibit.sample.name) for exhibit in choose(source, iou)]


def test_best_typical_and_worst_are_chosen_by_iou(tmp_path):
    chosen = _chosen(tmp_path, [0.1, 0.9, 0.5, math.nan, 0.8, 0.2, 0.6, 0.7, 0.3, 0.4, 0.55])
    assert chosen == [
        ("best", "1"), ("best", "4"), ("best", "7"),
        ("typical", "6"), ("typical", "10"), ("typical", "2"),
        ("worst", "0"), ("worst", "5"), ("worst", "8"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("iou", "expected"),
    [([0.5], [("best", "0")]), ([0.2, 0.8], [("best", "1"), ("worst", "0")]), ([math.nan], []),
     ([0.2, 0.8, 0.5], [("best", "1"), ("typical", "2"), ("worst", "0")])],
)  # fmt: skip
def test_few_images_are_shown_once_each(tmp_path, iou, expected):
    assert _chosen(tmp_path, iou) == expected

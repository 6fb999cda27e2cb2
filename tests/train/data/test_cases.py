"""Small data sets that were read wrong once: each is read right now, or refused in a sentence."""

import shutil
from pathlib import Path

import pytest

from toco_core.errors import DataError
from toco_train.config import DataConfig
from toco_train.data.check import examine_all, report
from toco_train.data.mask_tags import refuse_unusable_masks
from toco_train.data.opening import open_source
from toco_train.data.source import read_mask, with_masks

CASES = Path(__file__).parent / "cases"


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def opened(name):
        path = shutil.copytree(CASES / name, tmp_path / name)
        return open_source(DataConfig(path=str(path)), seed=0)

    return opened


def labels_of(source):
    return {s.name: tuple(source.classes[label - 1] for label in s.labels) for s in (*source.train, *source.val)}


def test_marks_written_as_floats_are_classes_by_column(case):
    source = case("csv-one-hot-as-floats")
    assert source.classes == ("cat", "dog")
    found = labels_of(source)
    assert {name: found[name] for name in "abc"} == {"a": ("cat",), "b": ("cat", "dog"), "c": ("dog",)}


def test_several_tags_in_a_cell_are_several_tags(case):
    source = case("csv-several-tags-in-a-cell")
    assert labels_of(source) == {
        "a": ("cat",), "b": ("cat", "dog"), "c": ("dog",), "d": ("bird", "cat", "dog"), "e": ("bird",), "f": ("cat",),
        "g": ("dog",), "h": ("bird", "dog"),
    }  # fmt: skip
    assert "several in a cell separated by '|'; for example line 3: b.jpg has cat, dog" in source.description


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("coco-polygon-nan", "its polygon has the coordinate nan, expected 0 to 40"),
        (
            "coco-polygon-flat",
            "its segmentation is a flat list of numbers, expected a list of polygons: put it in a list",
        ),
    ],
)
def test_an_outline_that_cannot_be_drawn_is_named_and_the_rest_is_read(case, name, problem):
    source = case(name)
    (notice,) = source.notices
    assert len(notice.examples) == 2, "one in each split"
    assert notice.examples[0].endswith(f"instances_train2017.json annotation 1 of image 1 (001.jpg): {problem}")
    assert labels_of(source)["001"] == ("cat",)
    masked = with_masks(source.train)
    assert [sample.name for sample in masked] == ["002", "003", "004"]
    assert read_mask(masked[0]).max() == 2


def test_folders_of_splits_are_no_classes(case):
    with pytest.raises(DataError, match=r"train/_annotations\.coco\.json is no COCO instances file"):
        case("folders-train-valid-test")


def test_masks_of_0_and_255_are_noticed_and_not_scored(case):
    source = case("masks-0-255-palette")
    with pytest.raises(DataError, match="2 of 2 masks of tagged images hold nothing but 0 and 255"):
        refuse_unusable_masks(source.val)
    found = report(source, list(examine_all(source, tiny_px=8, num_workers=1)), tiny_px=8)
    assert found.training_would_fail


def test_a_jfif_is_a_jpeg(case):
    source = case("pictures-as-jfif")
    assert source.classes == ("cat", "dog")
    assert len(source.train + source.val) == 8
    examined = list(examine_all(source, tiny_px=8, num_workers=1))
    assert all(one.problem is None for one in examined)

"""Folders called train, valid and test: splits, not classes; and what is in them."""

import json
import re

import pytest
from PIL import Image

from toco_core.errors import DataError
from toco_train.config import DataConfig
from toco_train.data.opening import open_source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Folder:
    """A data set that a test writes."""

    def __init__(self, path):
        self.path = path
        path.mkdir()

    def write(self, *names, **texts):
        for name in names:
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8)).save(path, format="PNG" if path.suffix == ".png" else "JPEG")
        return self

    def text(self, name, content):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return self

    def classes_in(self, *splits):
        for split in splits:
            self.write(*(f"{split}/{name}/{number}.jpg" for name in ("cat", "dog") for number in "12"))
        return self

    def opened(self, **settings):
        return open_source(DataConfig(path=str(self.path), **settings), seed=0)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "data")


def names(samples):
    return [sample.name for sample in samples]


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "valid"), ("train", "val"), ("Train", "Validation"), ("training", "dev"), ("train_set", "val_set")],
)
def test_folders_of_splits_with_class_folders_are_splits(folder, train, val):
    source = folder.classes_in(train, val, "test").opened()
    assert source.classes == ("cat", "dog")
    assert names(source.train) == [f"{train}/{name}" for name in ("cat/1", "cat/2", "dog/1", "dog/2")]
    assert names(source.val) == [f"{val}/{name}" for name in ("cat/1", "cat/2", "dog/1", "dog/2")]
    assert [sample.labels for sample in source.val] == [(1,), (1,), (2,), (2,)]
    assert source.description == (
        f"one sub-folder per class; train from {train}/, val from {val}/, test/ left out (images: 4)"
    )


def test_without_a_validation_split_test_is_held_back_and_without_both_a_share_of_each_class(folder):
    source = folder.classes_in("train", "test").opened()
    assert {name.partition("/")[0] for name in names(source.val)} == {"test"}
    assert "train from train/, val from test/" in source.description
    only = Folder(folder.path.parent / "only").classes_in("train").opened()
    assert (len(only.train), len(only.val)) == (2, 2)
    assert "held back by seed 0" in only.description


def test_a_test_split_without_labels_is_left_out_and_named(folder):
    source = folder.classes_in("train", "val").write("test/1.jpg", "test/2.jpg").opened()
    assert source.classes == ("cat", "dog")
    assert {name.partition("/")[0] for name in names(source.val)} == {"val"}
    assert notices(source) == {"image_elsewhere": ("test/1.jpg", "test/2.jpg")}


def coco(name, **changes):
    return json.dumps({
        "images": [{"id": 0, "file_name": name, "height": 8, "width": 10}],
        "categories": [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 5]], "iscrowd": 0}],
        **changes,
    })  # fmt: skip


def test_roboflow_s_coco_export_is_coco_with_its_splits(folder):
    for split in ("train", "valid", "test"):
        folder.write(f"{split}/{split}.jpg").text(f"{split}/_annotations.coco.json", coco(f"{split}.jpg"))
    source = folder.opened()
    assert (source.kind, source.classes) == ("COCO", ("cat", "dog"))
    assert (names(source.train), names(source.val)) == (["train"], ["valid"])
    assert source.train[0].labels == (2,)
    assert source.description.endswith("; test/ left out")
    with pytest.raises(DataError, match="leave out --group-by"):
        folder.opened(group_by="x")


def test_roboflow_s_table_of_marks_and_tables_of_one_s_own_are_read_in_each_split(folder):
    for split, marks in (("train", "1, 0"), ("valid", "0, 1")):
        folder.write(f"{split}/{split}.jpg").text(
            f"{split}/_classes.csv", f"filename, cat, dog\n{split}.jpg, {marks}\n"
        )
    source = folder.opened()
    assert [(s.name, s.labels) for s in (*source.train, *source.val)] == [("train/train", (1,)), ("valid/valid", (2,))]
    own = Folder(folder.path.parent / "own")
    for split in ("train", "val"):
        own.write(f"{split}/images/a.jpg").text(f"{split}/labels.csv", f"a.jpg,{split}ed\n")
    source = own.opened()
    assert [(s.name, s.labels) for s in (*source.train, *source.val)] == [("train/a", (1,)), ("val/a", (2,))]
    assert source.classes == ("trained", "valed")


def test_a_class_list_says_that_train_and_test_are_classes(folder):
    folder.write("train/a.jpg", "train/b.jpg", "test/c.jpg", "test/d.jpg").text(
        "classes.yaml", "classes: [train, test]"
    )
    assert folder.opened().classes == ("train", "test")


def test_train_beside_other_classes_is_the_vehicle(folder):
    assert folder.write("car/a.jpg", "boat/b.jpg", "train/c.jpg").opened().classes == ("boat", "car", "train")


@pytest.mark.parametrize(
    ("images", "texts", "sentence"),
    [
        (["train/a.jpg", "valid/b.jpg"], [], "train is named like a split and holds 1 images without"),
        (["train/a.jpg"], [], "train is named like a split and holds 1 images without labels"),
        (["train/images/a.jpg"], ["train/labels/a.txt"], "is a split with YOLO's images/ and labels/, which are"),
        (["train/images/a.jpg", "train/masks/a.png"], [], "is a split with images/ without labels, which are not read"),
        (["train/a.jpg"], ["train/a.xml"], "is a split with images and XML files in one folder, which is not read"),
        (["train/a.jpg"], ["train/_annotations.csv"], "with _annotations.csv, which is not read under that"),
        (["cat/a.jpg", "dog/b.jpg", "test/c.jpg"], [], "has the folders test/ of splits beside cat/; take one"),
        (["train/cat/a.jpg", "cat/a.jpg", "val/cat/b.jpg"], [], "has the folders train/, val/ of splits beside cat/"),
        (["train/cat/a.jpg", "val/cat/a.jpg", "valid/cat/a.jpg"], [], "has val/ and valid/ for the same split; join"),
        (["valid/cat/a.jpg", "test/cat/a.jpg"], [], "has test/, valid/ but no folder train; add it"),
        (["train/cat/a.jpg"], ["val/_annotations.coco.json"], "val is another kind of data than"),
        (["train/cat/a.jpg"], ["valid/readme.txt"], "valid is named like a split and holds nothing that is read"),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_read_are_refused_with_what_to_do(folder, images, texts, sentence):
    folder.write(*images)
    for name in texts:
        folder.text(name, "")
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        folder.opened()
    assert "\n" not in str(caught.value)


def test_splits_that_the_data_has_cannot_be_grouped(folder):
    with pytest.raises(DataError, match="the data has splits of its own; leave out --group-by"):
        folder.classes_in("train", "val").opened(group_by="(.)")


def notices(source):
    return {notice.kind: notice.examples for notice in source.notices}


def test_images_of_kinds_that_are_not_read_and_in_nested_folders_are_named(folder):
    folder.write(
        "cat/0.jpg", "cat/1.jfif", "cat/2.heic", "dog/0.jpg", "dog/1.JPG", "dog/3.AVIF", "bird/0.jxl", "dog/more/9.jpg",
        "cat/.hidden.gif", "__MACOSX/cat/0.jpg",
    )  # fmt: skip
    source = folder.opened()
    assert source.classes == ("cat", "dog")
    assert len(source.train + source.val) == 4
    assert notices(source) == {
        "unread_suffix": ("bird/0.jxl", "cat/2.heic", "dog/3.AVIF"),
        "image_elsewhere": ("dog/more/9.jpg",),
    }
    assert str(source.notices[0]) == (
        "images of a kind that is not read (.avif, .heic, .jxl): 3, for example bird/0.jxl; "
        "convert them to JPEG or PNG to use them"
    )


def test_masks_under_other_names_are_named_and_are_no_images(folder):
    folder.write(
        "cat/0.jpg", "cat/0_mask.png", "cat/1.jpg", "cat/1-mask.jpg", "dog/a (1).png", "dog/a (1)_mask.png",
        "dog/a (1)_mask_1.png", "dog/b.png", "masks/cat/0.jpg", "masks/cat/1_mask.png", "Mask/0.png",
    )  # fmt: skip
    source = folder.opened()
    assert source.classes == ("cat", "dog")
    assert sorted(names(source.train + source.val)) == ["cat/0", "cat/1", "dog/a (1)", "dog/b"]
    assert notices(source) == {
        "unused_mask": (
            "Mask/0.png", "cat/0_mask.png", "cat/1-mask.jpg", "dog/a (1)_mask.png", "dog/a (1)_mask_1.png",
            "masks/cat/0.jpg", "masks/cat/1_mask.png",
        )
    }  # fmt: skip
    assert "must be a PNG of the same stem as its image, in masks/" in str(source.notices[0])


def test_images_beside_a_table_that_are_not_read_are_named(folder):
    folder.write("images/a.jpg", "images/b.jpg", "images/c.heic", "images/a_mask.png", "masks/a.tif", "more/x.jpg")
    folder.text("labels.csv", "a.jpg,cat\nb.jpg,dog\nc.heic,dog\n")
    source = folder.opened()
    assert source.missing == ()
    assert source.unlisted == ()
    assert notices(source) == {
        "unread_suffix": ("images/c.heic",),
        "unused_mask": ("images/a_mask.png", "masks/a.tif"),
        "image_elsewhere": ("more/x.jpg",),
    }


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "images/a.jpg", "/data/set/images/a.jpg", "C:\\data\\a.jpg", "gs://bucket/a.jpg", "a"]
)
def test_a_table_may_name_an_image_by_a_path_from_elsewhere_or_without_its_suffix(folder, name):
    folder.write("images/a.jpg", "images/b.jpg").text("labels.csv", f"file,label\n{name},cat\nb.jpg,dog\n")
    source = folder.opened()
    assert {s.name: s.labels for s in source.train + source.val} == {"a": (1,), "b": (2,)}


def test_nothing_outside_the_folder_of_images_is_read_whatever_a_table_says(folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.jpg")
    folder.write("images/b.jpg").text("labels.csv", f"b.jpg,dog\n../../secret.jpg,cat\n{tmp_path}/secret.jpg,cat\n")
    source = open_source(DataConfig(path=str(folder.path)), seed=0, allow_missing=True)
    assert names(source.train + source.val) == ["b"]
    assert all(path.is_relative_to(folder.path) for path in source.missing)


def test_two_files_of_one_name_from_elsewhere_are_not_taken_for_one(folder):
    folder.write("images/a.jpg").text("labels.csv", "image,label\nx/a.jpg,cat\ny/a.jpg,dog\n")
    with pytest.raises(
        DataError, match=r"line 3 names 'y/a\.jpg' and line 2 'x/a\.jpg', and both lead to the image a\.jpg"
    ):
        folder.opened()


def test_a_table_s_column_of_splits_splits_the_data(folder):
    folder.write(*(f"images/{name}.jpg" for name in "abcd"))
    folder.text("labels.csv", "image,label,split\na.jpg,cat,train\nb.jpg,dog,valid\nc.jpg,dog,test\nd.jpg,cat,train\n")
    source = folder.opened()
    assert (names(source.train), names(source.val)) == (["a", "d"], ["b"])
    assert source.description.endswith("; train from train, val from val, test left out (images: 1)")


def test_a_class_folder_that_is_not_utf_8_is_refused_at_the_start(folder):
    from toco_core.errors import ConfigError  # noqa: PLC0415

    folder.write("cat/a.jpg", "caf\udce9/b.jpg")
    with pytest.raises(ConfigError, match=r"the class 'caf\\udce9' is not UTF-8: rename it"):
        folder.opened()

"""What kind of data set a folder is, and what is said of one that is none."""

import re
import shutil

import pytest
from PIL import Image

from toco_core.errors import DataError
from toco_train.config import DataConfig
from toco_train.data.opening import open_source


def opened(path, **settings):
    return open_source(DataConfig(path=str(path), **settings), seed=0)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


ALL_FOUR = (
    "a VOC devkit (JPEGImages, Annotations, ImageSets), COCO (annotations/instances_*.json), images/ with labels.csv, "
    "or one sub-folder of images per class"
)


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([], "nothing"),
        (["a.jpg", "notes.txt", ".hidden"], "a.jpg, notes.txt"),
        (["empty/x.txt", "masks/a.png"], "empty/, masks/"),
        (["images/a.jpg"], "images/"),
        ([f"{i}.jpg" for i in range(9)], "0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 3 more"),
    ],
)
def test_a_folder_that_is_no_data_set_is_told_all_four_kinds_and_what_was_found(tmp_path, entries, found):
    for name in entries:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix == ".txt" else image(path.with_suffix(path.suffix or ".png"))
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / ".hidden.png").unlink(missing_ok=True)
    with pytest.raises(DataError, match=re.escape(f"is no data set: expected {ALL_FOUR}; found {found}") + "$"):
        opened(tmp_path / "data")


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name, sentence in (("gone", "does not exist; give a VOC"), ("file", "is not a folder; give a VOC")):
        with pytest.raises(DataError, match=f"data folder {tmp_path}/{name} {sentence}"):
            opened(tmp_path / name)


def test_a_table_without_images_and_images_of_coco_without_annotations_say_what_is_missing(tmp_path):
    (tmp_path / "labels.csv").write_text("a.jpg,cat\n")
    with pytest.raises(DataError, match=r"has labels\.csv but no folder images; put the images there"):
        opened(tmp_path)
    image(tmp_path / "coco" / "train2017" / "1.jpg")
    with pytest.raises(DataError, match=r"looks like COCO but has no annotations/instances_train\*\.json"):
        opened(tmp_path / "coco")


def test_settings_that_would_change_nothing_or_are_wrong_are_refused(tmp_path, shapes):
    for folder in ("Crack", "Free"):
        image(tmp_path / "tiles" / folder / "a.jpg")
    for path, settings, sentence in (
        (tmp_path / "tiles", {"no_class": "Fre"}, "has no sub-folder 'Fre' with images, did you mean 'Free'?"),
        (tmp_path / "tiles", {"group_by": "("}, "--group-by '(' is not a regular expression"),
        (tmp_path / "tiles", {"coco_year": 2017}, "is not COCO; leave out --data.coco_year"),
        (shapes, {"no_class": "Free"}, "is a VOC devkit: its annotations and lists say it; leave out --no-class"),
        (shapes, {"group_by": "x"}, "leave out --group-by"),
        (shapes, {"coco_year": 2014}, "leave out --data.coco_year"),
    ):
        with pytest.raises(DataError, match=re.escape(sentence)):
            opened(path, **settings)
    shutil.rmtree(tmp_path / "tiles" / "Crack")
    with pytest.raises(DataError, match="has no sub-folder with images of a class"):
        opened(tmp_path / "tiles", no_class="Free")

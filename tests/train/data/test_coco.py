"""COCO: labels and masks from instances files, read once and drawn when needed."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from toco_core.errors import ConfigError, DataError
from toco_train.config import DataConfig
from toco_train.data.opening import open_source
from toco_train.data.readers import coco_index, coco_masks
from toco_train.data.readers.coco_index import CocoIndex, cache_folder
from toco_train.data.readers.coco_masks import CocoMask, draw
from toco_train.data.source import read_mask, with_masks

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]  # columns and rows 1 to 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(path, **settings):
    return open_source(DataConfig(path=str(path), **settings), seed=0)


def box(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotations(*objects):
    """Annotations from (image id, category id, segmentation) or with iscrowd as a fourth."""
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    return [{"id": number, **dict(zip(keys, one, strict=False))} for number, one in enumerate(objects)]


def write_coco(path, split, images, objects, *, folder=None):
    """Write an instances file and images of 10 x 8 px; categories are dog (7), cat (3) and cow (90)."""
    folder = path / (folder or split)
    folder.mkdir(parents=True, exist_ok=True)
    for number in images:
        Image.new("RGB", (10, 8)).save(folder / f"{number:012d}.jpg")
    content = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "height": 8, "width": 10} for n in images],
        "categories": [{"id": 7, "name": "dog"}, {"id": 90, "name": "cow"}, {"id": 3, "name": "cat"}],
        "annotations": annotations(*objects),
    }
    (path / "annotations").mkdir(exist_ok=True)
    (path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def coco(tmp_path):
    """Three images to train on, of which one shows nothing, and two to validate."""
    path = tmp_path / "coco"
    write_coco(path, "train2017", [9, 2, 30], [(9, 7, SQUARE), (9, 3, SQUARE), (30, 90, SQUARE), (30, 90, SQUARE)])
    write_coco(path, "val2017", [5, 4], [(5, 3, SQUARE), (4, 7, SQUARE)])
    return path


def test_labels_are_the_categories_in_the_order_of_their_ids(coco):
    source = opened(coco)
    assert source.kind == "COCO"
    assert source.classes == ("cat", "dog", "cow")
    labels = {int(sample.name): sample.labels for sample in source.train}
    assert labels == {9: (1, 2), 2: (), 30: (3,)}
    assert [int(sample.name) for sample in source.val] == [5, 4]
    assert "instances_train2017.json (train2017) and instances_val2017.json (val2017)" in source.description


def test_the_image_folders_may_lie_in_images(coco):
    (coco / "images").mkdir()
    for name in ("train2017", "val2017"):
        (coco / name).rename(coco / "images" / name)
    assert [s.image.is_file() for s in opened(coco).train] == [True] * 3


def test_data_of_ones_own_needs_no_year_and_no_val(tmp_path):
    write_coco(tmp_path / "own", "train", [1], [(1, 7, SQUARE)])
    source = opened(tmp_path / "own")
    assert len(source.train) == 1
    assert source.val == ()


def test_a_split_without_its_images_is_left_out(coco):
    shutil.rmtree(coco / "train2017")
    source = opened(coco)
    assert source.train == ()
    assert len(source.val) == 2
    assert "instances_train2017.json (no images, left out)" in source.description


def test_of_several_years_one_must_be_named(coco):
    write_coco(coco, "train2014", [7], [(7, 3, SQUARE)])
    with pytest.raises(DataError, match=r"holds COCO 2014 and 2017; say which with --data\.coco_year 2017"):
        opened(coco)
    assert len(opened(coco, coco_year=2014).train) == 1
    assert len(opened(coco, coco_year=2017).train) == 3
    with pytest.raises(DataError, match="no annotations of COCO 2015, only 2014, 2017"):
        opened(coco, coco_year=2015)
    shutil.rmtree(coco / "train2014")
    assert len(opened(coco).train) == 3, "a year without images is none to choose from"


def test_polygons_and_both_kinds_of_run_lengths_draw_the_same():
    square = np.zeros((8, 10), dtype=np.uint8)
    square[1:5, 1:5] = 1
    compressed = coco_mask.encode(np.asfortranarray(square))["counts"].decode()
    runs = [9, 4, 4, 4, 4, 4, 4, 4, 43]  # down the columns, the first of which is empty
    for outline in (SQUARE, {"size": [8, 10], "counts": compressed}, {"size": [8, 10], "counts": runs}):
        assert (draw(8, 10, [(3, False, outline)]) == 3 * square).all()


def test_the_smaller_of_two_overlapping_objects_lies_on_top():
    large, small = (1, False, box(0, 0, 8, 8)), (2, False, box(2, 2, 5, 5))
    expected = np.zeros((8, 10), dtype=np.uint8)
    expected[:, :8] = 1
    expected[2:5, 2:5] = 2
    assert (draw(8, 10, [large, small]) == expected).all()
    assert (draw(8, 10, [small, large]) == expected).all()


def test_a_crowd_is_ignored_and_lies_below_every_object():
    crowd, person = (1, True, {"size": [8, 10], "counts": [0, 24, 56]}), (1, False, box(0, 0, 10, 4))
    expected = np.zeros((8, 10), dtype=np.uint8)
    expected[:, :3] = 255
    expected[:4] = 1
    assert (draw(8, 10, [crowd, person]) == expected).all()


def test_a_polygon_of_fewer_than_three_corners_draws_nothing():
    assert not draw(8, 10, [(1, False, [[1, 1, 4, 4]]), (2, False, [[1, 1]])]).any()
    assert draw(8, 10, [(1, False, [[1, 1, 4, 4], *SQUARE])]).sum() == 16


def test_a_mask_is_drawn_once_and_then_read_from_the_cache(coco, monkeypatch):
    sample = opened(coco).val[0]
    first = read_mask(sample)
    assert first.dtype == np.uint8
    assert first.shape == (8, 10)
    assert first[1:5, 1:5].all()
    assert first.sum() == 16
    cached = list(cache_folder().rglob("*.png"))
    assert [path.name for path in cached] == ["5.png"]
    assert Image.open(cached[0]).mode == "P"
    monkeypatch.setattr(coco_masks, "draw", lambda *_: pytest.fail("drawn again"))
    assert (read_mask(sample) == first).all()


def test_an_image_without_objects_has_a_mask_of_background(coco):
    masks = {int(s.name): read_mask(s) for s in with_masks(opened(coco).train)}
    assert set(masks) == {9, 2, 30}
    assert not masks[2].any()


def test_boxes_without_outlines_give_labels_and_no_mask(tmp_path):
    write_coco(tmp_path / "boxes", "train", [1, 2], [(1, 7, []), (2, 7, SQUARE), (2, 3, None)])
    source = opened(tmp_path / "boxes")
    assert [sample.labels for sample in source.train] == [(2,), (1, 2)]
    assert with_masks(source.train) == ()


def test_the_instances_file_is_read_once_until_it_changes(coco, monkeypatch):
    calls = []
    read = coco_index.read_content
    monkeypatch.setattr(coco_index, "read_content", lambda path: calls.append(path) or read(path))
    for _ in range(3):
        opened(coco)
        read_mask(opened(coco).val[0])
    assert [path.name for path in calls] == ["instances_train2017.json", "instances_val2017.json"]
    write_coco(coco, "val2017", [5, 4], [(5, 7, SQUARE), (4, 7, SQUARE)])  # of the same size
    assert opened(coco).val[0].labels == (2,)
    assert read_mask(opened(coco).val[0]).max() == 2
    assert len(calls) == 3


def test_opening_draws_nothing_and_a_sample_is_small_to_send_to_a_worker(coco):
    source = opened(coco)
    assert list(cache_folder().rglob("*.png")) == []
    assert len(pickle.dumps(source.train * 1000)) < 100_000
    assert source.train[0].mask == CocoMask(coco / "annotations" / "instances_train2017.json", 9)


def test_a_data_folder_that_cannot_be_written_is_no_hindrance(coco):
    before = sorted(coco.rglob("*"))
    read_mask(opened(coco).val[0])
    assert sorted(coco.rglob("*")) == before


def test_a_cache_that_cannot_be_written_is_told_and_masks_are_still_drawn_without_it(coco, tmp_path, monkeypatch):
    sample = opened(coco).val[0]
    (CocoIndex.of(sample.mask.instances).folder / "masks").write_text("in the way of the folder")
    assert read_mask(sample).sum() == 16
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME to a folder that can be written"):
        opened(coco)


def test_an_interrupted_reading_leaves_no_index(coco, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(coco_index.zlib, "compress", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened(coco)
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []
    assert len(opened(coco).train) == 3


def test_a_damaged_index_is_refused_with_what_to_do(coco):
    opened(coco)
    CocoIndex.of(coco / "annotations" / "instances_val2017.json").database.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot be read .*delete it, it is made anew"):
        opened(coco)


def test_images_that_are_missing_or_not_listed_are_told_of(coco):
    (coco / "train2017" / f"{2:012d}.jpg").unlink()
    Image.new("RGB", (4, 4)).save(coco / "val2017" / "extra.png")
    (coco / "val2017" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"train2017/000000000002\.jpg is missing, yet the labels name it"):
        opened(coco)
    source = open_source(DataConfig(path=str(coco)), seed=0, allow_missing=True)
    assert [path.name for path in source.missing] == ["000000000002.jpg"]
    assert [path.name for path in source.unlisted] == ["extra.png"]


def edit(**changes):
    def apply(path):
        file = path / "annotations" / "instances_train2017.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return apply


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: (p / "annotations" / "instances_train2017.json").write_text("{"), "train2017.json is not JSON"),
        (lambda p: (p / "annotations" / "instances_train2017.json").write_text("[]"), "is no COCO instances file"),
        (edit(images=[{"id": 1}]), "none of its images can be used, the first: image 1 has no usable file name"),
        (
            edit(images=[{"id": 9, "file_name": "9.jpg", "height": 8, "width": 10}] * 2, annotations=[]),
            "none of its images can be used, the first: image 9 is listed twice, as 9.jpg and as 9.jpg",
        ),
        (
            edit(annotations=annotations((9, 5, SQUARE))),
            "annotation 0 of image 9 (000000000009.jpg) is of the category 5, which",
        ),
        (
            edit(annotations=annotations((1, 3, SQUARE))),
            "annotation 0 belongs to the image 1, which is not listed; correct",
        ),
        (edit(categories=[{"id": 3, "name": "a"}, {"id": 7, "name": "b"}, {"id": 90, "name": "c"}]), "must be equal"),
        (lambda p: shutil.rmtree(p / "annotations"), "looks like COCO but has no annotations/instances_train*.json"),
        (
            lambda p: [shutil.rmtree(p / name) for name in ("train2017", "val2017")],
            "has COCO annotations but no folder train2017 or val2017 with images; unpack the images there",
        ),
    ],
)
def test_damaged_coco_is_refused_in_one_sentence(coco, damage, sentence):
    damage(coco)
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        opened(coco)
    assert "\n" not in str(caught.value)


def test_categories_of_one_name_are_refused(coco):
    edit(categories=[{"id": number, "name": "cat"} for number in (3, 7, 90)])(coco)
    shutil.rmtree(coco / "val2017")
    with pytest.raises(ConfigError, match="the classes 'cat' and 'cat' differ by capitals or blanks at most"):
        opened(coco)

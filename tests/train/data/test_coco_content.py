"""Entries of a COCO instances file: each is checked before it is used, what is wrong is named, and the rest is read."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from toco_core.errors import DataError
from toco_train.data.readers.coco_content import read_content
from toco_train.data.readers.coco_masks import draw
from toco_train.data.readers.coco_outlines import checked_outline

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
RUNS = {"size": [8, 10], "counts": [9, 4, 4, 4, 4, 4, 4, 4, 43]}


def compressed():
    square = np.zeros((8, 10), dtype=np.uint8, order="F")
    square[1:5, 1:5] = 1
    return {"size": [8, 10], "counts": coco_mask.encode(square)["counts"].decode()}


def content():
    return {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 8, "width": 10} for n in (1, 2, 3)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 3, "segmentation": SQUARE, "iscrowd": 0},
            {"id": 12, "image_id": 2, "category_id": 7, "segmentation": RUNS, "iscrowd": 1},
            {"id": 13, "image_id": 3, "category_id": 3, "segmentation": SQUARE, "iscrowd": 0},
        ],
    }


def read(tmp_path, changed):
    path = tmp_path / "instances_train.json"
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    return read_content(path)


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 1, 5, float("nan"), 5, 5]], "its polygon has the coordinate nan, expected 0 to 8"),
        ([[1, 1, float("inf"), 1, 5, 5]], "its polygon has the coordinate inf, expected 0 to 10"),
        ([[1, 1, 2e8, 1, 5, 5]], "its polygon has the coordinate 200000000.0, expected 0 to 10"),
        ([[1, 1, -(10**400), 1, 5, 5]], "expected 0 to 10"),
        ([1, 1, 5, 1, 5, 5], "its segmentation is a flat list of numbers, expected a list of polygons"),
        ([[1, 1], [5, 1], [5, 5]], "its polygon is a list of points, expected their numbers in one list"),
        ([[[1, 1], [5, 1], [5, 5]]], "its polygon is a list of points, expected their numbers in one list"),
        ([[{"x": 1, "y": 1}]], "its polygon is a list of points, expected their numbers in one list"),
        ([[1, 1, 5, 5]], "its polygons have fewer than three points, expected at least three"),
        ([[1, 1, 5, 1, 5, 5, 1]], "its polygon has 7 numbers, expected an x and a y for each point"),
        ([["1", "1", "5", "1", "5", "5"]], "its polygon holds '1', expected numbers"),
        ([[1, 1, None, 1, 5, 5]], "its polygon holds None, expected numbers"),
        ([[True, 1, 5, 1, 5, 5]], "its polygon holds True, expected numbers"),
        (["1 1 5 1"], "its segmentation holds '1 1 5 1', expected polygons"),
        ("1 1 5 1", "its segmentation is '1 1 5 1', expected polygons or run lengths"),
        (5, "its segmentation is 5, expected polygons or run lengths"),
        ([[0, 0, 10, 8] * 200_000], "its polygon is more than 1,000,000 px long, expected an outline"),
        ({"size": [8, 11], "counts": [88]}, "its run lengths are of the size [8, 11], expected [8, 10] as the image"),
        ({"counts": [80]}, "its run lengths are of the size None, expected [8, 10]"),
        ({"size": [8, 10], "counts": [9, 4]}, "its run lengths cover 13 pixels, expected 80"),
        ({"size": [8, 10], "counts": [10**12]}, "its run lengths cover 1000000000000 pixels, expected 80"),
        ({"size": [8, 10], "counts": [81, -1]}, "expected a text or a list of whole numbers"),
        ({"size": [8, 10], "counts": [79.5, 0.5]}, "expected a text or a list of whole numbers"),
        ({"size": [8, 10]}, "its run lengths are None, expected a text or a list of whole numbers"),
        ({"size": [8, 10], "counts": ""}, "its run lengths cannot be read: the text is no run of COCO's characters"),
        ({"size": [8, 10], "counts": "9é"}, "its run lengths cannot be read: the text is no run of COCO's characters"),
        ({"size": [8, 10], "counts": "oooo"}, "its run lengths cannot be read: the text is no run of COCO's"),
        ({"size": [8, 10], "counts": "o" * 20 + "0"}, "cannot be read: a run is longer than any image"),
        ({"size": [8, 10], "counts": "O"}, "its run lengths cannot be read: a run is shorter than nothing"),
        ({"size": [8, 10], "counts": compressed()["counts"][:-2]}, "its run lengths"),
        ({"size": [8, 10], "counts": compressed()["counts"] * 2}, "its run lengths"),
    ],
)  # fmt: skip
def test_an_outline_that_cannot_be_drawn_costs_its_image_the_mask_and_nothing_else(tmp_path, segmentation, problem):
    changed = content()
    changed["annotations"][0]["segmentation"] = segmentation
    found = read(tmp_path, changed)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("annotation 11 of image 1 (1.jpg): ")
    assert problem in found.problems[0]
    assert [image.has_mask for image in found.images] == [False, True, True]
    assert [[label for label, _, _ in image.objects] for image in found.images] == [[1], [2], [1]]


@pytest.mark.parametrize("outline", [SQUARE, RUNS, compressed(), [[1, 1, 4, 4], *SQUARE], [[1.0, 1, 5, 1, 5, 5, 1, 5]]])
def test_what_can_be_drawn_passes_the_check_and_draws_the_same(outline):
    square = np.zeros((8, 10), dtype=np.uint8)
    square[1:5, 1:5] = 1
    assert (draw(8, 10, [(1, False, checked_outline(outline, 8, 10))]) == square).all()


@pytest.mark.parametrize("outline", [None, [], {}])
def test_an_annotation_with_a_box_alone_is_no_problem_and_has_no_outline(outline):
    assert checked_outline(outline, 8, 10) is None


def test_a_point_a_little_outside_the_image_is_drawn_up_to_its_edge():
    assert draw(8, 10, [(1, False, checked_outline([[-3, -3, 13, -3, 13, 11, -3, 11]], 8, 10))]).all()


def edit(**changes):
    """Change the first annotation, image or category: ``annotation={...}``; a value of ... takes the key away."""

    def apply(found):
        for name, values in changes.items():
            entry = found[{"annotation": "annotations", "image": "images", "category": "categories"}[name]][0]
            for key, value in values.items():
                entry.pop(key) if value is ... else entry.update({key: value})

    return apply


@pytest.mark.parametrize(
    ("change", "problem", "labels"),
    [
        (
            edit(annotation={"image_id": 99}),
            "annotation 11 belongs to the image 99, which is not listed",
            [[], [2], [1]],
        ),
        (edit(annotation={"image_id": ...}), "annotation 11 belongs to the image None, which", [[], [2], [1]]),
        (edit(annotation={"image_id": [1]}), "annotation 11 belongs to the image [1], which", [[], [2], [1]]),
        (
            edit(annotation={"category_id": 5}),
            "annotation 11 of image 1 (1.jpg) is of the category 5, which",
            [[2], [1]],
        ),
        (edit(annotation={"category_id": ...}), "is of the category None, which is not listed", [[2], [1]]),
        (edit(annotation={"category_id": "cat"}), "is of the category 'cat', which is not listed", [[2], [1]]),
        (edit(image={"file_name": ...}), "image 1 has no usable file name", [[2], [1]]),
        (edit(image={"file_name": 5}), "image 1 has no usable file name", [[2], [1]]),
        (edit(image={"file_name": "a\0.jpg"}), "image 1 has no usable file name", [[2], [1]]),
        (edit(image={"file_name": "\ud800.jpg"}), "image 1 has no usable file name", [[2], [1]]),
        (edit(image={"id": ...}), "image at place 0 has no usable id", [[2], [1]]),
        (edit(image={"id": True}), "image at place 0 has no usable id", [[2], [1]]),
        (edit(image={"id": 2}), "image 2 is listed twice, as 1.jpg and as 2.jpg", [[1]]),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_the_rest_is_read(tmp_path, change, problem, labels):
    changed = content()
    change(changed)
    found = read(tmp_path, changed)
    assert any(problem in one for one in found.problems)
    assert [sorted(label for label, _, _ in i.objects) for i in found.images if i.usable] == labels


@pytest.mark.parametrize("size", [{"height": ...}, {"height": 0}, {"width": -3}, {"width": "wide"}, {"height": 10**9}])
def test_an_image_without_a_usable_size_keeps_its_labels_and_has_no_mask(tmp_path, size):
    changed = content()
    edit(image=size)(changed)
    found = read(tmp_path, changed)
    assert found.problems == ["image 1 (1.jpg) has no usable height and width"]
    assert [image.has_mask for image in found.images] == [False, True, True]
    assert [label for label, _, _ in found.images[0].objects] == [1]


def test_ids_may_be_texts_zero_or_whole_floats(tmp_path):
    changed = content()
    for image, number in zip(changed["images"], ("0", 2.0, "photo-3"), strict=True):
        image["id"] = number
    for annotation, number in zip(changed["annotations"], (0, "2", "photo-3"), strict=True):
        annotation["image_id"] = number
    changed["categories"][1]["id"] = 0
    for annotation in changed["annotations"][::2]:
        annotation["category_id"] = "0"
    found = read(tmp_path, changed)
    assert found.problems == []
    assert found.categories == ["cat", "dog"]
    assert [(image.number, image.objects[0][0]) for image in found.images] == [(0, 1), (2, 2), (-3, 1)]


def test_two_ids_of_one_file_are_one_image_with_the_objects_of_both(tmp_path):
    changed = content()
    changed["images"][1]["file_name"] = "1.jpg"
    found = read(tmp_path, changed)
    assert [(image.file_name, len(image.objects)) for image in found.images] == [("1.jpg", 2), ("3.jpg", 1)]


def test_the_category_that_roboflow_puts_above_the_others_is_no_class(tmp_path):
    changed = content()
    for category in changed["categories"]:
        category["supercategory"] = "pets"
    changed["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
    assert read(tmp_path, changed).categories == ["cat", "dog"]
    changed["annotations"][0]["category_id"] = 0
    assert read(tmp_path, changed).categories == ["pets", "cat", "dog"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"images": ' + "1" * 5000 + "}", "is not JSON"),
        ({"images": [], "annotations": []}, "it has no list of categories"),
        ({"images": {}, "annotations": [], "categories": []}, "it has no list of images"),
        ({**content(), "categories": [{"id": 1}]}, "category 0 has no id or no name"),
        ({**content(), "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "'a' and 'b' have the id 1"),
        ({**content(), "categories": ["cat"]}, "category 0 has no id or no name"),
        (
            {**content(), "images": [5, None]},
            "none of its images can be used, the first: image at place 0 has no usable",
        ),
        ({**content(), "annotations": [5]}, "annotation at place 0 is int, expected a mapping; correct the file"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused_in_one_sentence(tmp_path, change, sentence):
    with pytest.raises(DataError) as caught:
        read(tmp_path, change)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OUTLINES = JSON | st.fixed_dictionaries({
    "size": JSON | st.just([8, 10]),
    "counts": JSON | st.text(st.characters(min_codepoint=46, max_codepoint=114), max_size=12)
    | st.lists(st.integers(-2, 90), max_size=6),
}) | st.lists(st.lists(st.integers(-30, 30) | st.floats(-25, 25) | JSON, max_size=9), max_size=3)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(OUTLINES)
def test_any_outline_is_drawn_or_refused_in_a_sentence(outline):
    checked, said = None, ""
    try:
        checked = checked_outline(outline, 8, 10)
    except ValueError as error:
        said = str(error)
    assert not said or "expected" in said or "cannot be read" in said
    if checked is not None:
        assert draw(8, 10, [(1, False, json.loads(json.dumps(checked)))]).shape == (8, 10)


PLACES = st.sampled_from([
    ("images", "id"), ("images", "file_name"), ("images", "height"), ("annotations", "image_id"), ("annotations", "id"),
    ("annotations", "category_id"), ("annotations", "segmentation"), ("annotations", "iscrowd"), ("categories", "id"),
    ("categories", "name"), ("categories", "supercategory"),
])  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(PLACES, st.integers(0, 1), JSON)
def test_any_value_in_any_place_is_read_or_refused(tmp_path, place, number, value):
    changed = copy.deepcopy(content())
    changed[place[0]][number][place[1]] = value
    try:
        found = read(tmp_path, changed)
    except DataError as error:
        found, said = None, str(error)
    labels = {label for image in found.images for label, _, _ in image.objects} if found else set()
    assert labels <= {1, 2}
    assert found or "\n" not in said

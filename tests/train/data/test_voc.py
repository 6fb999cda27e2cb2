"""VOC devkits: labels from annotations, splits from lists or worked out, and masks left alone."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_core.errors import ConfigError, DataError
from toco_core.images import read_image
from toco_core.palette import save_mask
from toco_train.config import DataConfig
from toco_train.data.masks import LabelMask
from toco_train.data.opening import open_source
from toco_train.data.readers.voc import VOC_CLASSES
from toco_train.data.source import image_labels, read_mask, with_masks

VOC_SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "voc-sample"


def opened(path, **settings):
    return open_source(DataConfig(path=str(path), **settings), seed=0)


def names(samples):
    return [sample.name for sample in samples]


@pytest.fixture
def devkit(tmp_path):
    """Eight images as downloaded: a to d in Segmentation (d in val), e to h in Main alone, masks for a to d."""
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    for index, name in enumerate("abcdefgh"):
        Image.new("RGB", (12, 8), (index, 0, 0)).save(voc / "JPEGImages" / f"{name}.jpg")
        annotate(voc, name, VOC_CLASSES[index])
    for name in "abcd":
        save_mask(voc / "SegmentationClass" / f"{name}.png", np.zeros((8, 12), dtype=np.uint8))
    for listing, ids in (("Segmentation/train", "abc"), ("Segmentation/val", "d"), ("Main/trainval", "bcdefgh")):
        (voc / "ImageSets" / f"{listing}.txt").write_text("\r\n".join(ids) + "\r\n")
    return voc


def annotate(voc, name, *objects, difficult=0):
    elements = "".join(
        f"<object><name>{one}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
        for one in objects
    )
    (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{elements}</annotation>")


def test_a_voc_devkit_gives_labels_from_its_annotations_and_splits_from_its_lists(shapes):
    source = opened(shapes)
    assert source.kind == "VOC"
    assert source.classes == ("turtle", "crab", "camera", "gift", "daisy", "grape")
    assert len(source.train) == 32
    assert len(source.val) == 8
    for sample in source.train + source.val:
        in_mask = set(np.unique(read_mask(sample)).tolist()) - {0, 255}
        assert set(sample.labels) == in_mask
        assert image_labels(sample, 6).nonzero()[0].tolist() == [label - 1 for label in sample.labels]


def test_a_voc_devkit_opens_with_no_mask_on_disk(shapes):
    shutil.rmtree(shapes / "SegmentationClass")
    source = opened(shapes)
    assert len(source.train) == 32
    assert with_masks(source.train + source.val) == ()


@pytest.mark.parametrize("above", [0, 1, 2])
def test_the_devkit_is_found_below_the_folder_that_its_archive_unpacks_to(devkit, above):
    assert opened((devkit, *devkit.parents)[above]).path == devkit


def test_train_aug_is_every_mask_in_segmentationclassaug_that_is_not_in_val(devkit):
    (devkit / "SegmentationClassAug").mkdir()
    for name in "abdeh":
        save_mask(devkit / "SegmentationClassAug" / f"{name}.png", np.full((8, 12), 7, dtype=np.uint8))
    source = opened(devkit)
    assert names(source.train) == ["a", "b", "e", "h"]
    assert names(source.val) == ["d"]
    assert "worked out as every mask in SegmentationClassAug that is not in val" in source.description
    assert read_mask(source.val[0]).max() == 0, "the devkit's own mask comes first"
    assert read_mask(source.train[2]).max() == 7


def test_without_segmentationclassaug_training_uses_the_lists_that_train_aug_was_drawn_from(devkit):
    source = opened(devkit)
    assert names(source.train) == ["a", "b", "c", "e", "f", "g", "h"]
    assert "Segmentation/train.txt with Main/trainval.txt, without val" in source.description
    assert names(with_masks(source.train)) == ["a", "b", "c"]


@pytest.mark.parametrize("listing", ["train_aug", "trainaug"])
def test_a_list_of_train_aug_wins_in_its_own_order(devkit, listing):
    (devkit / "SegmentationClassAug").mkdir()
    save_mask(devkit / "SegmentationClassAug" / "a.png", np.zeros((8, 12), dtype=np.uint8))
    (devkit / "ImageSets" / "Segmentation" / f"{listing}.txt").write_text("\ufefff\nb\nf\n", encoding="utf-8")
    assert names(opened(devkit).train) == ["f", "b"]


def test_without_a_main_list_training_uses_train_txt(devkit):
    shutil.rmtree(devkit / "ImageSets" / "Main")
    source = opened(devkit)
    assert names(source.train) == ["a", "b", "c"]
    assert "train: ImageSets/Segmentation/train.txt;" in source.description


def test_without_a_val_list_the_images_of_main_are_not_trained_on(devkit):
    (devkit / "ImageSets" / "Segmentation" / "val.txt").unlink()
    source = opened(devkit)
    assert names(source.train) == ["a", "b", "c"]
    assert source.val == ()
    assert source.description.endswith("; val: no list")


def test_difficult_objects_count_parts_do_not_and_an_annotation_may_be_empty(devkit):
    annotate(devkit, "a", " cat\n", "cat", "aeroplane", difficult=1)
    annotate(devkit, "b")
    by_name = {sample.name: sample.labels for sample in opened(devkit).train}
    assert by_name["a"] == (1, VOC_CLASSES.index("cat") + 1)
    assert by_name["b"] == ()


def test_opening_reads_no_mask_and_no_image(devkit):
    for folder in ("JPEGImages", "SegmentationClass"):
        for path in (devkit / folder).iterdir():
            path.write_bytes(b"no image")
    assert len(opened(devkit).train) == 7


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_a_mask_that_is_no_image_of_labels_is_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=rf"mask\.png cannot be read: its mode is {mode}, expected a palette or 8-bit"):
        LabelMask(tmp_path / "mask.png").read()


@pytest.mark.parametrize("mode", ["P", "L"])
def test_palette_and_grey_masks_hold_the_same_labels(tmp_path, mode):
    labels = np.array([[0, 3, 255]], dtype=np.uint8)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette([9] * 768)
    image.save(tmp_path / "mask.png")
    assert (LabelMask(tmp_path / "mask.png").read() == labels).all()


def test_a_mask_that_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    for name, sentence in (
        ("torn.png", "cannot be read: it is of an unknown kind"),
        ("gone.png", "is missing; restore it"),
    ):
        with pytest.raises(DataError, match=f"{name} {sentence}"):
            LabelMask(tmp_path / name).read()


@pytest.mark.skipif(not VOC_SAMPLE.is_dir(), reason="the VOC sample is not here")
def test_real_voc_photographs_load_with_odd_annotations():
    source = opened(VOC_SAMPLE)
    assert source.classes == VOC_CLASSES
    assert names(source.val) == ["2011_000003", "2011_000006", "2011_000025"]
    person = VOC_CLASSES.index("person") + 1
    assert source.val[1].labels == (person,)
    assert read_image(source.val[1].image).size == (500, 375)
    assert read_mask(source.val[1]).shape == (375, 500)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda p: shutil.rmtree(p / "JPEGImages"), "looks like a VOC devkit but has no folder JPEGImages"),
        (lambda p: shutil.rmtree(p / "ImageSets"), "looks like a VOC devkit but has no folder ImageSets"),
        (lambda p: shutil.rmtree(p / "ImageSets" / "Segmentation"), "has no ImageSets/Segmentation/train.txt"),
        (lambda p: (p / "JPEGImages" / "000003.jpg").unlink(), "000003.jpg is missing, yet the labels name it"),
        (lambda p: (p / "Annotations" / "000003.xml").unlink(), "000003.xml cannot be read"),
        (lambda p: (p / "Annotations" / "000003.xml").write_text("<a><b>"), "000003.xml cannot be read"),
        (lambda p: (p / "classes.yaml").unlink(), "which is none of the 20 known; list the classes"),
    ],
)
def test_a_damaged_devkit_is_refused_in_one_sentence(shapes, damage, sentence):
    damage(shapes)
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        opened(shapes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("classes: []", "classes: tuple should have at least 1 item"),
        ("classes: [yes, no]", "valid string (got True)"),
        ("classes: [cat, Cat]", "the classes 'cat' and 'Cat' differ by capitals or blanks at most: rename one"),
        ("classes: [cat, cat]", "the classes 'cat' and 'cat' differ by capitals or blanks at most: rename one"),
        ("classes: [cat, ' ']", "a class has no name"),
        ("classe: [cat]", "unknown key 'classe', did you mean 'classes'?"),
        ("classes: [cat]\npalette: [[0, 0, 0]]", "palette has 1 colours for the background and 1 classes: give 2"),
        ("classes: [cat]\npalette: [[0, 0, 0], [0, 0, 256]]", "should be less than or equal to 255 (got 256)"),
    ],
)
def test_a_wrong_class_list_is_refused_in_one_sentence(shapes, content, sentence):
    (shapes / "classes.yaml").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        opened(shapes)
    assert "\n" not in str(caught.value)


def test_more_classes_than_a_mask_has_room_for_are_refused(shapes):
    (shapes / "classes.yaml").write_text(f"classes: {[f'c{i}' for i in range(255)]}")
    with pytest.raises(ConfigError, match="there are 255 classes; a mask has room for 254"):
        opened(shapes)


def test_images_that_the_lists_name_and_the_disk_lacks_are_all_told_of_when_asked(devkit):
    for name in "ad":
        (devkit / "JPEGImages" / f"{name}.jpg").unlink()
    source = open_source(DataConfig(path=str(devkit)), seed=0, allow_missing=True)
    assert [path.name for path in source.missing] == ["a.jpg", "d.jpg"]
    assert names(source.train) == ["b", "c", "e", "f", "g", "h"]
    with pytest.raises(DataError, match=r"a\.jpg is missing, yet the labels name it.* \(2 are missing in all\)"):
        opened(devkit)

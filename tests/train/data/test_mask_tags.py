"""Masks held against the tags of their images, and images that are no masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco_core.errors import DataError
from toco_core.palette import save_mask
from toco_train.config import DataConfig
from toco_train.data.check import examine_all, report
from toco_train.data.mask_tags import describe, disagreement, refuse_unusable_masks
from toco_train.data.masks import BinaryMask, LabelMask
from toco_train.data.opening import open_source
from toco_train.data.source import Sample


def sample(*labels, path="m.png"):
    return Sample(name="a", image=Path("a.jpg"), labels=labels, mask=LabelMask(Path(path)))


@pytest.mark.parametrize(
    ("tags", "labels", "found"),
    [
        ((1,), [0, 1], set()),
        ((1, 2), [0, 1, 2, 255], set()),
        ((), [0], set()),
        ((), [255], set()),
        ((1,), [0, 255], {"binary_mask"}),
        ((1,), [255], {"ignored_mask"}),
        ((1,), [0], {"tag_without_pixel"}),
        ((1, 2), [0, 1, 255], {"tag_without_pixel"}),
        ((1,), [0, 2], {"tag_without_pixel", "pixel_without_tag"}),
        ((), [0, 3], {"pixel_without_tag"}),
    ],
)
def test_a_mask_disagrees_with_its_tags_in_ways_that_have_names(tags, labels, found):
    assert disagreement(sample(*tags), np.array([labels], dtype=np.uint8)) == found


def test_a_crowd_of_coco_is_255_and_has_its_tag():
    from toco_train.data.readers.coco_masks import CocoMask  # noqa: PLC0415

    crowd = Sample(name="a", image=Path("a.jpg"), labels=(1,), mask=CocoMask(Path("instances.json"), 1))
    assert disagreement(crowd, np.array([[0, 255]], dtype=np.uint8)) == frozenset()


def test_disagreements_are_counted_in_one_sentence():
    found = [frozenset(), frozenset({"binary_mask"}), frozenset({"tag_without_pixel", "pixel_without_tag"})]
    assert describe([frozenset()]) == ""
    assert describe(found) == (
        "of 3 masks 1 hold nothing but 0 and 255, and 255 means ignored; 1 have no pixel of a class that the image is "
        "tagged with; 1 have pixels of a class that the image is not tagged with; toco-data check names them"
    )


def write_masks(folder, labels, *, mode="P"):
    """Write a mask for each of some labels; return tagged samples."""
    found = []
    for number, values in enumerate(labels):
        path = folder / f"{number}.png"
        if mode == "P":
            save_mask(path, np.array([values], dtype=np.uint8))
        else:
            Image.fromarray(np.array([values], dtype=np.uint8)).convert(mode).save(path)
        found.append(sample(1, path=path))
    return found


@pytest.mark.parametrize("mode", ["P", "L"])
def test_masks_of_0_and_255_are_not_scored(tmp_path, mode):
    with pytest.raises(
        DataError, match=r"3 of 3 masks of tagged images hold nothing but 0 and 255, for example .*0\.png"
    ):
        refuse_unusable_masks(write_masks(tmp_path, [[0, 255]] * 3, mode=mode))


def test_a_few_masks_without_a_label_are_no_reason_to_refuse_all(tmp_path):
    refuse_unusable_masks(write_masks(tmp_path, [[0, 255], [0, 1], [1, 255]]))
    refuse_unusable_masks(write_masks(tmp_path, [[255, 255]] * 3))


def test_a_mask_that_cannot_be_read_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"mask .*torn\.png cannot be"):
        refuse_unusable_masks([sample(1, path=tmp_path / "torn.png")])


def photograph(mode="RGB"):
    rows, columns = np.mgrid[:40, :40]
    colours = np.stack([rows * 6, columns * 6, 255 - rows * 6], axis=2).astype(np.uint8)
    return Image.fromarray(colours).convert(mode)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (photograph(), "holds colours, expected white on the object and black elsewhere; it looks like a photograph"),
        (photograph("RGBA"), "holds colours"),
        (photograph("L"), "is a grey photograph, expected white on the object and black elsewhere"),
        (
            Image.fromarray(np.array([[0, 1], [1, 1]], dtype=np.uint8)),
            "its levels go from 0 to 1, expected white (255) on",
        ),
    ],
)
def test_an_image_beside_another_that_is_no_silhouette_is_no_mask(tmp_path, image, sentence):
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        BinaryMask(tmp_path / "a.png", 1).read()
    assert sentence in str(caught.value)


def test_a_silhouette_that_was_a_jpeg_is_a_mask(tmp_path):
    silhouette = np.zeros((40, 40), dtype=np.uint8)
    silhouette[10:30, 10:30] = 255
    Image.fromarray(silhouette).convert("RGB").save(tmp_path / "a.jpg", quality=60)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")
    assert (BinaryMask(tmp_path / "a.png", 3).read() == 3 * (silhouette > 0)).all()


def test_a_colour_image_in_the_place_of_a_label_mask_says_what_it_looks_like(tmp_path):
    photograph().save(tmp_path / "photo.png")
    Image.fromarray(np.array([[[128, 0, 0], [0, 0, 0]]], dtype=np.uint8)).save(tmp_path / "colours.png")
    for name, looks in (
        ("photo", "it looks like a photograph"),
        ("colours", "it looks like a mask with a colour for each"),
    ):
        with pytest.raises(DataError, match=looks):
            LabelMask(tmp_path / f"{name}.png").read()


@pytest.fixture
def photos(tmp_path):
    """Eight images of cats and dogs in turn with right masks."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(8):
        noise = np.random.default_rng(number).integers(256, size=(36, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.jpg")
        rows.append(f"{number}.jpg,{('cat', 'dog')[number % 2]}\n")
        mask = np.zeros((36, 40), dtype=np.uint8)
        mask[:9] = 1 + number % 2
        save_mask(tmp_path / "masks" / f"{number}.png", mask)
    (tmp_path / "labels.csv").write_text("".join(rows))
    return tmp_path


def findings(path):
    source = open_source(DataConfig(path=str(path)), seed=0, allow_missing=True)
    found = report(source, list(examine_all(source, tiny_px=8, num_workers=1)), tiny_px=8)
    return {finding.kind: (finding.severity, finding.examples) for finding in found.findings}


def test_the_check_holds_every_mask_against_its_tags_in_both_splits(photos):
    assert findings(photos) == {}
    mask = np.zeros((36, 40), dtype=np.uint8)
    save_mask(photos / "masks" / "0.png", mask)
    mask[3:8] = 2
    save_mask(photos / "masks" / "2.png", mask)
    save_mask(photos / "masks" / "3.png", np.full((36, 40), 255, dtype=np.uint8))
    assert findings(photos) == {
        "tag_without_pixel": ("look", ("masks/0.png", "masks/2.png")),
        "pixel_without_tag": ("look", ("masks/2.png",)),
        "ignored_mask": ("look", ("masks/3.png",)),
    }


def test_the_check_says_that_training_would_stop_at_masks_of_0_and_255(photos):
    for path in (photos / "masks").iterdir():
        labels = np.asarray(Image.open(path))
        save_mask(path, np.where(labels > 0, 255, 0).astype(np.uint8))
    found = findings(photos)
    assert found["binary_mask"][0] == "look"
    assert len(found["binary_mask"][1]) == 8
    assert found["binary_masks"][0] == "stop"

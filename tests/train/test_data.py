"""Data sources: what is read, what is refused, and that masks are left alone."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toco.errors import DataError
from toco_train.data.opening import DataConfig, open_source
from toco_train.data.source import image_labels, read_image, read_mask
from toco_train.data.voc import VOC_CLASSES

VOC_SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "voc-sample"
MAGNETIC_TILES = VOC_SAMPLE.parent / "magnetic-tiles"


def opened(path, **settings):
    return open_source(DataConfig(path=str(path), **settings), seed=0)


@pytest.fixture
def tiles(tmp_path):
    """Six tiles photographed twice each: four with a crack (masks beside two), and eight with nothing."""
    for folder, tile in (("Crack", 0), ("Crack", 1), ("Free", 2), ("Free", 3), ("Free", 4), ("Free", 5)):
        for photograph in (1, 2):
            path = tmp_path / "tiles" / folder / f"exp{photograph}_num_{tile}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (20, 30), 90 + tile).save(path)
    mask = np.zeros((30, 20), dtype=np.uint8)
    mask[:10], mask[10] = 255, 127
    for photograph in (1, 2):
        Image.fromarray(mask).save(tmp_path / "tiles" / "Crack" / f"exp{photograph}_num_0.png")
    return tmp_path / "tiles"


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
    assert all(sample.mask is None for sample in source.train + source.val)


def test_the_devkit_is_found_below_the_folder_that_its_archive_unpacks_to(shapes, tmp_path):
    (tmp_path / "download" / "VOCdevkit").mkdir(parents=True)
    shapes.rename(tmp_path / "download" / "VOCdevkit" / "VOC2012")
    assert len(opened(tmp_path / "download").train) == 32


@pytest.mark.skipif(not VOC_SAMPLE.is_dir(), reason="the VOC sample is not here")
def test_real_voc_photographs_load_with_odd_annotations():
    source = opened(VOC_SAMPLE)
    assert source.classes == VOC_CLASSES
    assert [sample.name for sample in source.val] == ["2011_000003", "2011_000006", "2011_000025"]
    person = VOC_CLASSES.index("person") + 1
    assert source.val[1].labels == (person,)
    assert read_image(source.val[1].image).size == (500, 375)
    assert read_mask(source.val[1]).shape == (375, 500)


def test_class_folders_give_single_labels_and_the_folder_without_class_gives_none(tiles):
    source = opened(tiles, no_class="Free")
    assert source.kind == "folder"
    assert source.classes == ("Crack",)
    samples = source.train + source.val
    assert len(samples) == 12
    assert {s.labels for s in samples if s.name.startswith("Crack")} == {(1,)}
    assert {s.labels for s in samples if s.name.startswith("Free")} == {()}


def test_a_binary_mask_beside_an_image_is_above_127_and_no_image_itself(tiles):
    source = opened(tiles)
    with_mask = [s for s in source.train + source.val if s.mask is not None]
    assert {s.image.suffix for s in source.train + source.val} == {".jpg"}
    assert [s.mask.name for s in with_mask] == ["exp1_num_0.png", "exp2_num_0.png"]
    truth = read_mask(with_mask[0])
    assert (truth[:10] == 1).all()
    assert (truth[10:] == 0).all()


def test_photographs_of_one_thing_stay_in_one_split(tiles):
    source = opened(tiles, no_class="Free", group_by=r"num_(\d+)", val_fraction=0.4)

    def tile(sample):
        return sample.name.rpartition("_")[2]

    assert source.val
    assert {tile(s) for s in source.train}.isdisjoint({tile(s) for s in source.val})
    assert {s.labels for s in source.train} == {(1,), ()} == {s.labels for s in source.val}


def test_a_split_is_the_same_for_a_seed_and_another_for_another_seed(tiles):
    def val(seed):
        return open_source(DataConfig(path=str(tiles), no_class="Free", val_fraction=0.4), seed=seed).val

    assert val(0) == val(0)
    assert any(val(0) != val(seed) for seed in range(1, 6))


@pytest.mark.skipif(not MAGNETIC_TILES.is_dir(), reason="the magnetic tiles are not here")
def test_real_tiles_open_with_five_classes_and_photographs_of_nothing():
    source = opened(MAGNETIC_TILES, no_class="Free")
    assert source.classes == ("Blowhole", "Break", "Crack", "Fray", "Uneven")
    samples = source.train + source.val
    assert len(samples) == 432
    assert sum(not s.labels for s in samples) == 146
    assert all(s.mask is not None for s in samples)


def test_a_rotated_photograph_is_read_upright(tmp_path):
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    assert read_image(tmp_path / "rotated.jpg").size == (20, 30)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA", "I;16"])
def test_pictures_of_every_kind_become_rgb(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.new(mode, (8, 6)).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert image.size == (8, 6)


def _truncate(folder):
    victim = folder / "JPEGImages" / "000002.jpg"
    victim.write_bytes(victim.read_bytes()[:700])
    return victim


def test_a_truncated_image_is_refused_by_name(shapes):
    victim = _truncate(shapes)
    with pytest.raises(DataError, match=f"image {re.escape(str(victim))} cannot be decoded"):
        read_image(victim)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shutil.rmtree, "does not exist; give a VOC devkit"),
        (lambda p: shutil.rmtree(p / "JPEGImages"), "looks like a VOC devkit but has no folder JPEGImages"),
        (lambda p: shutil.rmtree(p / "ImageSets"), "looks like a VOC devkit but has no folder ImageSets"),
        (lambda p: shutil.rmtree(p / "ImageSets" / "Segmentation"), "has no ImageSets/Segmentation/train.txt"),
        (lambda p: (p / "JPEGImages" / "000003.jpg").unlink(), "000003.jpg is missing, yet ImageSets names"),
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


def test_folders_that_are_no_data_set_are_refused(tmp_path, tiles, shapes):
    (tmp_path / "empty").mkdir()
    for path, settings, sentence in (
        (tmp_path / "empty", {}, "is neither a VOC devkit"),
        (tiles, {"no_class": "Fre"}, "has no sub-folder 'Fre' with images, did you mean 'Free'?"),
        (tiles, {"group_by": "("}, "is not a regular expression"),
        (shapes, {"no_class": "Free"}, "leave out --no-class"),
        (shapes / "classes.yaml", {}, "is not a folder"),
    ):
        with pytest.raises(DataError, match=re.escape(sentence)):
            opened(path, **settings)

"""``toco-data check``: each kind of image is found, named, and called what it means for training."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import toco_train.data.check
from tests.core.image_kinds import png
from toco_train.commands.check_data import main
from toco_train.config import DataConfig
from toco_train.data.check import KINDS, examine_all, report
from toco_train.data.opening import open_source

NUM_PLAIN = 12


def noise(seed, width=40, height=36):
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


class Photos:
    """A folder with labels.csv that a test adds images to."""

    def __init__(self, path):
        self.path = path
        self.images = path / "images"
        self.images.mkdir(parents=True)
        self._rows = []
        for index in range(NUM_PLAIN):
            self.add(f"plain{index:02}.png", noise(index), ("cat", "dog")[index % 2])

    def add(self, name, image, *classes, **options):
        if isinstance(image, bytes):
            (self.images / name).write_bytes(image)
        elif image is not None:
            image.save(self.images / name, **options)
        self._rows.append(",".join((name, *classes)))
        (self.path / "labels.csv").write_text("\n".join(self._rows) + "\n")

    def found(self, **settings):
        """The examples of each kind that is found."""
        return {finding.kind: finding.examples for finding in self.report(**settings).findings}

    def report(self, tiny_px=32, **settings):
        source = open_source(DataConfig(path=str(self.path), **settings), seed=0, allow_missing=True)
        return report(source, list(examine_all(source, tiny_px=tiny_px, num_workers=2)), tiny_px=tiny_px)


@pytest.fixture
def photos(tmp_path):
    """Twelve plain images of cats and dogs in turn, in a folder that can be added to."""
    return Photos(tmp_path / "photos")


def test_in_plain_images_nothing_is_found(photos):
    found = photos.report()
    assert found.findings == ()
    assert not found.training_would_fail
    assert {name: split.images for name, split in found.splits.items()} == {"train": 10, "val": 2}
    assert found.splits["train"].by_class == {"cat": 5, "dog": 5}
    assert found.splits["val"].by_class == {"cat": 1, "dog": 1}


def test_images_of_several_classes_are_counted_by_pair(photos):
    for index, classes in enumerate((("cat", "dog"), ("dog", "cat"), ("cat", "emu"), ("cat", "dog", "emu"), ())):
        photos.add(f"more{index}.png", noise(100 + index), *classes)
    found = photos.report()
    assert found.co_occurrence == (("cat", "dog", 3), ("cat", "emu", 2), ("dog", "emu", 1))
    assert sum(split.without_class for split in found.splits.values()) == 1
    assert {f.kind: f.examples for f in found.findings}["no_label"] == ("more4",)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


IMAGES = {
    "tiny": ("odd.png", noise(50, width=31), {}),
    "enormous": ("odd.png", noise(50, width=50, height=50), {}),
    "grey": ("odd.png", noise(50).convert("L"), {}),
    "cmyk": ("odd.jpg", noise(50).convert("CMYK"), {}),
    "transparent": ("odd.png", noise(50).convert("RGBA"), {}),
    "16_bit": ("odd.png", Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40), {}),
    "dark_16_bit": ("odd.tif", Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)), {}),
    "rotated": ("odd.jpg", noise(50), {"exif": rotated()}),
    "animated": ("odd.webp", noise(50), {"save_all": True, "append_images": [noise(51)]}),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_image_of_each_kind_is_named(photos, kind, monkeypatch):
    monkeypatch.setattr(toco_train.data.check, "ENORMOUS_PIXELS", 40 * 40)
    name, image, options = IMAGES[kind]
    photos.add(name, image, "cat", **options)
    beside = {"16_bit": {"grey"}, "dark_16_bit": {"grey", "16_bit"}}.get(kind, set())
    assert photos.found() == dict.fromkeys({kind} | beside, ("odd",))
    assert not photos.report().training_would_fail


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_orientation_of_every_format_is_named(photos, suffix):
    photos.add(f"odd.{suffix}", noise(50), "cat", exif=rotated())
    assert photos.found() == {"rotated": ("odd",)}


def test_16_bits_a_colour_are_told_from_8(photos):
    levels = np.random.default_rng(0).integers(1 << 16, size=(40, 40, 3))
    photos.add("odd.png", png(levels, 16, 2), "cat")
    assert photos.found() == {"16_bit": ("odd",)}


def test_grey_is_told_by_the_pixels_and_not_by_the_file(photos):
    photos.add("grey.png", noise(50).convert("L").convert("RGB"), "cat")
    nearly = noise(51).convert("L").convert("RGB")
    nearly.putpixel((9, 9), (1, 2, 3))
    photos.add("nearly.png", nearly, "cat")
    assert photos.found() == {"grey": ("grey",)}


def test_the_side_that_counts_as_tiny_can_be_chosen(photos):
    photos.add("odd.png", noise(50, width=31), "cat")
    assert photos.found(tiny_px=31) == {}
    (finding,) = photos.report(tiny_px=32).findings
    assert finding.title == "tiny: a side below 32 px"


def test_what_cannot_be_read_or_is_missing_would_stop_training(photos):
    photos.add("broken.png", (photos.images / "plain00.png").read_bytes()[:900], "cat")
    photos.add("text.jpg", b"hello", "dog")
    photos.add("gone.jpg", None, "dog")
    found = photos.found()
    assert set(found) == {"missing", "unreadable"}
    assert found["missing"] == ("images/gone.jpg",)
    broken, text = found["unreadable"]
    assert broken.startswith("image images/broken.png cannot be read: it is damaged (")
    assert text.startswith("image images/text.jpg cannot be read: it is text, expected JPEG, PNG, WebP, BMP or TIFF;")
    assert photos.report().training_would_fail


def test_images_that_no_label_names_are_listed_and_stop_nothing(photos):
    noise(50).save(photos.images / "extra.png")
    assert photos.found() == {"unlisted": ("images/extra.png",)}
    assert not photos.report().training_would_fail


def test_the_same_pixels_are_known_again_in_another_file(photos):
    noise(0).save(photos.images / "other.bmp")
    photos.add("other.bmp", noise(0), "dog")
    found = photos.found(group_by="(plain00|other)")
    assert found["contradiction"] == ("other = plain00",)
    assert found.get("duplicate", ()) + found.get("in_both_splits", ()) == ("other = plain00",)


def test_the_same_image_in_both_splits_is_told_from_twice_in_one(shapes):
    images = shapes / "JPEGImages"
    lists = shapes / "ImageSets" / "Segmentation"
    (a, b), (c, *_) = (lists.joinpath(f"{name}.txt").read_text().split()[:2] for name in ("train", "val"))
    shutil.copy(images / f"{a}.jpg", images / f"{b}.jpg")
    shutil.copy(images / f"{a}.jpg", images / f"{c}.jpg")
    source = open_source(DataConfig(path=str(shapes)), seed=0)
    found = report(source, list(examine_all(source, tiny_px=32, num_workers=2)), tiny_px=32).findings
    examples = {finding.kind: finding.examples for finding in found}
    assert examples["in_both_splits"] == (f"{a} = {c}",)
    assert examples["duplicate"] == (f"{a} = {b}",)


def test_a_class_that_no_training_image_shows_is_named(shapes):
    classes = shapes / "classes.yaml"
    classes.write_text("classes: [turtle, crab, camera, gift, daisy, grape, unicorn]\n")
    source = open_source(DataConfig(path=str(shapes)), seed=0)
    found = report(source, list(examine_all(source, tiny_px=32, num_workers=1)), tiny_px=32)
    examples = {finding.kind: finding.examples for finding in found.findings}
    assert examples["unseen_class"] == ("unicorn",)
    assert "unicorn" in examples["unscored_class"]


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (Image.new("L", (41, 36)), "is 41 x 36 px, its image 40 x 36"),
        (Image.new("L", (40, 36), 3), "holds the label 3, and there are 2 classes"),
        (Image.new("RGB", (40, 36)), "cannot be read: its mode is RGB, expected a palette"),
        (Image.new("L", (40, 36), 2), None),
    ],
)
def test_a_mask_that_does_not_fit_would_stop_training_where_it_is_scored_and_is_named_elsewhere(photos, mask, problem):
    (photos.path / "masks").mkdir()
    source = open_source(DataConfig(path=str(photos.path)), seed=0)
    for sample in (source.train[0], source.val[0]):
        mask.save(photos.path / "masks" / f"{sample.name}.png")
    found = photos.report()
    assert found.training_would_fail == (problem is not None)
    problems = {finding.kind: finding.examples for finding in found.findings}
    for kind, sample in (("bad_mask", source.val[0]), ("bad_training_mask", source.train[0])):
        examples = problems.get(kind, ())
        assert len(examples) == (problem is not None)
        assert all(f"masks/{sample.name}.png {problem}" in text for text in examples)


def test_no_training_image_and_no_class_would_stop_training(shapes):
    (shapes / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    shutil.rmtree(shapes / "ImageSets" / "Main", ignore_errors=True)
    source = open_source(DataConfig(path=str(shapes)), seed=0)
    found = report(source, list(examine_all(source, tiny_px=32, num_workers=1)), tiny_px=32)
    assert [f.kind for f in found.findings if f.severity == "stop"] == ["no_training_images"]


def test_the_command_reports_and_returns_0_where_training_can_read_all(photos, capsys):
    assert main(["check", str(photos.path), "--json", str(photos.path / "found" / "report.json")]) == 0
    out = capsys.readouterr().out
    assert f"training can read all of it    next: toco-train --data {photos.path} --out RUN\n" in out
    saved = json.loads((photos.path / "found" / "report.json").read_text())
    assert saved["splits"]["train"]["by_class"] == {"cat": 5, "dog": 5}
    assert saved["findings"] == []


def test_the_command_that_follows_reads_the_data_in_the_same_way(photos, capsys):
    flags = ["--no-class", "dog", "--group-by", r"n(\d)", "--val-fraction", "0.5", "--seed", "3"]
    assert main(["check", str(photos.path), *flags]) == 0
    command = r"--no-class dog --group-by 'n(\d)' --data.val-fraction 0.5 --seed 3 --out RUN"
    assert command in capsys.readouterr().out


def test_the_command_returns_1_where_training_would_fail_and_says_why(photos, capsys):
    photos.add("gone.jpg", None, "dog")
    photos.add("text.jpg", b"hello", "dog")
    assert main(["check", str(photos.path)]) == 1
    out = capsys.readouterr().out
    assert "training would fail: named by the labels, but not on disk; cannot be read" in out
    assert "images/gone.jpg" in out
    assert all(KINDS[kind].remedy in " ".join(out.replace("│", " ").split()) for kind in ("missing", "unreadable"))


def test_many_examples_are_cut_short_on_the_screen_and_whole_in_the_file(photos, tmp_path, capsys):
    for index in range(7):
        photos.add(f"grey{index}.png", noise(60 + index).convert("L"), "cat")
    assert main(["check", str(photos.path), "--json", str(tmp_path / "report.json")]) == 0
    assert "and 4 more" in capsys.readouterr().out
    (finding,) = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert finding["examples"] == [f"grey{index}" for index in range(7)]


def test_a_file_name_that_is_not_utf_8_is_shown(photos, capsys):
    name = os.fsencode(photos.images) + b"/caf\xe9.png"
    try:
        shutil.copy(photos.images / "plain00.png", os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes no such name")
    assert main(["check", str(photos.path), "--json", str(photos.path / "report.json")]) == 0
    assert r"images/caf\udce9.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--val-fraction", "3"], "val_fraction: input should be less than 1 (got 3)"),
        (["--workers", "0"], "--workers is 0, expected 1 or more"),
        (["--no-class", "cow"], "has the class 'cow'"),
        (["--json", "/dev/null/report.json"], "cannot write /dev/null/report.json"),
    ],
)
def test_wrong_input_gives_one_sentence_and_status_2(photos, capsys, flags, sentence):
    assert main(["check", str(photos.path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("toco-data: error: ")
    assert sentence in line


def test_a_folder_that_is_no_data_set_gives_one_sentence_and_status_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([])

"""Reading and listing image files. What each kind of image gives is in ``test_one_reader``."""

import random
import re
import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import toco_core.images
from tests.core.image_kinds import KINDS
from toco_core.errors import DataError
from toco_core.images import list_images, read_image, without_masks


@pytest.mark.parametrize("name", ["png-of-10000-px", "png-of-60000-px"])
def test_an_image_that_is_too_large_is_refused_by_its_header_before_a_pixel_is_decoded(tmp_path, monkeypatch, name):
    (content,) = (kind.content for kind in KINDS if kind.name == name)
    (tmp_path / "large.png").write_bytes(content)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels were asked for"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"^image .*large.png cannot be read: it .* at most 89,478,485 pixels"):
            read_image(tmp_path / "large.png")


def test_the_largest_image_that_is_read_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(toco_core.images, "MAX_IMAGE_PIXELS", 96)
    Image.new("RGB", (8, 12)).save(tmp_path / "largest.png")
    Image.new("RGB", (8, 13)).save(tmp_path / "larger.png")
    assert read_image(tmp_path / "largest.png").size == (8, 12)
    with pytest.raises(DataError, match=r"it is 8 x 13 px, expected at most 96 pixels; resize it or remove it from"):
        read_image(tmp_path / "larger.png")


def test_a_missing_image_and_a_folder_in_its_place_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"^image .*none.jpg is missing; restore it or remove it from the data$"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"^image .* cannot be read: is a directory; replace it"):
        read_image(tmp_path)


@pytest.mark.parametrize("error", [struct.error("unpack requires"), SyntaxError("broken"), MemoryError(), KeyError(3)])
def test_whatever_a_decoder_raises_is_the_images_fault(tmp_path, monkeypatch, error):
    def damaged(_):
        raise error

    path, pixels = tmp_path / "image.png", np.zeros((12, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    monkeypatch.setattr(PngImageFile, "getexif", damaged)
    assert np.array_equal(read_image(path), pixels), "an orientation that cannot be read counts as upright"
    monkeypatch.setattr(PngImageFile, "load", damaged)
    with pytest.raises(
        DataError, match=rf"image.png cannot be read: it is damaged \(.*({error}|{type(error).__name__})"
    ):
        read_image(path)


@pytest.mark.filterwarnings("ignore:::PIL")  # of metadata
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_damaged_image_is_read_or_refused_in_one_sentence(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(path, exif=exif, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
    whole = path.read_bytes()
    for cut in range(1, len(whole) - 40, len(whole) // 20):  # the last bytes may be a mark that no decoder needs
        path.write_bytes(whole[:cut])
        assert re.fullmatch(f"image {re.escape(str(path))} cannot be [^\n]*", outcome(path))
    draw = random.Random(0)
    outcomes = []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(draw.choice([120, len(damaged)]))] = draw.randrange(256)
        path.write_bytes(damaged)
        outcomes.append(outcome(path))
    assert not any("\n" in text for text in outcomes)
    assert sum(text != "RGB" for text in outcomes) > 20


def outcome(path):
    """The mode that an image is read as, or the sentence that refuses it."""
    try:
        return read_image(path).mode
    except DataError as error:
        return str(error)


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "b.png", ".c.png", "d.txt", "e.webp", "f.jfif", "g/b.png", "g/.hidden/h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_the_mask_beside_a_photograph_and_hidden_files_are_no_images(folder):
    assert names(folder, list_images(folder)) == ["a.png", "b.JPG", "e.webp", "f.jfif"]


def test_a_recursive_search_finds_the_images_of_sub_folders_and_masks_by_the_folder_they_lie_in(folder):
    found = list_images(folder, recursive=True)
    assert names(folder, found) == ["a.png", "b.JPG", "e.webp", "f.jfif", "g/b.png"]
    assert names(folder, without_masks(found, anywhere=True)) == ["a.png", "b.JPG", "e.webp", "f.jfif"]


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"^folder .*/none cannot be read: no such file or directory; give another"):
        list_images(tmp_path / "none")

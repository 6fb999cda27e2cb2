"""Reading images: every kind becomes upright RGB, or is refused by name; a damaged one never does worse."""

import random
import re
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import toco_core.images
from toco_core.errors import DataError
from toco_core.images import list_images, read_image, to_rgb

LEFT_TOP, WHITE = (200, 40, 90), (255, 255, 255)


@pytest.fixture
def pixels():
    """12 rows of 8 pixels: one colour in the upper left corner, white elsewhere."""
    pixels = np.full((12, 8, 3), 255, dtype=np.uint8)
    pixels[:6, :4] = LEFT_TOP
    return pixels


def corners(image):
    """The colours at the centres of the four quarters: upper left, upper right, lower left, lower right."""
    width, height = image.size
    return [image.getpixel((x, y)) for y in (height // 4, -(-height * 3 // 4)) for x in (width // 4, width * 3 // 4)]


def assert_near(colours, expected, tolerance):
    assert np.abs(np.array(colours, dtype=int) - np.array(expected, dtype=int)).max() <= tolerance, colours


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "jpg", "jpeg"])
def test_every_format_gives_its_pixels(tmp_path, pixels, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, quality=100, **({"lossless": True} if suffix == "webp" else {"subsampling": 0}))
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image, dtype=int), pixels, atol=24 if suffix.startswith("j") else 0)


def test_a_suffix_that_lies_does_not_matter(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "image.jpg", format="PNG")
    assert np.array_equal(read_image(tmp_path / "image.jpg"), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "corner"), [(1, 0), (2, 1), (3, 3), (4, 2), (5, 0), (6, 1), (7, 3), (8, 2)])
def test_the_exif_orientation_is_followed_once(tmp_path, pixels, suffix, orientation, corner):
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    image = read_image(path)
    expected = [WHITE] * 4
    expected[corner] = LEFT_TOP
    assert image.size == ((12, 8) if orientation >= 5 else (8, 12))
    assert_near(corners(image), expected, 30)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_a_damaged_orientation_is_ignored(tmp_path, pixels):
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels).save(
        path, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x07\0\xff\xff\xff\xff\x00\x00\x00\x7f"
    )
    assert read_image(path).size == (8, 12)


def test_cmyk_of_both_polarities_has_the_colours_that_it_shows(tmp_path, pixels):
    cmyk = Image.fromarray(pixels).convert("CMYK")
    cmyk.save(tmp_path / "inverted.jpg", quality=100, subsampling=0)  # a CMYK JPEG holds its inks inverted, as Adobe's
    assert b"Adobe" in (tmp_path / "inverted.jpg").read_bytes()
    cmyk.save(tmp_path / "plain.tif")
    for name in ("inverted.jpg", "plain.tif"):
        assert_near(corners(read_image(tmp_path / name)), [LEFT_TOP, WHITE, WHITE, WHITE], 24)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_below_transparency_the_colours_count(tmp_path, pixels, mode):
    clear = Image.fromarray(pixels).convert(mode)
    clear.putalpha(Image.new("L", (8, 12), 0))
    clear.save(tmp_path / "image.png")
    left_top = (94, 94, 94) if mode == "LA" else LEFT_TOP  # 0.299 * 200 + 0.587 * 40 + 0.114 * 90 = 93.5
    assert corners(read_image(tmp_path / "image.png")) == [left_top, WHITE, WHITE, WHITE]


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_colours_multiplied_by_their_transparency_are_divided_again(pixels, mode):
    clear = Image.fromarray(pixels).convert("LA" if mode == "La" else "RGBA")
    clear.putalpha(128)
    left_top = (94, 94, 94) if mode == "La" else LEFT_TOP
    assert_near(corners(to_rgb(clear.convert(mode))), [left_top, WHITE, WHITE, WHITE], 2)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_a_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path, transparency):
    pil_image = Image.new("P", (4, 4), 0)
    pil_image.putpalette([200, 40, 90, 1, 2, 3])
    pil_image.save(tmp_path / "image.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "image.png")
    assert set(image.get_flattened_data()) == {LEFT_TOP}


@pytest.mark.parametrize("name", ["grey.png", "little.tif", "big.tif"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, name):
    levels = np.array([[0, 255, 256, 4095], [30000, 32768, 65279, 65535]], dtype=np.uint16)
    if name == "big.tif":
        big = Image.frombytes("I;16B", (4, 2), levels.astype(">u2").tobytes())
        big.save(tmp_path / name)
    else:
        Image.fromarray(levels).save(tmp_path / name)
    pixels = np.asarray(read_image(tmp_path / name))
    assert pixels[..., 0].tolist() == [[0, 0, 1, 15], [117, 128, 254, 255]]
    assert (pixels == pixels[..., :1]).all()


def chunk(kind, content):
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *, bits, colours, content):
    """A PNG by its header fields and its raw lines."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    lines = chunk(b"IDAT", zlib.compress(content))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + lines + chunk(b"IEND", b"")


def test_16_bit_rgb_keeps_its_high_bytes(tmp_path):
    pixel = struct.pack(">HHH", 0xC8FF, 0x2800, 0x5A80)
    (tmp_path / "image.png").write_bytes(png(1, 1, bits=16, colours=2, content=b"\0" + pixel))
    assert read_image(tmp_path / "image.png").getpixel((0, 0)) == LEFT_TOP


def test_one_bit_becomes_black_and_white(tmp_path):
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "image.png")
    assert np.asarray(read_image(tmp_path / "image.png"))[..., 1].tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, pixels, suffix):
    frames = [Image.fromarray(pixels), Image.new("RGB", (8, 12), "green")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), pixels)


@pytest.mark.parametrize(
    ("mode", "levels", "reason"),
    [
        ("F", np.full((2, 2), 0.5, dtype=np.float32), "its levels are floating-point numbers, expected whole ones"),
        ("I", np.array([[0, 70000]], dtype=np.int32), "its levels go from 0 to 70000, expected 0 to 65535"),
        ("I", np.array([[-3, 9]], dtype=np.int32), "its levels go from -3 to 9, expected 0 to 65535"),
    ],
)
def test_levels_without_a_known_range_are_refused(tmp_path, mode, levels, reason):
    image = Image.fromarray(levels)
    assert image.mode == mode
    image.save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=f"^image .*image.tif cannot be used: {reason}.*; convert it or take it out"):
        read_image(tmp_path / "image.tif")


@pytest.mark.parametrize(
    ("side", "reason"), [(10_000, "it is 10000 x 10000 px, and"), (60_000, "it has far more than")]
)
def test_a_bomb_is_refused_by_its_header_before_a_pixel_is_decoded(tmp_path, monkeypatch, side, reason):
    (tmp_path / "bomb.png").write_bytes(png(side, side, bits=8, colours=2, content=b""))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels were asked for"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=f"^image .*bomb.png cannot be used: {reason}.* 89,478,485 pixels"):
            read_image(tmp_path / "bomb.png")


def test_the_largest_image_that_is_read_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(toco_core.images, "MAX_IMAGE_PIXELS", 96)
    Image.new("RGB", (8, 12)).save(tmp_path / "largest.png")
    Image.new("RGB", (8, 13)).save(tmp_path / "larger.png")
    assert read_image(tmp_path / "largest.png").size == (8, 12)
    with pytest.raises(DataError, match=r"it is 8 x 13 px, and 96 pixels are the most that is read"):
        read_image(tmp_path / "larger.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is no JPEG"), (b"hello", "it is no JPEG"), (b"GIF89a\x01\0\x01\0\x80\0\0", "it is no JPEG"),
     (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no JPEG")],
)  # fmt: skip
def test_what_is_no_image_of_a_known_kind_is_refused(tmp_path, content, reason):
    (tmp_path / "image.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"^image .*image.jpg cannot be decoded \({reason}"):
        read_image(tmp_path / "image.jpg")


def test_a_missing_image_and_a_folder_in_its_place_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"^image .*none.jpg is missing; restore it"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"^image .* cannot be decoded \(.*[Ii]s a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("error", [struct.error("unpack requires"), SyntaxError("broken"), MemoryError(), KeyError(3)])
def test_whatever_a_decoder_raises_is_the_images_fault(tmp_path, pixels, monkeypatch, error):
    def damaged(_):
        raise error

    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    monkeypatch.setattr(PngImageFile, "getexif", damaged)
    assert np.array_equal(read_image(path), pixels), "a mark that cannot be read is no mark"
    monkeypatch.setattr(PngImageFile, "load", damaged)
    with pytest.raises(DataError, match=rf"^image .*image.png cannot be decoded \(.*({error}|{type(error).__name__})"):
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
    for cut in range(1, len(whole) - 40, len(whole) // 20):  # the end may be a mark that none needs
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


def test_the_mask_beside_a_photograph_and_hidden_files_are_no_images(tmp_path):
    for name in ("b.JPG", "a.png", "b.png", ".c.png", "d.txt", "e.webp"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "e.webp"]

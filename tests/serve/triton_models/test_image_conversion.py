"""What training, scoring and the client read from a file is what the served model reads."""

import io

import numpy as np
import pytest
from PIL import Image

from toco_core.errors import DataError
from toco_serve.client.images import rgb_pixels

SIZE = (24, 16)


def image(mode):
    pixels = np.random.default_rng(0).integers(256, size=(*SIZE[::-1], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels.view(np.uint16)[..., 0].copy())
    rgba = Image.fromarray(pixels)
    return rgba if mode == "RGBA" else rgba.convert("RGB").convert(mode)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("PNG", mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")), ("JPEG", "CMYK"), ("JPEG", "L"),
     ("BMP", "RGB"), ("WEBP", "RGBA"), *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"))],
)  # fmt: skip
def test_the_client_reads_what_the_served_model_reads(served, kind, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image(mode).save(buffer, format=kind, **({} if kind == "BMP" else {"exif": exif}))
    ours = rgb_pixels(buffer.getvalue())
    bucket = ours.shape[:2]  # so that nothing is resized
    theirs, size = served.decode(buffer.getvalue(), [bucket], 10**6, 10**6)
    assert size == bucket[::-1]
    np.testing.assert_array_equal(ours, theirs)


def test_what_cannot_be_decoded_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"^the image cannot be decoded: cannot identify image file"):
        rgb_pixels(b"hello")
    with pytest.raises(DataError, match=r"^cannot read .*none.png: no such file"):
        rgb_pixels(tmp_path / "none.png")
    with pytest.raises(DataError, match=r"its levels go from 0 to 70000, expected 0 to 65535"):
        rgb_pixels(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


@pytest.mark.parametrize(
    ("levels", "complaint"),
    [
        (np.array([[0, 70000]], np.int32), "the image's levels go from 0 to 70000; send levels of 8 or 16 bits"),
        (np.array([[-1, 5]], np.int32), "the image's levels go from -1 to 5; send levels of 8 or 16 bits"),
        (
            np.array([[0.5]], np.float32),
            "the image's levels are floating-point numbers; send whole ones of 8 or 16 bits",
        ),
    ],
)
def test_levels_of_no_known_range_are_refused_by_the_served_model_too(served, levels, complaint):
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="TIFF")
    with pytest.raises(served.RefusedImageError) as caught:
        served.decode(buffer.getvalue(), [(16, 16)], 10**6, 10**6)
    assert str(caught.value) == complaint
    with pytest.raises(DataError):
        rgb_pixels(buffer.getvalue())

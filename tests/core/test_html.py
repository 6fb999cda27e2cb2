import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from toco_core.html import image_strip, render


def test_every_text_of_a_page_is_escaped():
    strip = image_strip({"<title>": np.zeros((4, 4, 3), np.uint8)}, "<caption>")
    page = render(
        "toco_export.reports", "export_report.html.j2", backbone="<backbone>", verdict="<verdict>", size_note="<size>",
        failures=["<failure>"], tables=[("<table-title>", ["<column>"], [["<cell>"]])], notes=["<note>"],
        strips=[strip],
    )  # fmt: skip
    for name in ("backbone", "verdict", "size", "failure", "table-title", "column", "cell", "note", "caption"):
        assert f"<{name}>" not in page
        assert f"&lt;{name}&gt;" in page
    assert f'<img alt="&lt;title&gt;" src="{strip.sources["<title>"]}">&lt;title&gt;</div>' in page


def test_a_page_that_lacks_a_value_is_not_made():
    with pytest.raises(UndefinedError, match="'backbone' is undefined"):
        render("toco_export.reports", "export_report.html.j2")


def test_images_are_embedded_whole_and_large_ones_reduced():
    pixels = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    sources = image_strip({"small": pixels, "large": np.zeros((640, 1280, 3), np.uint8)}, "").sources
    decoded = {}
    for title, source in sources.items():
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        decoded[title] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert (decoded["small"] == pixels).all()
    assert decoded["large"].shape == (160, 320, 3)

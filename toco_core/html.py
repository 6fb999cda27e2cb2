"""HTML reports from Jinja2 templates: pages that need no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from PIL import Image

from toco_core.palette import UInt8Array

MAX_SIDE_PX = 320


@dataclass(frozen=True)
class ImageStrip:
    """Images side by side, shown by the template macro ``image_strip``.

    Attributes:
        sources: Each image as a ``data:`` address, by title.
        caption: What the images show.
    """

    sources: Mapping[str, str]
    caption: str


def image_strip(images: Mapping[str, UInt8Array], caption: str, encoding: Literal["PNG", "JPEG"] = "PNG") -> ImageStrip:
    """Encode images for a page.

    Args:
        images: Pixels by title, uint8 ``[H, W, 3]``; reduced to at most ``MAX_SIDE_PX`` pixels wide and high.
        caption: What they show.
        encoding: PNG is lossless, JPEG has a fifth of the size.
    """
    return ImageStrip({title: _data_uri(pixels, encoding) for title, pixels in images.items()}, caption)


def render(package: str, template: str, **values: object) -> str:
    """Return the page that a template makes of values.

    Args:
        package: Package with the template in its folder ``templates``; those of ``toco_core`` can be included.
        template: File name of the template.
        values: What the template shows. Texts are escaped; ``markupsafe.Markup`` is taken as HTML.

    Raises:
        jinja2.TemplateError: The template is missing, or uses a value that is not given.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("toco_core")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)


def _data_uri(pixels: UInt8Array, encoding: Literal["PNG", "JPEG"]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    quality = {"quality": 88, "subsampling": 0} if encoding == "JPEG" else {}
    image.save(buffer, format=encoding, optimize=True, **quality)
    return f"data:image/{encoding.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()

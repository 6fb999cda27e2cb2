"""Pages that are whole in themselves: the look of every report, its tables and its images, light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

from PIL import Image

from toco_core.palette import UInt8Array

MAX_SIDE_PX = 320

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --page: #fff; --soft: #5b6570; --line: #d9dee3; --good: #18794e;
  --bad: #c62828; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --page: #15181b; --soft: #9aa4ae; --line: #33393f;
  --good: #4cc38a; --bad: #ff8080; --card: #1d2125; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 68rem;
  margin: 0 auto; padding: 1.5rem 1rem 3rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p, figcaption, li { color: var(--soft); margin: .25rem 0; } ul { padding-left: 1.2rem; }
.verdict { font-weight: 600; } .pass { color: var(--good); } .fail { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
figure { margin: 1rem 0; padding: .75rem; background: var(--card); border-radius: .5rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem; }
.strip div { font-size: .8rem; color: var(--soft); } img { width: 100%; max-height: 24rem;
  object-fit: contain; display: block; border-radius: .25rem; }
"""


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """Return a page that needs no other file and no network.

    Args:
        title: Its title, as text.
        body: Its parts, as HTML.
        style: CSS beside the common one.
    """
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body>"
    )
    return head + "\n".join(body) + "</body></html>\n"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of texts that scrolls sideways where it is too wide for the screen."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def image_strip(images: Mapping[str, UInt8Array], caption: str, encoding: Literal["PNG", "JPEG"] = "PNG") -> str:
    """Return a figure of images side by side.

    Args:
        images: Pixels by title, uint8 ``[H, W, 3]``; shown at most ``MAX_SIDE_PX`` wide and high.
        caption: What they show.
        encoding: PNG keeps every pixel, JPEG is a fifth of the size.
    """
    cells = "".join(
        f'<div><img alt="{escape(title)}" src="{_data_uri(pixels, encoding)}">{escape(title)}</div>'
        for title, pixels in images.items()
    )
    return f'<figure><div class="strip">{cells}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _data_uri(pixels: UInt8Array, encoding: Literal["PNG", "JPEG"]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    buffer = io.BytesIO()
    quality = {"quality": 88, "subsampling": 0} if encoding == "JPEG" else {}
    image.save(buffer, format=encoding, optimize=True, **quality)
    return f"data:image/{encoding.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()

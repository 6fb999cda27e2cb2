"""Encoded images of every kind, made by code: those that are read, with their pixels, and those that are refused.

Pixels are worked out here from what was encoded, not by a reader. Lossless kinds hold noise, lossy ones a gradient.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms

WIDTH, HEIGHT = 24, 16
NOISE = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 4), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(1 << 16, size=(HEIGHT, WIDTH, 4), dtype=np.uint16)
RGB = NOISE[..., :3]
SMOOTH = np.stack(
    [np.linspace(20, 230, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) for _ in range(3)], axis=-1
).astype(np.uint8) // np.array([1, 2, 3], dtype=np.uint8)  # fmt: skip
PALETTE = np.random.default_rng(2).integers(256, size=(256, 3), dtype=np.uint8)

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


@dataclass(frozen=True)
class Kind:
    """One encoded image.

    Attributes:
        name: What is special about it.
        content: The file.
        pixels: Upright, uint8 ``[H, W, 3]`` RGB; None where only the readers' agreement is known.
        tolerance: Largest difference of a level from ``pixels``.
        reason: Start of the reason that it is refused for; None where it is read.
        suffix: Of the file.
    """

    name: str
    content: bytes
    pixels: np.ndarray | None = None
    tolerance: int = 0
    reason: str | None = None
    suffix: str = ".png"


def grey(levels: np.ndarray) -> np.ndarray:
    """Three equal channels of ``[H, W]``."""
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def rows(levels: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """Rows of integers, ``[H, N]``, packed at so many bits each."""
    if bits == 16:
        return [row.astype(f"{order}u2").tobytes() for row in levels]
    places = (levels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in places.reshape(len(levels), -1)]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    levels: np.ndarray,
    bits: int,
    colours: int,
    *,
    interlaced: bool = False,
    before: Sequence[tuple[bytes, bytes]] = (),
    after: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG of levels, ``[H, W, channels]``: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    height, width = levels.shape[:2]
    parts = [levels[y::down, x::right] for y, x, down, right in (adam7 if interlaced else [(0, 0, 1, 1)])]
    lines = b"".join(b"\0" + row for part in parts for row in rows(part.reshape(len(part), -1), bits))
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(lines)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def tiff(
    strips: Sequence[bytes],
    bits: Sequence[int],
    photometric: int,
    *,
    order: str = "<",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    more: dict[int, Sequence[int]] | None = None,
) -> bytes:
    """An uncompressed TIFF of strips, or of tiles where ``more`` has their size; ``bits`` of each sample."""
    more = more or {}
    offsets, counts = (324, 325) if 322 in more else (273, 279)
    places = np.cumsum([8, *map(len, strips)]).tolist()
    tags: dict[int, Sequence[int]] = {
        256: [size[0]], 257: [size[1]], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)],
        278: [size[1]], offsets: places[:-1], counts: [len(strip) for strip in strips], **more,
    }  # fmt: skip
    entries, beyond = b"", b""
    end = places[-1] + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + packed
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", places[-1])
    return start + b"".join(strips) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + beyond


def bmp(lines: Sequence[bytes], bits: int, *, top_down: bool = False) -> bytes:
    """A BMP without a palette."""
    content = b"".join(lines if top_down else reversed(lines))
    height = -HEIGHT if top_down else HEIGHT
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, 0, len(content), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(content), 0, 0, 54) + header + content


def lab() -> Image.Image:
    """The gradient in CIELAB."""
    profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    return ImageCms.applyTransform(Image.fromarray(SMOOTH), transform)


def png_kinds() -> Iterator[Kind]:
    for bits in (1, 2, 4, 8, 16):
        levels = DEEP[..., :1] >> (16 - bits)
        shown = levels[..., 0] >> 8 if bits == 16 else levels[..., 0] * (255 // (2**bits - 1))
        yield Kind(f"png-grey-{bits}-bit", png(levels, bits, 0), grey(shown))
    for bits in (1, 2, 4, 8):
        levels = DEEP[..., :1] >> (16 - bits)
        table = (b"PLTE", PALETTE[: 2**bits].tobytes())
        pixels = PALETTE[levels[..., 0]]
        yield Kind(f"png-palette-{bits}-bit", png(levels, bits, 3, before=[table]), pixels)
    for bits in (8, 16):
        levels, shown = DEEP >> (16 - bits), (DEEP >> 8).astype(np.uint8)
        yield Kind(f"png-rgb-{bits}-bit", png(levels[..., :3], bits, 2), shown[..., :3])
        yield Kind(f"png-rgba-{bits}-bit", png(levels, bits, 6), shown[..., :3])
        yield Kind(f"png-grey-alpha-{bits}-bit", png(levels[..., :2], bits, 4), grey(shown[..., 0]))
    yield Kind("png-interlaced-rgb", png(RGB, 8, 2, interlaced=True), RGB)
    yield Kind("png-interlaced-1-bit", png(RGB[..., :1] >> 7, 1, 0, interlaced=True), grey((RGB[..., 0] >> 7) * 255))
    yield Kind("png-interlaced-16-bit", png(DEEP[..., :1], 16, 0, interlaced=True), grey(DEEP[..., 0] >> 8))
    levels, table = NOISE[..., :1], (b"PLTE", PALETTE.tobytes())
    clear = (b"tRNS", bytes(range(256)))
    yield Kind("png-palette-with-transparency", png(levels, 8, 3, before=[table, clear]), PALETTE[levels[..., 0]])
    one_clear = (b"tRNS", b"\xff\0\xff")
    yield Kind("png-palette-with-one-clear", png(levels, 8, 3, before=[table, one_clear]), PALETTE[levels[..., 0]])
    yield Kind("png-grey-with-transparency", png(levels, 8, 0, before=[(b"tRNS", b"\0\7")]), grey(levels[..., 0]))
    yield Kind("png-rgb-with-transparency", png(RGB, 8, 2, before=[(b"tRNS", b"\0\1\0\2\0\3")]), RGB)
    deep = png(DEEP[..., :1], 16, 0, before=[(b"tRNS", b"\0\7")])
    yield Kind("png-16-bit-with-transparency", deep, grey(DEEP[..., 0] >> 8))
    yield Kind("png-with-gamma", png(RGB, 8, 2, before=[(b"gAMA", struct.pack(">I", 100_000))]), RGB)
    moving = {"save_all": True, "append_images": [Image.fromarray(SMOOTH)]}
    yield Kind("png-animated", encode(Image.fromarray(RGB), "PNG", **moving), RGB)
    late = png(RGB, 8, 2, after=[(b"eXIf", rotated(6).removeprefix(b"Exif\0\0"))])
    yield Kind("png-orientation-after-the-pixels", late, UPRIGHT[6](RGB))
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<rdf:Description tiff:Orientation="8"/>'
    yield Kind("png-orientation-in-xmp", png(RGB, 8, 2, before=[(b"iTXt", xmp)]), UPRIGHT[8](RGB))
    yield Kind("png-1-px", png(RGB[:1, :1], 8, 2), RGB[:1, :1])
    yield Kind("png-named-jpg", png(RGB, 8, 2), RGB, suffix=".jpg")


def jpeg_kinds() -> Iterator[Kind]:
    smooth, luma = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH).convert("L")
    options: dict[str, dict[str, Any]] = {
        "baseline": {}, "progressive": {"progressive": True}, "optimised": {"optimize": True},
        "4-4-4": {"subsampling": 0}, "4-2-2": {"subsampling": 1}, "4-2-0": {"subsampling": 2},
        "rgb-colours": {"keep_rgb": True}, "restart-markers": {"restart_marker_rows": 1},
    }  # fmt: skip
    for name, option in options.items():
        content = encode(smooth, "JPEG", quality=95, **option)
        yield Kind(f"jpeg-{name}", content, SMOOTH, 16, suffix=".jpg")
    for progressive in (False, True):
        name = f"jpeg-grey{'-progressive' * progressive}"
        content = encode(luma, "JPEG", quality=95, progressive=progressive)
        yield Kind(name, content, grey(np.asarray(luma)), 8, suffix=".jpg")
    content = encode(smooth.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    yield Kind("jpeg-cmyk", content, SMOOTH, 16, suffix=".jpg")
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x07\0\xff\xff\xff\xff\x00\x00\x00\x7f"
    content = encode(smooth, "JPEG", quality=95, exif=damaged)
    yield Kind("jpeg-damaged-orientation", content, SMOOTH, 16, suffix=".jpg")
    content = encode(smooth, "MPO", quality=95, save_all=True, append_images=[luma])
    yield Kind("jpeg-of-several-images", content, SMOOTH, 16, suffix=".jpg")
    content = bytearray(encode(Image.fromarray(RGB), "JPEG", quality=95))
    content[-200:-196] = b"\1\2\3\4"  # in the scan: libjpeg goes on
    yield Kind("jpeg-damaged-scan", bytes(content), None, suffix=".jpg")
    yield Kind("jpeg-with-suffix-jfif", encode(smooth, "JPEG", quality=95), SMOOTH, 16, suffix=".jfif")


def webp_kinds() -> Iterator[Kind]:
    noise, smooth = Image.fromarray(RGB), Image.fromarray(SMOOTH)
    yield Kind("webp-lossy", encode(smooth, "WEBP", quality=95), SMOOTH, 16, suffix=".webp")
    yield Kind("webp-lossless", encode(noise, "WEBP", lossless=True), RGB, suffix=".webp")
    clear = encode(Image.fromarray(NOISE), "WEBP", lossless=True, exact=True)
    yield Kind("webp-lossless-with-transparency", clear, RGB, suffix=".webp")
    moving = encode(noise, "WEBP", lossless=True, save_all=True, append_images=[smooth])
    yield Kind("webp-animated", moving, RGB, suffix=".webp")


def bmp_kinds() -> Iterator[Kind]:
    bits = RGB[..., 0] > 127
    indexed = Image.fromarray(NOISE[..., 0])
    indexed.putpalette(PALETTE.tobytes())
    for name, image, pixels in (
        ("1-bit", Image.fromarray(bits), grey(bits * 255)),
        ("grey", Image.fromarray(NOISE[..., 0]), grey(NOISE[..., 0])),
        ("palette", indexed, PALETTE[NOISE[..., 0]]),
        ("24-bit", Image.fromarray(RGB), RGB),
        ("32-bit", Image.fromarray(NOISE), RGB),
    ):
        yield Kind(f"bmp-{name}", encode(image, "BMP"), pixels, suffix=".bmp")
    five = (RGB >> 3).astype(np.uint16)
    packed = rows(five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2], 16, "<")
    yield Kind("bmp-15-bit", bmp(packed, 16), np.round(five * (255 / 31)).astype(np.uint8), 1, suffix=".bmp")
    lines = [row.tobytes() for row in RGB[..., ::-1]]
    yield Kind("bmp-top-down", bmp(lines, 24, top_down=True), RGB, suffix=".bmp")


def tiff_kinds() -> Iterator[Kind]:
    for kind in (*pillows_tiff_kinds(), *raw_tiff_kinds()):
        yield Kind(f"tiff-{kind.name}", kind.content, kind.pixels, kind.tolerance, kind.reason, ".tif")


def pillows_tiff_kinds() -> Iterator[Kind]:
    noise, smooth, bits = Image.fromarray(RGB), Image.fromarray(SMOOTH), RGB[..., 0] > 127
    indexed = Image.fromarray(NOISE[..., 0])
    indexed.putpalette(PALETTE.tobytes())
    for name, image, pixels, tolerance in (
        ("1-bit", Image.fromarray(bits), grey(bits * 255), 0),
        ("grey", Image.fromarray(NOISE[..., 0]), grey(NOISE[..., 0]), 0),
        ("grey-alpha", Image.fromarray(NOISE[..., :2]), grey(NOISE[..., 0]), 0),
        ("palette", indexed, PALETTE[NOISE[..., 0]], 0),
        ("rgba", Image.fromarray(NOISE), RGB, 0),
        ("cmyk", smooth.convert("CMYK"), SMOOTH, 2),
        ("lab", lab(), SMOOTH, 3),
        ("ycbcr", smooth.convert("YCbCr"), SMOOTH, 3),
        ("16-bit", Image.fromarray(DEEP[..., 0].copy()), grey(DEEP[..., 0] >> 8), 0),
        ("32-bit-in-range", Image.fromarray(DEEP[..., 0].astype(np.int32)), grey(DEEP[..., 0] >> 8), 0),
    ):
        yield Kind(name, encode(image, "TIFF"), pixels, tolerance)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
        yield Kind(compression, encode(noise, "TIFF", compression=compression), RGB)
    yield Kind("jpeg", encode(smooth, "TIFF", compression="jpeg", quality=95), SMOOTH, 24)
    yield Kind("group4", encode(Image.fromarray(bits), "TIFF", compression="group4"), grey(bits * 255))
    deep = Image.fromarray(DEEP[..., 0].copy())
    yield Kind("16-bit-lzw", encode(deep, "TIFF", compression="tiff_lzw"), grey(DEEP[..., 0] >> 8))
    yield Kind("several-pages", encode(noise, "TIFF", save_all=True, append_images=[smooth]), RGB)
    yield Kind("big", encode(noise, "TIFF", big_tiff=True), RGB)
    for name, levels, reason in (
        ("float", np.full((2, 2), 0.5, np.float32), "its levels are floating-point numbers"),
        ("32-bit-above", np.array([[0, 70_000]], np.int32), "its levels go from 0 to 70000, expected 0 to 65535"),
        ("32-bit-below", np.array([[-3, 9]], np.int32), "its levels go from -3 to 9, expected 0 to 65535"),
    ):
        yield Kind(name, encode(Image.fromarray(levels), "TIFF"), reason=reason)


def raw_tiff_kinds() -> Iterator[Kind]:
    level, rgb = NOISE[..., 0], RGB.tobytes()
    yield Kind("white-is-zero-8-bit", tiff([level.tobytes()], [8], 0), grey(255 - level))
    one_bit = b"".join(rows(level >> 7, 1))
    yield Kind("white-is-zero-1-bit", tiff([one_bit], [1], 0), grey(255 - (level >> 7) * 255))
    for order, name in (("<", ""), (">", "-big-endian")):
        deep = DEEP.astype(f"{order}u2")
        high = (DEEP >> 8).astype(np.uint8)
        yield Kind(f"rgb{name}", tiff([rgb], [8] * 3, 2, order=order), RGB)
        yield Kind(f"16-bit-strip{name}", tiff([deep[..., 0].tobytes()], [16], 1, order=order), grey(high[..., 0]))
        colours = tiff([deep[..., :3].tobytes()], [16] * 3, 2, order=order)
        yield Kind(f"16-bit-rgb{name}", colours, high[..., :3])
        signed = (DEEP[..., 0] >> 1).astype(f"{order}u2").tobytes()
        content = tiff([signed], [16], 1, order=order, more={339: [2]})
        yield Kind(f"16-bit-signed{name}", content, grey(DEEP[..., 0] >> 9))
    white = tiff([DEEP[..., 0].astype("<u2").tobytes()], [16], 0)
    yield Kind("white-is-zero-16-bit", white, grey((65_535 - DEEP[..., 0]) >> 8))
    white = tiff([DEEP[..., 0].astype(">u2").tobytes()], [16], 0, order=">")
    yield Kind("white-is-zero-16-bit-big-endian", white, reason="it is of an unknown kind or damaged at its start")
    twelve = b"".join(rows(DEEP[..., 0] >> 4, 12))
    yield Kind("12-bit", tiff([twelve], [12], 1), grey(DEEP[..., 0] >> 8))
    planes = [RGB[..., channel].tobytes() for channel in range(3)]
    yield Kind("planar", tiff(planes, [8] * 3, 2, more={284: [2]}), RGB)
    halves = [RGB[:8].tobytes(), RGB[8:].tobytes()]
    yield Kind("two-strips", tiff(halves, [8] * 3, 2, more={278: [8]}), RGB)
    padded = np.pad(RGB, ((0, 0), (0, 8), (0, 0)))
    tiles = [padded[:, :16].tobytes(), padded[:, 16:].tobytes()]
    yield Kind("tiled", tiff(tiles, [8] * 3, 2, more={322: [16], 323: [16]}), RGB)
    opaque = np.dstack([RGB, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    yield Kind("alpha-multiplied", tiff([opaque.tobytes()], [8] * 4, 2, more={338: [1]}), RGB)
    negative = tiff([np.array([-9, 9], "<i2").tobytes()], [16], 1, size=(2, 1), more={339: [2]})
    yield Kind("16-bit-signed-below", negative, reason="its levels go from -9 to 9, expected 0 to 65535")


def oriented_kinds() -> Iterator[Kind]:
    for orientation, upright in UPRIGHT.items():
        exif = rotated(orientation)
        noise, smooth = Image.fromarray(RGB), Image.fromarray(SMOOTH)
        yield Kind(f"png-orientation-{orientation}", encode(noise, "PNG", exif=exif), upright(RGB))
        content = encode(smooth, "JPEG", exif=exif, quality=95, subsampling=0)
        yield Kind(f"jpeg-orientation-{orientation}", content, upright(SMOOTH), 16, suffix=".jpg")
        content = encode(noise, "WEBP", exif=exif, lossless=True)
        yield Kind(f"webp-orientation-{orientation}", content, upright(RGB), suffix=".webp")
        content = encode(noise, "TIFF", exif=exif)
        yield Kind(f"tiff-orientation-{orientation}", content, upright(RGB), suffix=".tif")


def refused_kinds() -> Iterator[Kind]:
    unknown = "it is of an unknown kind or damaged at its start, expected JPEG, PNG, WebP, BMP or TIFF"
    other = "expected JPEG, PNG, WebP, BMP or TIFF"
    gif = encode(Image.fromarray(NOISE[..., 0]), "GIF")
    yield Kind("empty", b"", reason=f"it is empty, {other}")
    yield Kind("text", b"hello\n", reason=f"it is text, {other}")
    yield Kind("text-in-greek", "αβγ".encode() * 100, reason=f"it is text, {other}")
    yield Kind("svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', reason=f"it is text, {other}")
    yield Kind("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reason=f"it is text, {other}")
    yield Kind("gif", gif, reason=f"it is a GIF, {other}", suffix=".gif")
    yield Kind("gif-named-jpg", gif, reason=f"it is a GIF, {other}", suffix=".jpg")
    yield Kind("pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", reason=f"it is a PDF, {other}", suffix=".pdf")
    yield Kind("zip", b"PK\3\4" + bytes(64), reason=f"it is a ZIP archive, {other}")
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    yield Kind("heic", heic, reason=f"it is a HEIC, AVIF or video file, {other}", suffix=".heic")
    yield Kind("icon", encode(Image.fromarray(NOISE), "ICO"), reason=unknown)
    yield Kind("portable-pixmap", encode(Image.fromarray(RGB), "PPM"), reason=unknown)
    yield Kind("noise", NOISE.tobytes(), reason=unknown)
    yield Kind("png-signature-alone", b"\x89PNG\r\n\x1a\n", reason=unknown)
    damaged = "it is damaged ("
    yield Kind("jpeg-start-alone", b"\xff\xd8\xff\xe0\0\x10JFIF\0", reason=damaged)
    whole = png(RGB, 8, 2)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    yield Kind("png-one-byte-changed", bytes(changed), reason=damaged)
    exif = rotated(6).removeprefix(b"Exif\0\0")
    turned = png(RGB, 8, 2, before=[(b"eXIf", exif)])
    yield Kind("png-truncated-with-orientation", turned[:-200], reason=damaged)
    for kind, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})):
        content = encode(Image.fromarray(RGB), kind, **options)
        yield Kind(f"{kind.lower()}-truncated", content[: len(content) // 2], reason=damaged)
    lzw = encode(Image.fromarray(RGB), "TIFF", compression="tiff_lzw")
    yield Kind("tiff-lzw-damaged", lzw[:8] + bytes(200) + lzw[208:], reason=damaged)
    for side, size in ((10_000, "it is 10000 x 10000 px"), (60_000, "it has far more pixels")):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        yield Kind(f"png-of-{side}-px", bomb, reason=f"{size}, expected at most 89,478,485 pixels")


KINDS = (
    *png_kinds(), *jpeg_kinds(), *webp_kinds(), *bmp_kinds(), *tiff_kinds(), *oriented_kinds(), *refused_kinds(),
)  # fmt: skip

"""Text files of a data set: lists, tables and XML in whatever encoding a tool wrote them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from toco_core.errors import DataError

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with that one's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_XML_DECLARATION = re.compile(rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._\- ]+)["']""")
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "iso8859-1": "cp1252", "ascii": "utf-8"}  # as browsers read them


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}; restore it") from error


def read_text(path: Path, *, errors: str = "strict") -> str:
    r"""Read text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; lines end in ``\n``.

    Args:
        path: The file.
        errors: What to do with bytes that are not UTF-8, as for ``bytes.decode``.

    Raises:
        DataError: It cannot be read, or is in another encoding.
    """
    content = read_bytes(path)
    mark, encoding = _marked(content)
    try:
        text = content[len(mark) :].decode(encoding, errors)
    except UnicodeDecodeError as error:
        wanted = f"{encoding.upper()[:6].rstrip('-')}"
        raise DataError(f"{path} is not {wanted} (byte {error.start}); save it in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{path} is not UTF-8 text (it holds zero bytes); save it in UTF-8")
    return re.sub("\r\n?", "\n", text)


def decode_xml(content: bytes) -> str:
    """Decode XML by its byte order mark or by the encoding that it declares, any that Python knows; else as UTF-8.

    expat itself knows UTF-8, UTF-16, Latin-1 and ASCII alone.

    Raises:
        ValueError: The encoding is unknown, or the content is in another one.
    """
    mark, encoding = _marked(content)
    declared = "" if mark else _declared(content)
    if declared:
        try:
            encoding = codecs.lookup(declared).name
        except LookupError as error:
            raise ValueError(f"it declares the encoding {declared!r}, which Python does not know") from error
        encoding = _SUPERSETS.get(encoding, encoding)
        if encoding.startswith(("utf-16", "utf-32")):
            encoding = "utf-8"  # its declaration was read byte by byte
    elif not mark and content[:2] in (b"<\0", b"\0<"):
        encoding = "utf-16-le" if content[:1] == b"<" else "utf-16-be"
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        says = f"it declares the encoding {declared!r}" if declared else f"it declares no encoding but {encoding}"
        raise ValueError(f"{says}, and byte {error.start} is not of it: declare the encoding it has") from error
    except (LookupError, ValueError) as error:
        raise ValueError(f"it declares {declared!r}, which is no encoding of text") from error


def _marked(content: bytes) -> tuple[bytes, str]:
    """Return the byte order mark and its encoding; UTF-8 without a mark."""
    found = ((mark, encoding) for mark, encoding in _BYTE_ORDER_MARKS if content.startswith(mark))
    return next(found, (b"", "utf-8"))


def _declared(content: bytes) -> str:
    match = _XML_DECLARATION.match(content[:400])
    return match[1].decode("ascii").strip() if match else ""

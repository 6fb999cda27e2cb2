"""Image labels as a table: ``labels.csv`` with a file name and its classes on each row."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES
from toco_train.data.classes import tidy

LABELS_FILE = "labels.csv"
_DELIMITERS = (",", ";", "\t")


class LabelRow(NamedTuple):
    """One row: its line (from 1), the file name with ``/`` between folders, and the names of its classes."""

    line: int
    file: str
    classes: tuple[str, ...]


def read_label_table(path: Path) -> list[LabelRow]:
    """Read a ``labels.csv``: on each row a file name, then the class names, none where the image shows nothing.

    UTF-8 with or without byte order mark. The delimiter is the one of comma, semicolon and tab that most lines have.
    A first row whose first cell is no image's name is a header. Empty rows and cells are skipped; blanks around a
    name do not count. Rows of the same file are kept apart.

    Raises:
        DataError: It cannot be read, is not UTF-8, has a stray quote, or holds marks (0 and 1) in place of names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; restore it") from error
    lines = text.splitlines()
    delimiter = max(_DELIMITERS, key=lambda mark: sum(mark in line for line in lines))
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [tidy(cell) for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not CSV: {error}; mend its quotes") from error
    rows = [(line, cells) for line, cells in rows if any(cells)]
    header = bool(rows) and Path(rows[0][1][0]).suffix.lower() not in IMAGE_SUFFIXES
    table = [_row(path, line, cells) for line, cells in (rows[1:] if header else rows)]
    if header and table and {name for row in table for name in row.classes} == {"0", "1"}:
        raise DataError(
            f"{path} holds 0 and 1 after the file names, expected the names of the classes that are present"
        )
    return table


def _row(path: Path, line: int, cells: list[str]) -> LabelRow:
    """Return a row of cells as what it says."""
    if not cells[0]:
        raise DataError(
            f"{path} line {line} names no file, only {', '.join(filter(None, cells))}; put the file name first"
        )
    return LabelRow(line, cells[0].replace("\\", "/"), tuple(dict.fromkeys(filter(None, cells[1:]))))

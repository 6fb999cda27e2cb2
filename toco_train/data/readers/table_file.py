"""A table as text: its delimiter, its rows of cells, and which cells are quoted."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.text import one_line
from toco_train.data.readers.text_file import read_text

_DELIMITERS = (",", ";", "\t", "|")
_NAMED_DELIMITER = re.compile(r"sep=(.)\n")  # the first line of a table that Excel wrote for another country
_SHOWN = 100  # characters of a row in a message
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


class Row(NamedTuple):
    """A row: its line in the file, from 1, and its cells without blanks around them."""

    line: int
    cells: tuple[str, ...]

    def cell(self, column: int) -> str:
        """Return the cell of a column, empty where the row is shorter."""
        return self.cells[column] if column < len(self.cells) else ""

    def shown(self) -> str:
        """Return its content for a message, in one line and cut short."""
        return one_line(", ".join(filter(None, self.cells)), _SHOWN)


class TableFile(NamedTuple):
    """A table, and the cells that are quoted in the file."""

    path: Path
    rows: tuple[Row, ...]
    quoted: frozenset[str]


def read_table(path: Path, is_file_name: Callable[[str], bool]) -> TableFile:
    """Read a table whose cells are separated by commas, semicolons, tabs or bars.

    The delimiter is the one that leaves the file name of an image alone in a cell on most lines, or else that most
    lines have. Empty rows are skipped.

    Args:
        path: The table, in UTF-8, or in UTF-16 with a byte order mark.
        is_file_name: Tells whether a cell has the suffix of an image.

    Raises:
        DataError: It cannot be read, or has a stray quote.
    """
    text = read_text(path)
    skipped, delimiter = 0, ""
    if named := _NAMED_DELIMITER.match(text):
        skipped, delimiter = 1, named[1]
        text = text[named.end() :]
    delimiter = delimiter or _delimiter(text.splitlines(), is_file_name)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        rows = [Row(reader.line_num + skipped, tuple(cell.strip() for cell in cells)) for cells in reader]
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DataError(f"{path} line {line} is not CSV: {error}; mend its quotes") from error
    quoted = frozenset(cell.replace('""', '"').strip() for cell in _QUOTED.findall(text))
    return TableFile(path, tuple(row for row in rows if any(row.cells)), quoted)


def _delimiter(lines: list[str], is_file_name: Callable[[str], bool]) -> str:
    def fit(mark: str) -> tuple[int, int]:
        cut = [line.split(mark) for line in lines if mark in line]
        return sum(any(is_file_name(cell.strip(' "')) for cell in cells) for cells in cut), len(cut)

    return max(_DELIMITERS, key=fit)

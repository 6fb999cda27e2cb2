"""Image labels as a table, as people and tools write it: which classes each file has, and how that was read."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_core.images import IMAGE_SUFFIXES
from toco_core.text import listed
from toco_train.data.classes import tidy
from toco_train.data.readers.left_out import UNREAD_SUFFIXES
from toco_train.data.readers.table_columns import Columns, Split, find_columns, is_present, split_of
from toco_train.data.readers.table_file import Row, TableFile, read_table
from toco_train.data.readers.tag_cells import TagCell, is_empty, read_tags, refuse_number

LABELS_FILE = "labels.csv"
_SUFFIXES = IMAGE_SUFFIXES | UNREAD_SUFFIXES
_SHOWN = 4  # names in a sentence


class LabelRow(NamedTuple):
    """One row: its line, the file name with ``/`` between folders, the names of its classes, and its split, if any."""

    line: int
    file: str
    classes: tuple[str, ...]
    split: Split | None = None


class LabelTable(NamedTuple):
    """A table of labels.

    Attributes:
        rows: Its rows; those of the same file are kept apart.
        classes: The classes, in the order of their columns where each has one, else in alphabetical order.
        understood: How it was read, with one row for example; one sentence without a full stop.
    """

    rows: list[LabelRow]
    classes: tuple[str, ...]
    understood: str


def read_label_table(
    path: Path, known: Collection[str] = (), *, no_class: str | None = None, on_disk: Callable[[str], bool]
) -> LabelTable:
    """Read a table of labels.

    A row holds the file name of an image and either tags, in any number of cells or several in one, or a mark for each
    class that has a column (1 or 0 as numbers, words or booleans; -1 and empty count as 0). What else tools write is
    found by the header and left out: an index, boxes, sizes. A column of splits is read.

    Args:
        path: The table; see ``read_table``.
        known: The classes that the data set lists; empty where it lists none.
        no_class: The tag that stands for an image with nothing in it.
        on_disk: Tells whether a name without suffix is that of an image of the data set.

    Raises:
        DataError: It cannot be read, or it is not clear what it says.
    """
    table = read_table(path, _has_suffix)
    if not table.rows:
        return LabelTable([], (), "")
    columns = find_columns(table, has_suffix=_has_suffix, on_disk=on_disk)
    body = table.rows if columns.header is None else table.rows[1:]
    read = _marked if columns.marks else _tagged
    tags, classes, how = read(table, body, columns, known=known, no_class=no_class)
    rows = [
        LabelRow(row.line, _file(path, row, columns), names, _split(path, row, columns))
        for row, names in zip(body, tags, strict=True)
    ]
    return LabelTable(rows, classes, _sentence(columns, how, rows))


Read = tuple[list[tuple[str, ...]], tuple[str, ...], str]


def _tagged(
    table: TableFile, body: Sequence[Row], columns: Columns, *, known: Collection[str], no_class: str | None
) -> Read:
    """Read cells with tags."""
    whole_quoted = any(row.cell(columns.file) in table.quoted for row in body)
    cells = [
        [
            TagCell(row.line, unicodedata.normalize("NFC", cell), cell in table.quoted and not whole_quoted)
            for column in columns.tags
            if (cell := row.cell(column))
        ]
        for row in body
    ]
    flat = [cell for some in cells for cell in some]
    for one in flat:
        if _has_suffix(one.text):
            raise DataError(
                f"{table.path} line {one.line} has the file name {one.text!r} where a class is expected; write one "
                "file name on a row"
            )
    several = any(sum(not is_empty(cell.text) for cell in some) > 1 for some in cells)
    found = read_tags(flat, table.path, known, no_class=no_class, several_cells=several)
    tags = iter(found.of_cells)
    rows = [tuple(dict.fromkeys(name for _ in some for name in next(tags))) for some in cells]
    where = " and ".join(columns.name(column) for column in columns.tags)
    how = f"classes in column {where}" if columns.header is not None and columns.tags else "classes after the file name"
    if found.separated:
        how += f", {found.separated}"
    return rows, tuple(sorted({name for names in rows for name in names})), how


def _marked(
    table: TableFile, body: Sequence[Row], columns: Columns, *, known: Collection[str], no_class: str | None
) -> Read:
    """Read one column of marks for each class."""
    assert columns.header is not None
    names = [tidy(columns.header[column]) for column in columns.marks]
    for name in names:
        refuse_number(name, {*known, no_class}, f"the header of {table.path}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{table.path} has two columns {twice!r}; rename one")
    rows = []
    for row in body:
        marks = {name: is_present(row.cell(column)) for name, column in zip(names, columns.marks, strict=True)}
        if None in marks.values():
            name, column = next((n, c) for n, c in zip(names, columns.marks, strict=True) if marks[n] is None)
            raise DataError(
                f"{table.path} line {row.line} has {row.cell(column)!r} in the column of the class {name!r}, expected "
                "1 where it is present and 0 where not"
            )
        rows.append(tuple(name for name, present in marks.items() if present))
    spellings = sorted({cell for row in body for c in columns.marks if (cell := row.cell(c)) and not is_empty(cell)})
    present, absent = ([s for s in spellings if bool(is_present(s)) == wanted][:_SHOWN] for wanted in (True, False))
    how = f"one column for each class, {' or '.join(present) or '1'} is present"
    if absent:
        how += f" and {' or '.join(absent)} is not"
    return rows, tuple(names), how


def _file(path: Path, row: Row, columns: Columns) -> str:
    """Return the file name of a row."""
    name = row.cell(columns.file)
    if is_empty(name):
        raise DataError(f"{path} line {row.line} names no file, only {row.shown()}; put the file name first")
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _split(path: Path, row: Row, columns: Columns) -> Split | None:
    """Return the split of a row."""
    if columns.split is None:
        return None
    cell, header = row.cell(columns.split), (columns.header[columns.split] if columns.header else "")
    try:
        return split_of(cell, header)
    except ValueError as error:
        raise DataError(
            f"{path} line {row.line} has {cell!r} in the column {header!r}, expected train, val or test; correct it"
        ) from error


def _sentence(columns: Columns, how: str, rows: Sequence[LabelRow]) -> str:
    """Say how a table was read, with one row for example."""
    parts = [f"file names in column {columns.name(columns.file)}" if columns.header is not None else "", how]
    if columns.split is not None:
        parts.append(f"splits in column {columns.name(columns.split)}")
    if columns.unused:
        parts.append(f"not used: column {listed(map(columns.name, columns.unused), _SHOWN)}")
    if rows:
        row = max(rows, key=lambda one: min(len(one.classes), 2))
        parts.append(f"for example line {row.line}: {row.file} has {listed(row.classes, _SHOWN) or 'no class'}")
    return "; ".join(filter(None, parts))


def _has_suffix(cell: str) -> bool:
    """Tell whether a cell has the suffix of an image, one that is not read included."""
    _, dot, suffix = cell.rpartition(".")
    return bool(dot) and f".{suffix.lower()}" in _SUFFIXES

"""What the columns of a table of labels mean: the file, the classes, a split, or nothing that is used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_train.data.readers.table_file import Row, TableFile
from toco_train.data.readers.tag_cells import is_empty, is_number_or_boolean

Split = str  # train, val or test

_PRESENT = frozenset({"1", "true", "yes", "y", "t", "on", "x", "✓", "✔"})
_ABSENT = frozenset({"0", "-1", "false", "no", "n", "f", "off"})
_SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip

# Headers, without case, blanks and signs.
_FILE_WORDS = """
    image images img imgs file files filename filenames filepath fname path name imagename imagefile imagefilename
    imagepath imageid imgname imgpath imgid id photo picture uri url imageurl imageuri imgurl
"""
_LABEL_WORDS = """
    label labels class classes classname classnames classlabel classlabels tag tags category categories categoryname
    labelname labelnames object objects choice choices
"""
_SPLIT_COLUMNS = "split splits set subset dataset partition phase usage isvalid isval isvalidation istrain"
_UNUSED_WORDS = """
    x y w h width height xmin ymin xmax ymax x0 y0 x1 y1 x2 y2 xc yc xcenter ycenter cx cy left top right bottom bbox
    bboxes box boxes area depth channels imagewidth imageheight imgwidth imgheight filesize size iscrowd isoccluded
    istruncated isgroupof isdepiction isinside difficult truncated occluded pose segmentation segmentations polygon
    polygons points rle encodedpixels regionid regioncount regionshapeattributes fileattributes confidence score fold
    kfold source annotator annotationid createdat updatedat leadtime classid labelid categoryid license datecaptured
"""
_FILE, _LABEL, _SPLIT, _UNUSED = (
    frozenset(words.split()) for words in (_FILE_WORDS, _LABEL_WORDS, _SPLIT_COLUMNS, _UNUSED_WORDS)
)
_INDEX = frozenset({"", "index", "idx", "id", "no", "nr", "row"})


class Columns(NamedTuple):
    """What the columns of a table mean, by number.

    Attributes:
        header: The names of the columns; None where the first row holds an image.
        file: The column with file names.
        tags: Columns with tags, empty where classes are marked.
        marks: Columns of one class each, with a mark where it is present.
        split: The column that says in which split an image is.
        unused: Columns with content that is not used.
    """

    header: tuple[str, ...] | None
    file: int
    tags: tuple[int, ...]
    marks: tuple[int, ...]
    split: int | None
    unused: tuple[int, ...]

    def name(self, column: int) -> str:
        """Return how to call a column in a message."""
        named = self.header is not None and column < len(self.header) and self.header[column]
        return f"{self.header[column]!r}" if named and self.header else f"number {column + 1}"


@lru_cache(maxsize=4096)
def is_present(cell: str) -> bool | None:
    """Tell whether a mark says that a class is present: only 1, true, yes and the like do; None if it is no mark."""
    word = cell.casefold()
    if is_empty(cell) or word in _ABSENT:
        return False
    if word in _PRESENT:
        return True
    try:
        return {1.0: True, 0.0: False, -1.0: False}.get(float(word.replace(",", ".")))
    except ValueError:
        return None


def split_of(cell: str, header: str) -> Split | None:
    """Return the split that a cell names, None where it names none; ``header`` is that of its column.

    Raises:
        ValueError: It names another one.
    """
    if is_empty(cell) or cell.casefold() == "unassigned":
        return None
    if _word(header).startswith("is"):
        present = is_present(cell)
        if present is None:
            raise ValueError
        return "train" if present == (_word(header) == "istrain") else "val"
    if cell.casefold() not in _SPLIT_WORDS:
        raise ValueError
    return _SPLIT_WORDS[cell.casefold()]


def find_columns(table: TableFile, *, has_suffix: Callable[[str], bool], on_disk: Callable[[str], bool]) -> Columns:
    """Work out what the columns of a table mean.

    Args:
        table: The table, with a row at least.
        has_suffix: Tells whether a cell has the suffix of an image.
        on_disk: Tells whether a cell names an image of the data set, if without its suffix.

    Raises:
        DataError: It cannot be told which column holds the files or the classes.
    """
    path, rows = table.path, table.rows
    file, is_file = _file_column(path, rows, has_suffix, on_disk)
    headed = not is_file(rows[0].cell(file)) and bool(rows[0].cell(file) or len(rows) > 1)
    header = rows[0].cells if headed and not _is_broken(rows, file) else None
    body = rows[1:] if header is not None else rows
    width = max(len(row.cells) for row in rows)
    others = [c for c in range(width) if c != file and any(not is_empty(row.cell(c)) for row in body)]
    find = _columns_by_header if header is not None else _columns_without_header
    return find(path, body, others, header or (), file)


def _is_broken(rows: Sequence[Row], file: int) -> bool:
    """Tell whether a first row without a file name is no header: it holds one name, and no marks are below it."""
    named = [column for column, cell in enumerate(rows[0].cells) if cell]
    return not rows[0].cell(file) and len(named) == 1 and not _holds_marks([row.cell(named[0]) for row in rows[1:]])


def _file_column(
    path: Path, rows: Sequence[Row], has_suffix: Callable[[str], bool], on_disk: Callable[[str], bool]
) -> tuple[int, Callable[[str], bool]]:
    """Return the column with file names, and what tells one."""
    width = max(len(row.cells) for row in rows)
    for test in (has_suffix, on_disk):
        counts = {c: sum(test(row.cell(c)) for row in rows) for c in range(width)}
        found = [c for c, count in counts.items() if count and 2 * count >= len(rows) - 1]  # the first may be a header
        if len(found) > 1:
            named = [c for c in found if _word(rows[0].cell(c)) in _FILE]
            first = [c for c in found if all(counts[c] > counts[other] for other in found if other != c)]
            found = named if len(named) == 1 else first
            if not found:
                raise DataError(
                    f"{path} has several columns of file names, for example line {rows[-1].line}: "
                    f"{rows[-1].shown()}; leave only that of the images, or name it 'image'"
                )
        if found:
            return found[0], test
    if len(rows) == 1 and _word(rows[0].cell(0)) in _FILE | _LABEL:
        return 0, has_suffix  # a header alone
    row = rows[-1]
    raise DataError(
        f"{path} line {row.line} names no image: {row.shown()}; write the file name of an image on each row"
    )


def _columns_by_header(
    path: Path, body: Sequence[Row], others: Sequence[int], header: Sequence[str], file: int
) -> Columns:
    words = {c: _word(header[c]) if c < len(header) else "" for c in others}
    cells = {c: [row.cell(c) for row in body] for c in others}
    split = next((c for c in others if words[c] in _SPLIT and _holds_splits(cells[c], header[c])), None)
    unused = [c for c in others if words[c] in _UNUSED or _is_index(words[c], cells[c])]
    others = [c for c in others if c != split and c not in unused]
    named = [c for c in others if words[c].rstrip("0123456789") in _LABEL]
    if len(named) > 1 and all(words[c] not in _LABEL and _holds_marks(cells[c]) for c in named):
        named = []  # classes that are called class1, class2 and so on
    marks = [c for c in others if c not in named and _holds_marks(cells[c])]
    if named:
        behind = [c for c in others if c > max(named) and not (c < len(header) and header[c])]
        tags = sorted({*named, *behind})
        unused += [c for c in others if c not in tags]
        return Columns(tuple(header), file, tuple(tags), (), split, tuple(sorted(unused)))
    if marks and len(marks) == len(others):
        if any(c >= len(header) or not header[c] for c in marks):
            raise DataError(f"{path} has a column of marks without a name; name each column by its class")
        return Columns(tuple(header), file, (), tuple(marks), split, tuple(sorted(unused)))
    ordinals = all(words[c].isdigit() or words[c] == "" for c in others[1:])
    if len(others) <= 1 or ordinals:
        return Columns(tuple(header), file, tuple(others), (), split, tuple(sorted(unused)))
    shown = ", ".join(repr(header[c]) if c < len(header) else repr("") for c in others[:6])
    raise DataError(
        f"{path} has the columns {shown}, and which of them hold classes is not clear (line {body[0].line}: "
        f"{body[0].shown()}); name a column of classes 'labels', or leave the others out"
    )


def _columns_without_header(
    path: Path, body: Sequence[Row], others: Sequence[int], _header: Sequence[str], file: int
) -> Columns:
    cells = {c: [row.cell(c) for row in body] for c in others}
    index = [c for c in others if c < file and _counts_up(cells[c])]
    split = next((c for c in others if len({x.casefold() for x in cells[c]}) > 1 and _holds_splits(cells[c], "")), None)
    others = [c for c in others if c != split and c not in index]
    numbers = [c for c in others if all(is_empty(cell) or is_number_or_boolean(cell) for cell in cells[c])]
    if numbers and len(numbers) == len(others):
        raise DataError(
            f"{path} line {body[0].line} holds {body[0].cell(numbers[0])} after the file name and the table has no "
            "header; write the names of the classes, or name each column by its class in a first row"
        )
    boxes = numbers if len(numbers) == 4 and len(others) == 5 else []
    tags = tuple(c for c in others if c not in boxes)
    return Columns(None, file, tags, (), split, tuple(sorted((*index, *boxes))))


def _holds_splits(cells: Collection[str], header: str) -> bool:
    try:
        return any(split_of(cell, header) for cell in cells)
    except ValueError:
        return False


def _holds_marks(cells: Collection[str]) -> bool:
    """Tell whether the cells with something in them are marks, or most are, or the others are wrong numbers."""
    told = {cell: number for cell, number in Counter(cells).items() if not is_empty(cell)}
    marks = sum(number for cell, number in told.items() if is_present(cell) is not None)
    others_are_numbers = all(is_number_or_boolean(cell) for cell in told if is_present(cell) is None)
    return 2 * marks > sum(told.values()) or (marks > 0 and others_are_numbers)


def _is_index(word: str, cells: Sequence[str]) -> bool:
    named = word in _INDEX or word.startswith("unnamed")
    return named and len(set(cells)) == len(cells) and all(cell.isdigit() for cell in cells)


def _counts_up(cells: Sequence[str]) -> bool:
    """Tell whether cells are 0, 1, 2 and so on, or begin at 1."""
    return any(all(cell == str(n) for n, cell in enumerate(cells, start)) for start in (0, 1))


def _word(header: str) -> str:
    return re.sub(r"[\W_]+", "", header).casefold()

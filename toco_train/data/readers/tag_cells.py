"""The tags in the cells of a table: one or several in a cell, as a list or with one separator throughout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from toco_core.errors import DataError
from toco_train.data.classes import CLASSES_FILE, tidy

_EMPTY = frozenset({"", "-", "nan", "<na>", "na", "n/a", "#n/a", "nat", "null"})
_SEPARATORS = ("|", ";", ",", "\t", "\n", "，", "；", "、")  # noqa: RUF001  (the last are Chinese)
_DOUBTFUL = ("/", "+", "&", ":", " ")  # they are part of many names, too
_IN_WORDS = {" ": "blanks", "\t": "tabs", "\n": "line breaks"}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?%?|[+-]?inf(inity)?", re.IGNORECASE)
_BOOLEANS = frozenset({"true", "false", "yes", "no"})
_LONGEST_NAME = 8  # words
_SHOWN = 80  # characters of a cell in a message
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_STRING = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_STRINGS = re.compile(rf"\s*(?:(?:{_STRING})\s*(?:[,;]\s*)?)*", re.DOTALL)


class TagCell(NamedTuple):
    """A cell with tags: its line in the file, its text, and whether it is quoted there though others are not."""

    line: int
    text: str
    quoted: bool = False


class Tags(NamedTuple):
    """The tags of each cell, and in a few words how several are separated; empty where no cell has several."""

    of_cells: list[tuple[str, ...]]
    separated: str


def read_tags(
    cells: Sequence[TagCell], path: Path, known: Collection[str], *, no_class: str | None, several_cells: bool
) -> Tags:
    """Return the tags in cells.

    A cell holds one tag, or several: a list as JSON, Python or numpy writes it, Label Studio's choices, or tags with
    one separator throughout. A blank (or ``/ + & :``) between words separates tags if all words, or two of them and
    all but one, are known as tags. It belongs to a tag if ``known`` says so, the cell is quoted, or another separator
    is used.

    Args:
        cells: The cells.
        path: The table, for messages.
        known: The classes that the data set lists; empty where it lists none.
        no_class: The tag that stands for an image with nothing in it.
        several_cells: Rows have several cells with tags, so that these need no separator.

    Raises:
        DataError: The separators differ, a list cannot be read, it is not clear whether a cell holds one tag or
            several, or a tag is a number or boolean that ``known`` does not list.
    """
    if known and no_class is not None:
        known = {*known, no_class}
    spared = {*known, no_class}
    lists, cells = _read_lists(cells, path)
    plain = [cell for cell in cells if cell.text not in lists and not (is_empty(cell.text) and cell.text not in spared)]
    texts = {cell.text for cell in plain if cell.text not in spared}
    separators = [mark for mark in _SEPARATORS if any(mark in text for text in texts)]
    if len(separators) > 1:
        raise DataError(_different_separators(plain, texts, separators, path))
    pieces = {text: _cut(text, separators) for text in texts}
    clear = bool(lists or separators or several_cells)
    single = {tidy(one) for some in pieces.values() for one in some if not any(mark in one for mark in _DOUBTFUL)}
    doubt = _Doubt(path, known, single, clear)
    found: list[tuple[str, ...]] = []
    for cell in cells:
        tags = lists.get(cell.text) or [tag for piece in pieces.get(cell.text, ()) for tag in doubt.tags(piece, cell)]
        if cell.text in spared:
            tags = [cell.text]
        names = tuple(dict.fromkeys(tag for tag in map(tidy, tags) if tag in spared or not is_empty(tag)))
        for name in names:
            refuse_number(name, spared, f"{path} line {cell.line}")
        found.append(names)
    if lists:
        return Tags(found, "several in a cell as a list")
    marks = " or ".join(_IN_WORDS.get(mark, repr(mark)) for mark in (*separators, *sorted(doubt.separators)))
    return Tags(found, f"several in a cell separated by {marks}" if marks else "")


@lru_cache(maxsize=4096)
def is_empty(text: str) -> bool:
    """Tell whether a cell says that there is nothing, as tools write it: nothing at all, ``nan``, Python's ``None``."""
    return text.casefold() in _EMPTY or text == "None"


def is_number_or_boolean(text: str) -> bool:
    """Tell whether a text is a number, or true, false, yes or no."""
    return bool(_NUMBER.fullmatch(text)) or text.casefold() in _BOOLEANS


def refuse_number(name: str, known: Collection[str | None], where: str) -> None:
    """Refuse a number or boolean as the name of a class that is not listed.

    Raises:
        DataError: It is one.
    """
    if name not in known and is_number_or_boolean(name):
        raise DataError(
            f"{where} has {name!r}, expected the name of a class; write names, or if these are names list them in "
            f"{CLASSES_FILE}, in quotes"
        )


def _cut(text: str, separators: Sequence[str]) -> list[str]:
    """Cut a cell at the one separator."""
    pieces = text.split(separators[0]) if separators else [text]
    return [piece.strip() for piece in pieces if piece.strip()]


def _different_separators(
    cells: Sequence[TagCell], texts: Collection[str], separators: Sequence[str], path: Path
) -> str:
    first, second = (next(c for c in cells if c.text in texts and mark in c.text) for mark in separators[:2])
    return (
        f"{path} line {second.line} has {separators[1]!r} in {_shown(second)}, but line {first.line} has "
        f"{separators[0]!r} in {_shown(first)}; use one separator of tags throughout, or list the classes in "
        f"{CLASSES_FILE}"
    )


class _Doubt:
    """Decides whether words with a blank or the like between them are one tag or several."""

    def __init__(self, path: Path, known: Collection[str], single: Collection[str], clear: bool) -> None:
        self._path, self._known, self._single, self._clear = path, known, single, clear
        self.separators: set[str] = set()

    def tags(self, piece: str, cell: TagCell) -> list[str]:
        """Return the tags in a piece of a cell."""
        mark = next((mark for mark in _DOUBTFUL if mark in piece), None)
        if mark is None or tidy(piece) in self._known:
            return [piece]
        words = [word.strip() for word in piece.split(None if mark == " " else mark) if word.strip()]
        if self._known:
            return self._listed(words, mark) or [piece]
        known_words = sum(tidy(word) in self._single for word in words)
        if not self._clear and not cell.quoted and known_words >= max(2, len(words) - 1):
            self.separators.add(mark)
            return words
        if (cell.quoted or self._clear) and known_words < len(words):
            return [piece]
        raise DataError(
            f"{self._path} line {cell.line} has {_shown(cell)}, which may be one class or several; list the classes in "
            f"{CLASSES_FILE}, or separate the classes of an image by | throughout"
        )

    def _listed(self, words: Sequence[str], mark: str) -> list[str]:
        """Return the one way to read words as listed classes; nothing if there is none, or more than one."""
        reached: list[list[list[str]]] = [[[]]]  # for each number of words the ways to read so many, two at most
        for end in range(1, len(words) + 1):
            here = [
                [*way, name]
                for start in range(max(0, end - _LONGEST_NAME), end)
                for way in reached[start]
                if (name := mark.join(words[start:end])) in self._known
            ]
            reached.append(here[:2])
        if len(reached[-1]) != 1:
            return []
        self.separators.add(mark)
        return reached[-1][0]


def _read_lists(cells: Sequence[TagCell], path: Path) -> tuple[dict[str, list[str]], list[TagCell]]:
    """Return the tags of the cells that are lists of strings, by their text, and all cells.

    Brackets around names without quotes are taken away: what they hold is read like any other cell.
    """
    if not any(_in_brackets(cell.text) for cell in cells):
        return {}, list(cells)
    lists: dict[str, list[str]] = {}
    bare: list[TagCell] = []
    for cell in cells:
        if not _in_brackets(cell.text):
            bare.append(cell)
            continue
        found = next(filter(lambda some: some is not None, (read(cell.text) for read in _LIST_READERS)), None)
        if found is not None:
            lists[cell.text] = found or [""]
            bare.append(cell)
        elif cell.text[0] == "(":
            bare.append(cell)
        elif re.search(r"""[\[\]{}"']""", cell.text[1:-1]):
            raise DataError(f"{path} line {cell.line} has {_shown(cell)}, which is no list of names; correct it")
        else:
            bare.append(TagCell(cell.line, cell.text[1:-1].strip(), quoted=True))
    if lists:
        others = [c for c in bare if c.text not in lists and any(m in c.text for m in _SEPARATORS)]
        if others:
            raise DataError(
                f"{path} line {others[0].line} has {_shown(others[0])}, but other cells are lists; write all of them "
                "as lists"
            )
    return lists, bare


def _shown(cell: TagCell) -> str:
    """Return what a cell holds, for a message."""
    return repr(cell.text if len(cell.text) <= _SHOWN else f"{cell.text[: _SHOWN - 3]}...")


def _in_brackets(text: str) -> bool:
    return len(text) > 1 and _BRACKETS.get(text[0]) == text[-1]


def _from_json(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _strings(value)


def _from_quoted_strings(text: str) -> list[str] | None:
    """Read the list, tuple or set of Python, or the array of numpy, which has no commas."""
    inner = text[1:-1]
    if not _STRINGS.fullmatch(inner):
        return None
    return [re.sub(r"\\(.)", r"\1", one[1:-1], flags=re.DOTALL) for one in re.findall(_STRING, inner)]


_LIST_READERS: tuple[Callable[[str], list[str] | None], ...] = (_from_json, _from_quoted_strings)


def _strings(value: object) -> list[str] | None:
    """Return the strings of a list, or of Label Studio's regions and choices; None for anything else."""
    if isinstance(value, dict):
        names = [key for key in value if key == "choices" or key.endswith("labels")]
        return _strings(value[names[0]]) if len(names) == 1 else None
    if not isinstance(value, list):
        return None
    found: list[str] = []
    for one in value:
        if isinstance(one, (dict, list)):
            inner = _strings(one)
            if inner is None:
                return None
            found += inner
        elif one is not None:
            found.append(one if isinstance(one, str) else json.dumps(one))
    return found

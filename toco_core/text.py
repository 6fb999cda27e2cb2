"""Short texts for messages and reports."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Literal

MAX_REASON_LENGTH = 300
MAX_LISTED = 12


def one_line(message: object, most: int = MAX_REASON_LENGTH) -> str:
    """Return a message on one line.

    Args:
        message: A text, or an exception; one without a message gives the name of its type.
        most: Longest result, in characters; the rest is cut off.
    """
    text = " ".join(str(message).split())[:most]
    return text or (type(message).__name__ if isinstance(message, BaseException) else "")


def listed(items: Iterable[object], most: int = MAX_LISTED) -> str:
    """Return items separated by commas, at most ``most`` of them, then ``and N more``; floats in their short form."""
    texts = [f"{item:g}" if isinstance(item, float) else str(item) for item in items]
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def percent(share: float | None) -> str:
    """Return a share of 1 in per cent with one decimal, without the sign; a dash for NaN or None."""
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}"


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], align: Literal["left", "right"] = "right"
) -> str:
    """Return a Markdown table without a line end after it.

    Args:
        columns: Headings.
        rows: Cells of each row.
        align: Alignment of all columns except the first, which is aligned to the left.
    """
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---", *["---:" if align == "right" else "---"] * (len(columns) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'X'?"`` for the known word closest to ``word``, or an empty string if none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}?" if matches else ""

import math

import pytest

from toco_core.sampling import evenly_spaced
from toco_core.text import listed, markdown_table, one_line, percent


def test_a_message_of_several_lines_becomes_one():
    assert one_line(ValueError("a\n  b\tc ")) == "a b c"
    assert one_line("x " * 300) == ("x " * 300)[:300]
    assert one_line(ValueError("long reason"), most=4) == "long"


def test_an_exception_without_a_message_is_named():
    assert one_line(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("items", "expected"),
    [((), ""), (("a",), "a"), (("a", "b"), "a, b"), (("a", "b", "c", "d"), "a, b and 2 more"), ((1.0, 0.5), "1, 0.5")],
)
def test_items_beyond_the_most_are_counted(items, expected):
    assert listed(iter(items), 2) == expected


def test_a_share_without_a_value_is_a_dash():
    assert [percent(share) for share in (0.1234, 1, 0.0, math.nan, None)] == ["12.3", "100.0", "0.0", "-", "-"]


def test_a_table_of_texts_is_aligned_to_the_left():
    assert markdown_table(("a", "b"), [("1", "2")], align="left") == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_pipe_in_a_cell_or_heading_does_not_end_the_cell():
    assert markdown_table(("label", "IoU |x|"), [("a|b", "1"), ("c", "2")]) == (
        "| label | IoU \\|x\\| |\n| --- | ---: |\n| a\\|b | 1 |\n| c | 2 |"
    )


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "a"), (2, "ag"), (3, "adg"), (4, "aceg"), (7, "abcdefg"), (9, "abcdefg"), (0, "abcdefg")],
)
def test_a_sample_is_spread_from_the_first_item_to_the_last(count, expected):
    assert evenly_spaced("abcdefg", count) == tuple(expected)


def test_nothing_has_an_empty_sample():
    assert evenly_spaced([], 3) == ()

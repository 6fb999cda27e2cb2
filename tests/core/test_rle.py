"""COCO's compressed counts, character by character; whole regions are in tests/serve/client/test_polygons.py."""

import numpy as np
import pytest

from toco_core.rle import _MOST_GROUPS, decode_counts, decode_rle, encode_rle

UNKNOWN = "the text is no run of COCO's characters, or is cut off"


@pytest.mark.parametrize(
    ("counts", "runs"),
    [
        ("2", [2]),
        ("?", [15]),  # the largest number of one character: 63 - 48
        ("P1", [32]),  # 0 and more, then 1 * 32
        ("o0", [31]),  # the sign of a number is in its last character
        ("123", [1, 2, 3]),
        ("1234", [1, 2, 3, 2 + 4]),  # from the fourth on a run is stated by its difference from the one before the last
        ("221O", [2, 2, 1, 2 - 1]),
        ("0100P1", [0, 1, 0, 1, 32]),
    ],
)
def test_counts_are_read_as_coco_writes_them(counts, runs):
    found = decode_counts(counts)
    assert found.tolist() == runs
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ("", UNKNOWN),
        ("/", UNKNOWN),  # the character before the first
        ("2/2", UNKNOWN),
        ("p", UNKNOWN),  # the character after the last
        ("2p2", UNKNOWN),
        ("2\u00d12", UNKNOWN),
        ("22o", UNKNOWN),  # more should follow
        ("O", "a run is shorter than nothing"),
        ("000N", "a run is shorter than nothing"),
    ],
)
def test_counts_that_coco_never_writes_are_refused(counts, complaint):
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        decode_counts(counts)


def test_a_number_has_at_most_as_many_characters_as_any_image_needs():
    assert decode_counts("P" * (_MOST_GROUPS - 1) + "1").tolist() == [32 ** (_MOST_GROUPS - 1)]
    for counts in ("P" * _MOST_GROUPS + "1", "2" + "P" * _MOST_GROUPS + "1" + "2"):
        with pytest.raises(ValueError, match="a run is longer than any image"):
            decode_counts(counts)


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 511, 512, 16383, 16384, 700_000])
def test_runs_of_every_number_of_characters_come_back(length):
    region = np.zeros((length + 3, 1), np.bool_)
    region[1 : length + 1] = True
    rle = encode_rle(region)
    assert decode_counts(rle["counts"]).tolist() == [1, length, 2]
    np.testing.assert_array_equal(decode_rle(rle), region)

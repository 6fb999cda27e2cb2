"""A small share of ``python -m benchmarks.fuzz_readers``: no damaged data set ends in anything but a sentence."""

import random

import pytest

from benchmarks.fuzz_readers import LAYOUTS, MAX_GROWTH_MB, damaged, fuzz


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_data_sets_are_read_or_refused_in_one_sentence(layout):
    outcome = fuzz(layout, inputs=40, seed=1)
    assert outcome.faults == []
    assert outcome.read + outcome.refused == 40
    assert outcome.growth_mb < MAX_GROWTH_MB


def test_the_same_seed_does_the_same_damage():
    assert damaged(b"abcdefgh", random.Random("1")) == damaged(b"abcdefgh", random.Random("1"))
    assert len({damaged(b"abcdefgh", random.Random(str(seed))) for seed in range(50)}) > 40

"""The order of training: what a batch holds depends on the seed and its place alone."""

import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.train.noise_source import noise_source, source_of
from toco_core.errors import ConfigError, DataError
from toco_train.config import AugmentationConfig
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import training_batches
from toco_train.data.source import Sample

TENSORS = ("view1", "view2", "local", "boxes", "image_labels", "seeds")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Seven small images of noise."""
    return noise_source(tmp_path_factory.mktemp("images"), 7)


def batches(source, number, **settings):
    """The first batches, of four images a step."""
    settings = {"batch_size": 4, "num_workers": 0, "seed": 5, **settings}
    stream = training_batches(source, Augmentation(AugmentationConfig(), 32), **settings)
    found = list(itertools.islice(stream, number))
    stream.close()
    return found


def assert_same(ours, theirs):
    assert [batch.names for batch in ours] == [batch.names for batch in theirs]
    for own, other in zip(ours, theirs, strict=True):
        for name in TENSORS:
            assert torch.equal(getattr(own, name), getattr(other, name)), name


def joined(parts):
    """The names and tensors of several batches as one list of names and one dictionary."""
    names = tuple(itertools.chain.from_iterable(part.names for part in parts))
    return names, {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_workers_changes_nothing(source, num_workers):
    assert_same(batches(source, 5, num_workers=num_workers), batches(source, 5))


@pytest.mark.parametrize("start_step", [1, 2, 9])
def test_a_run_taken_up_at_a_step_sees_what_the_uninterrupted_one_saw(source, start_step):
    whole = batches(source, start_step + 2)
    assert_same(batches(source, 2, start_step=start_step, num_workers=1), whole[start_step:])


@pytest.mark.parametrize(("world_size", "num_micro_batches"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_ranks_and_micro_batches_together_are_the_one_large_batch(source, world_size, num_micro_batches):
    steps = 3
    ranks = [
        batches(source, steps * num_micro_batches, rank=r, world_size=world_size, num_micro_batches=num_micro_batches)
        for r in range(world_size)
    ]
    for step, whole in enumerate(batches(source, steps)):
        turns = range(step * num_micro_batches, (step + 1) * num_micro_batches)
        names, tensors = joined([ranks[r][turn] for turn in turns for r in range(world_size)])
        assert names == whole.names
        for name in TENSORS:
            assert torch.equal(tensors[name], getattr(whole, name)), name


def test_micro_batches_are_the_same_images_however_many_ranks_share_them(source):
    alone = batches(source, 4, num_micro_batches=2)
    ranks = [batches(source, 4, num_micro_batches=2, rank=r, world_size=2) for r in range(2)]
    for turn, whole in enumerate(alone):
        assert ranks[0][turn].names + ranks[1][turn].names == whole.names


def test_each_epoch_is_every_image_once_in_an_order_of_its_own(source):
    names = list(itertools.chain.from_iterable(batch.names for batch in batches(source, 7)))
    epochs = [names[start : start + 7] for start in range(0, 28, 7)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(sample.name for sample in source.train)] * 4
    assert len(set(map(tuple, epochs))) == 4


def test_an_image_is_drawn_anew_in_every_epoch(source):
    names, tensors = joined(batches(source, 7))
    views = [view.numpy().tobytes() for view, name in zip(tensors["view1"], names, strict=True) if name == "3"]
    assert len(set(views)) == len(views) == 4
    assert tensors["seeds"].unique().numel() == 28


def test_another_seed_is_another_order_and_other_views(source):
    ours, theirs = batches(source, 4), batches(source, 4, seed=6)
    assert [batch.names for batch in ours] != [batch.names for batch in theirs]
    assert torch.cat([b.seeds for b in ours] + [b.seeds for b in theirs]).unique().numel() == 32


def test_reading_in_this_process_leaves_its_random_numbers_alone(source):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = batches(source, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert_same(batches(source, 2), first)


def test_a_batch_that_does_not_divide_is_refused(source):
    with pytest.raises(ConfigError, match=r"^batch_size 4 cannot be divided over 3 process.* make it a multiple of 6$"):
        batches(source, 1, world_size=3, num_micro_batches=2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_image_that_cannot_be_read_is_named(source, tmp_path, num_workers):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    broken = source_of(tmp_path, (Sample(name="bad", image=bad, labels=(1,)),))
    with pytest.raises(DataError, match=r"^image .*bad\.png cannot be read"):
        batches(broken, 1, num_workers=num_workers)


def test_no_training_images_are_refused(source):
    with pytest.raises(DataError, match="has no training images"):
        batches(source_of(source.path, ()), 1)


def workers():
    """The processes that this one has started and that still run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


@pytest.fixture
def stream_and_worker(source):
    """A stream of batches, its first, and the process that reads for it."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    if not children.is_file():
        pytest.skip("this system does not list the children of a process")
    before = children.read_text().split()
    stream = training_batches(source, Augmentation(AugmentationConfig(), 32), batch_size=4, num_workers=1, seed=5)
    first = next(stream)
    (worker,) = set(children.read_text().split()) - set(before)
    yield stream, first, int(worker)
    stream.close()


def test_ctrl_c_leaves_the_workers_reading(source, stream_and_worker):
    stream, first, worker = stream_and_worker
    os.kill(worker, signal.SIGINT)
    assert_same([first, *itertools.islice(stream, 4)], batches(source, 5))


@pytest.mark.slow  # the data loader looks every 5 seconds whether its workers live
def test_a_worker_that_was_told_to_stop_disturbs_nothing_until_it_is_missed(stream_and_worker):
    stream, _, worker = stream_and_worker
    os.kill(worker, signal.SIGTERM)
    time.sleep(0.5)  # an error would come by SIGCHLD, whatever this process is at
    with pytest.raises(DataError, match=r"^a process that reads images has died .*lower data\.num_workers"):
        list(itertools.islice(stream, 20))

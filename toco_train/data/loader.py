"""Batches for training: images with their views and labels, in an order that the seed decides."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from toco_core.errors import ConfigError, DataError
from toco_core.images import read_image
from toco_core.text import one_line
from toco_train.data.augmentation import Augmentation
from toco_train.data.source import DataSource, Sample, image_labels

_ORDER_STREAM, _IMAGE_STREAM = 0, 1  # what is drawn from a seed, apart: the order of an epoch, the views of an image


@dataclass(frozen=True)
class Batch:
    """One training batch; S is the crop size.

    Attributes:
        view1: The training images, uint8 ``[B, 3, S, S]`` RGB.
        view2: Second global views, uint8 ``[B, 3, S, S]``.
        local: Renderings that local crops are cut from, uint8 ``[B, 3, S, S]``.
        boxes: Part of each ``view1`` that is image, int64 ``[B, 4]``: top, bottom, left, right in pixels.
        image_labels: Multi-hot image labels, float32 ``[B, C]``.
        seeds: What the random choices of each image on the training device are drawn from, int64 ``[B]``, at least 0.
        names: Names of the images.
        max_classes: The most classes that one of the images has, where it is known: counted here, no step has to ask
            the training device.
    """

    view1: Tensor
    view2: Tensor
    local: Tensor
    boxes: Tensor
    image_labels: Tensor
    seeds: Tensor
    names: tuple[str, ...]
    max_classes: int | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in memory that a GPU copies from while it computes; the data loader calls this."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(v) for name, v in values.items() if isinstance(v, Tensor)})  # type: ignore[arg-type]


class _TrainingSet(Dataset[dict[str, object] | str]):
    """Views of training images, by place in the global order; an unreadable image gives the sentence that says so."""

    def __init__(self, samples: Sequence[Sample], num_classes: int, augmentation: Augmentation, seed: int) -> None:
        self._samples = samples
        self._num_classes = num_classes
        self._augmentation = augmentation
        self._seed = seed

    def __getitem__(self, place: tuple[int, int]) -> dict[str, object] | str:
        position, index = place
        sample = self._samples[index]
        streams = np.random.SeedSequence(self._seed, spawn_key=(_IMAGE_STREAM, position))
        for_views, for_crops = streams.generate_state(2, np.uint64).tolist()
        try:
            image = read_image(sample.image)
        except DataError as error:  # an exception would cross the process boundary as a page of traceback
            return str(error)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(for_views)
            views = self._augmentation(image)
        return {
            "view1": views.view1,
            "view2": views.view2,
            "local": views.local,
            "boxes": views.box,
            "image_labels": torch.from_numpy(image_labels(sample, self._num_classes)),
            "seeds": torch.tensor(for_crops >> 1),
            "names": sample.name,
        }


class _GlobalOrder(Sampler[list[tuple[int, int]]]):
    """One rank's micro-batches of an endless shuffle, each a list of (place in the order, index of the image)."""

    def __init__(self, length: int, seed: int, *, batch_size: int, start_step: int, slices: Sequence[slice]) -> None:
        self._length = length
        self._seed = seed
        self._batch_size = batch_size
        self._start_step = start_step
        self._slices = slices

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, of_epoch = np.empty(0, dtype=np.int64), -1
        for step in itertools.count(self._start_step):
            batch = []
            for position in range(step * self._batch_size, (step + 1) * self._batch_size):
                epoch, offset = divmod(position, self._length)
                if epoch != of_epoch:
                    order, of_epoch = self._permutation(epoch), epoch
                batch.append((position, int(order[offset])))
            for part in self._slices:
                yield batch[part]

    def _permutation(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the order of an epoch; it is worked out from the seed, so that none before it need be drawn."""
        seeds = np.random.SeedSequence(self._seed, spawn_key=(_ORDER_STREAM, epoch))
        return np.random.default_rng(seeds).permutation(self._length)


def training_batches(
    source: DataSource,
    augmentation: Augmentation,
    *,
    batch_size: int,
    num_workers: int,
    seed: int,
    start_step: int = 0,
    num_micro_batches: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield this rank's training batches for ever.

    The seed decides a global order: an endless shuffle, every image once an epoch. Step k (from 0) takes the places
    ``k * batch_size`` to ``(k + 1) * batch_size - 1``; its micro-batches follow in order, and each is divided in order
    over the ranks. All that is random about an image (its views, ``Batch.seeds``) is drawn from the seed and its place
    alone. So the batches do not depend on ``num_workers`` nor on the step at which a run was resumed, and those of all
    ranks and micro-batches together are the one large batch. The global generators are left as they were.

    Args:
        source: The data set; its training split is read.
        augmentation: Draws the views of an image from torch's global generator, and from nothing else.
        batch_size: Images an optimiser step, over all ranks and micro-batches.
        num_workers: Processes that read and augment ahead, one thread each; 0 reads in this process, when asked.
        seed: At least 0.
        start_step: Step of the first batch.
        num_micro_batches: Batches that a step is cut into (gradient accumulation); they come one after another.
        rank: Number of this process, 0 to ``world_size - 1``.
        world_size: Processes that train together.

    Raises:
        ConfigError: ``batch_size`` does not divide over the ranks and micro-batches.
        DataError: There are no training images, one cannot be read, or a reading process died.
    """
    parts = num_micro_batches * world_size
    if batch_size % parts:
        raise ConfigError(
            f"batch_size {batch_size} cannot be divided over {world_size} process(es) with {num_micro_batches} "
            f"micro-batch(es) each: make it a multiple of {parts}"
        )
    if not source.train:
        raise DataError(f"{source.path} has no training images; for VOC, list them in ImageSets/Segmentation/train.txt")
    share = batch_size // parts
    starts = [(turn * world_size + rank) * share for turn in range(num_micro_batches)]
    loader = DataLoader(
        _TrainingSet(source.train, len(source.classes), augmentation, seed),
        batch_sampler=_GlobalOrder(
            len(source.train),
            seed,
            batch_size=batch_size,
            start_step=start_step,
            slices=[slice(start, start + share) for start in starts],
        ),
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_trainer,
        generator=torch.Generator(),  # else making the iterator draws from the global one
        pin_memory=torch.cuda.is_available(),
    )
    return _complaining(loader)


def _complaining(loader: DataLoader[dict[str, object] | str]) -> Iterator[Batch]:
    """Yield the loader's batches; raise what an image or a process has to complain of."""
    batches = iter(loader)
    while True:
        try:
            batch: Batch | str = next(batches)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a process that reads images has died ({one_line(error)}): often memory or /dev/shm is full; "
                "lower data.num_workers, or 0 to read in the training process"
            ) from error
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch


def _collate(samples: list[dict[str, object] | str]) -> Batch | str:
    """Stack samples, or pass on the first complaint."""
    good = [sample for sample in samples if not isinstance(sample, str)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, str))
    columns = {key: [sample[key] for sample in good] for key in good[0]}
    names = tuple(str(name) for name in columns.pop("names"))
    tensors = {key: torch.stack(list(values)) for key, values in columns.items()}  # type: ignore[arg-type]
    return Batch(**tensors, names=names, max_classes=int(tensors["image_labels"].sum(dim=1).max()))


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Let a worker outlive Ctrl-C, and end it without a word on SIGTERM: the trainer saves first, then stops it.

    Both signals reach a whole process group. A worker that dies of one would raise an error in the midst of the
    trainer's last step; an exit with status 0 does not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

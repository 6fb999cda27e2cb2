"""Batches for training: images with their views and labels, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from toco.errors import DataError
from toco_train.data.augment import Augmentation
from toco_train.data.source import DataSource, Sample, image_labels, read_image


@dataclass(frozen=True)
class Batch:
    """One training batch; S is the crop size.

    Attributes:
        view1: The training images, uint8 ``[B, 3, S, S]`` RGB.
        view2: Second global views, uint8 ``[B, 3, S, S]``.
        local: Renderings that local crops are cut from, uint8 ``[B, 3, S, S]``.
        boxes: Part of each ``view1`` that is image, int64 ``[B, 4]``: top, bottom, left, right in pixels.
        image_labels: Multi-hot image labels, float32 ``[B, C]``.
        names: Names of the images.
    """

    view1: Tensor
    view2: Tensor
    local: Tensor
    boxes: Tensor
    image_labels: Tensor
    names: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


class _TrainingSet(Dataset[dict[str, object] | str]):
    """Views of the training images; a picture that cannot be read gives the sentence that says so."""

    def __init__(self, samples: Sequence[Sample], num_classes: int, augmentation: Augmentation) -> None:
        self._samples = samples
        self._num_classes = num_classes
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, object] | str:
        sample = self._samples[index]
        try:
            views = self._augmentation(read_image(sample.image))
        except DataError as error:  # an exception would cross the process boundary as a page of traceback
            return str(error)
        return {
            "view1": views.view1,
            "view2": views.view2,
            "local": views.local,
            "boxes": views.box,
            "image_labels": torch.from_numpy(image_labels(sample, self._num_classes)),
            "names": sample.name,
        }


class _EndlessShuffle(Sampler[int]):
    """Every image once in a random order, then again in another, for ever."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(self._length, generator=self._generator).tolist()


def _collate(samples: list[dict[str, object] | str]) -> Batch | str:
    """Stack samples, or pass on the first complaint."""
    good = [sample for sample in samples if not isinstance(sample, str)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, str))
    columns = {key: [sample[key] for sample in good] for key in good[0]}
    names = tuple(str(name) for name in columns.pop("names"))
    return Batch(**{key: torch.stack(list(values)) for key, values in columns.items()}, names=names)  # type: ignore[arg-type]


def training_batches(
    source: DataSource, augmentation: Augmentation, *, batch_size: int, num_workers: int, seed: int
) -> Iterator[Batch]:
    """Yield training batches for ever.

    The seed decides order and augmentation, whatever the number of workers is not: each worker draws from its own
    stream, so runs compare only at the same ``num_workers``.

    Raises:
        DataError: There are no training images, or one cannot be read.
    """
    if not source.train:
        raise DataError(f"{source.path} has no training images; for VOC, list them in ImageSets/Segmentation/train.txt")
    loader = DataLoader(
        _TrainingSet(source.train, len(source.classes), augmentation),
        batch_size=batch_size,
        sampler=_EndlessShuffle(len(source.train), seed),
        num_workers=num_workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, str):
            raise DataError(batch)
        yield batch

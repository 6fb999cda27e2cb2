"""What a network makes of images: class scores, activation maps and label maps at the images' own sizes.

Memory: maps stay at the network's size, and a label map is made at the image's size in bands of rows: at 12
megapixels with 80 classes and three scales that takes 0.15 GB, and scoring it 0.5 GB. A CRF sees at most a megapixel.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toco_core.fitting import Size, fit_to_network, nearest_size, own_size
from toco_core.images import read_image
from toco_train.config import SegmentConfig
from toco_train.data.source import Sample
from toco_train.method.cam import multi_scale_cam
from toco_train.method.crf import CAM_CRF, SEGMENTATION_CRF, CrfConfig, dense_crf
from toco_train.models.normalize import normalize_images
from toco_train.models.toco import ToCo
from toco_train.models.vit import scaled_sides

MAX_CRF_PIXELS = 2**20
_IMPROBABLE = 0.01
_BAND_SCORES = 2**20  # of all labels in one band: 4 MB


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one image.

    Attributes:
        image: The image, upright RGB, H x W pixels.
        labels: Labels that the image is tagged with (1..C), K of them.
        cam: Activation map of each of them, float ``[K, h, w]`` in [0, 1], h x w the fitted size; ``[0, h, w]`` where
            no CAM was asked for.
        aux_cam: The same of the auxiliary head.
        seg_logits: Segmentation logits at each scale, float ``[C + 1, h, w]``, h x w tokens, background first; with
            flips the sum of the pair.
        class_scores: Probability of each class by the class head, float ``[C]``.
        aux_class_scores: The same by the auxiliary class head.
        token_similarity: Mean pairwise |cosine| of the final patch tokens.
    """

    image: Image.Image
    labels: tuple[int, ...]
    cam: Tensor
    aux_cam: Tensor
    seg_logits: tuple[Tensor, ...]
    class_scores: Tensor
    aux_class_scores: Tensor
    token_similarity: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image.height, self.image.width

    def seg_mask(self, *, crf: bool = False) -> Tensor:
        """Return the label map of the segmentation, uint8 ``[H, W]`` on the CPU; no tag is used.

        The logits of each scale are resized to the image, the largest over the scales is taken, then the argmax.

        Args:
            crf: Refine the softmax by a dense CRF first, leaving out labels that are nowhere above 1 %.

        Source: docs/method.md, test time.
        """
        labels = range(len(self.seg_logits[0]))
        if not crf:
            return label_map(self.seg_logits, labels, self.size)
        size = _crf_size(self.size)
        logits = functools.reduce(torch.maximum, (resized(logits, size) for logits in self.seg_logits))
        probabilities = logits.softmax(dim=0)
        kept = (probabilities.amax(dim=(1, 2)) > _IMPROBABLE).nonzero().flatten().tolist()
        return self._refined(kept, probabilities[kept], SEGMENTATION_CRF)

    def cam_mask(self, cam: Tensor, background: float, *, crf: bool = False) -> Tensor:
        """Return the label map of an activation map given the image's tags, uint8 ``[H, W]`` on the CPU.

        Args:
            cam: ``self.cam`` or ``self.aux_cam``.
            background: At or below it a pixel is background.
            crf: Refine by a dense CRF first; the map of each tag and the constant ``background``, divided by their
                sum, are its probabilities.

        Source: docs/method.md, test time. It does not say how the published CRF turns a CAM into probabilities;
        dividing by the sum keeps the winner of every pixel.
        """
        labels = (0, *self.labels)
        scores = torch.cat([cam.new_full((1, *cam.shape[1:]), background), cam])
        if not crf:
            return label_map([scores], labels, self.size)
        return self._refined(labels, F.normalize(resized(scores, _crf_size(self.size)), p=1, dim=0), CAM_CRF)

    def _refined(self, labels: Sequence[int], probabilities: Tensor, config: CrfConfig) -> Tensor:
        """Return the label map of probabilities, ``[L, h, w]``, after a dense CRF at their size."""
        height, width = probabilities.shape[1:]
        image = np.asarray(self.image.resize((width, height), resample=Image.Resampling.BILINEAR))
        refined = torch.from_numpy(dense_crf(image, probabilities.cpu().numpy(), config))
        return label_map([refined], labels, self.size)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly: float ``[L, h, w]`` -> ``[L, H, W]``."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def label_map(scales: Sequence[Tensor], labels: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Return the label with the highest score at each pixel, the largest over the scales being a label's score.

    The same as ``resized`` at each scale, maximum and argmax, without ever holding all scores at full size: columns are
    resized first, rows in bands.

    Args:
        scales: Scores at each scale, float ``[L, h, w]`` of any size.
        labels: What the L maps stand for.
        size: Height and width of the result.

    Returns:
        uint8 ``[H, W]`` on the CPU.
    """
    height, width = size
    wide = [resized(scores, (scores.shape[1], width)) for scores in scales]
    device = wide[0].device
    names = torch.tensor(labels, dtype=torch.uint8, device=device)
    mask = torch.empty(size, dtype=torch.uint8, device=device)
    band = max(1, _BAND_SCORES // (len(labels) * width))
    for top in range(0, height, band):
        rows = torch.arange(top, min(top + band, height), device=device)
        scores = functools.reduce(torch.maximum, (_resized_rows(maps, rows, height) for maps in wide))
        mask[rows] = names[scores.max(dim=0).indices]  # on a CPU twice as fast as argmax
    return mask.cpu()


def _resized_rows(maps: Tensor, rows: Tensor, height: int) -> Tensor:
    """Return some rows of maps resized bilinearly to a height: ``[L, h, W]`` -> ``[L, len(rows), W]``."""
    last = maps.shape[1] - 1
    place = ((rows + 0.5) * (maps.shape[1] / height) - 0.5).clamp(0, last)
    above = place.floor().long()
    return torch.lerp(maps[:, above], maps[:, (above + 1).clamp(max=last)], (place - above)[:, None])


def _crf_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size at which a CRF sees an image: its own, or about a megapixel if it is larger."""
    height, width = size
    factor = min(1.0, (MAX_CRF_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * factor)), max(1, round(width * factor))


def predict(
    model: ToCo,
    samples: Sequence[Sample],
    scales: Sequence[float],
    batch_size: int,
    segment: SegmentConfig = SegmentConfig(),  # noqa: B008  (frozen)
    *,
    sizes: Sequence[Size] | None = None,
) -> Iterator[Prediction]:
    """Yield the prediction of each sample in order; images that are fitted to one size run together.

    Args:
        model: The network, in evaluation mode.
        samples: Images; of their labels only the maps of ``cam`` and ``aux_cam`` depend.
        scales: Scales of the CAM, factors of the fitted size, each seen flipped, too; none if no CAM is wanted.
        batch_size: Images that are read at a time, and the most in a batch.
        segment: How the segmentation sees an image.
        sizes: Height and width of the sizes that images are fitted to; None: those of the run. Without meaning for
            ``segment.own_size``.

    Raises:
        DataError: An image cannot be read.
    """
    config, device = model.config, next(model.parameters()).device
    for start in range(0, len(samples), batch_size):
        window = samples[start : start + batch_size]
        images = [read_image(sample.image) for sample in window]
        places: dict[Size, list[int]] = {}
        for place, image in enumerate(images):
            own = image.height, image.width
            size = own_size(own, model.patch_size) if segment.own_size else nearest_size(own, sizes or model.sizes)
            places.setdefault(size, []).append(place)
        found: dict[int, Prediction] = {}
        for size, group in places.items():
            of_size = [images[place] for place in group]
            inputs = network_inputs(of_size, size, mean=config.mean, std=config.std, device=device)
            batch = _predict_batch(
                model, [window[place] for place in group], of_size, inputs, scales=scales, segment=segment
            )
            found |= zip(group, batch, strict=True)
        yield from (found[place] for place in range(len(window)))


@torch.no_grad()
def _predict_batch(
    model: ToCo,
    samples: Sequence[Sample],
    images: Sequence[Image.Image],
    inputs: Tensor,
    *,
    scales: Sequence[float],
    segment: SegmentConfig,
) -> Iterator[Prediction]:
    """Yield the predictions of images that are all fitted to one size, as ``inputs`` ``[B, 3, H, W]``."""
    output = model(inputs)
    tagged = sorted({label for sample in samples for label in sample.labels}) or [1]
    chosen = [label - 1 for label in tagged]
    cams = aux_cams = inputs.new_zeros(len(images), 0, *inputs.shape[2:])
    if scales:
        cams, aux_cams = multi_scale_cam(
            _ChosenClasses(model, chosen), inputs, scales, scale_one=(output.cam[:, chosen], output.aux_cam[:, chosen])
        )
    seg_logits = _segment(model, inputs, output.seg_logits, segment)
    similarity = mean_token_similarity(output.patch_tokens).tolist()
    for index, (sample, image) in enumerate(zip(samples, images, strict=True)):
        own = [tagged.index(label) for label in sample.labels] if scales else []
        yield Prediction(
            image=image,
            labels=sample.labels,
            cam=cams[index, own],
            aux_cam=aux_cams[index, own],
            seg_logits=tuple(logits[index] for logits in seg_logits),
            class_scores=output.class_logits[index].sigmoid(),
            aux_class_scores=output.aux_class_logits[index].sigmoid(),
            token_similarity=similarity[index],
        )


def network_inputs(
    images: Sequence[Image.Image], size: Size, *, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Resize images to one size and normalise them.

    Args:
        images: B of them, RGB, of any size.
        size: Height and width.
        mean: Mean of each channel, images in [0, 1].
        std: Standard deviation of each channel.
        device: Where the images go.

    Returns:
        float32 ``[B, 3, H, W]``.
    """
    pixels = np.stack([np.asarray(fit_to_network(image, [size])) for image in images])
    centre, width = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))
    return normalize_images(torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2), centre, width)


@dataclass(frozen=True)
class _ChosenClasses:
    """A network with the activation maps of some classes alone: the maps of 80 classes at full size are large."""

    model: ToCo
    classes: Sequence[int]

    @property
    def patch_size(self) -> int:
        return self.model.patch_size

    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cam, aux_cam = self.model.activation_maps(images)
        return cam[:, self.classes], aux_cam[:, self.classes]


def _segment(model: ToCo, images: Tensor, logits_at_one: Tensor, config: SegmentConfig) -> list[Tensor]:
    """Return the logits at each scale, ``[B, C + 1, h, w]``, summed with those of the flip if asked."""
    found = []
    for scale in config.scales:
        scaled = images
        if scale != 1:
            sides = scaled_sides(images.shape[-2:], scale, model.patch_size)
            scaled = F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        logits = logits_at_one if scale == 1 else model.segment(scaled)
        if config.flip:
            logits = logits + model.segment(scaled.flip(-1)).flip(-1)
        found.append(logits.float())
    return found


def mean_token_similarity(patch_tokens: Tensor) -> Tensor:
    """Return the mean |cosine| over pairs of different tokens: ``[B, D, h, w]`` -> ``[B]``."""
    tokens = F.normalize(patch_tokens.flatten(2).float(), dim=1)
    similarity = (tokens.transpose(1, 2) @ tokens).abs()
    num_tokens = similarity.shape[-1]
    itself = similarity.diagonal(dim1=1, dim2=2).sum(dim=1)
    return (similarity.sum(dim=(1, 2)) - itself) / (num_tokens * (num_tokens - 1))

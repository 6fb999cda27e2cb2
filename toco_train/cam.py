"""From class activation maps to pseudo labels.

Shapes: B images, C foreground classes, H x W pixels, h x w tokens, N = h * w. Labels: 0 background, 1..C classes, 255
ignore. A *valid* CAM is one in which only the classes of the image's label count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toco_train.gpu_kernels import neighbour_affinity, neighbour_average, runs_kernels

IGNORE_INDEX = 255


class GivesActivationMaps(Protocol):
    """What ``multi_scale_cam`` needs of a network."""

    @property
    def patch_size(self) -> int:
        """Image sides must be multiples of it."""

    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CAM and aux CAM before ReLU, each ``[B, C, h, w]``, of images ``[B, 3, H, W]``."""


def present_classes(image_labels: Tensor, max_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Name the classes that each image has, so that no map of an absent one has to be made.

    Args:
        image_labels: Multi-hot, ``[B, C]``.
        max_classes: The most classes that one of the images has; None counts them, for which the host waits.

    Returns:
        Classes, int64 ``[B, K]``, 0..C-1: those of the image first, in ascending order; and which of them it has, bool
        ``[B, K]``. K is ``max_classes``, and 1 where that is 0.
    """
    if max_classes is None:
        max_classes = int(image_labels.sum(dim=1).max())
    present, classes = image_labels.bool().sort(dim=1, descending=True, stable=True)
    most = max(1, max_classes)
    return classes[:, :most], present[:, :most]


@torch.no_grad()
def multi_scale_cam(
    model: GivesActivationMaps,
    images: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    *,
    scale_one: tuple[Tensor, Tensor] | None = None,
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute CAM and aux CAM over several scales, each with its horizontal flip.

    At each scale the maps are resized bilinearly to the image, the larger of the image's and the flipped-back flip's
    is taken, and ReLU applied; scales are summed and each class normalised to [0, 1] by its own minimum and maximum.

    Args:
        model: Network whose sides at every scale are rounded to a multiple of its patch size.
        images: Normalised images, float ``[B, 3, H, W]``.
        scales: Factors of the image size.
        scale_one: CAM and aux CAM before ReLU of the unflipped images at scale 1, each ``[B, C, h, w]``, where the
            caller has them already: that pass is then not run again.
        classes: The classes of each image whose maps are wanted, integer ``[B, K]``, 0..C-1. None: all.

    Returns:
        CAM and aux CAM, each float ``[B, C, H, W]`` (``[B, K, H, W]`` in the order of ``classes``) in [0, 1], without
        gradient.

    Source: METHOD.md, step 1. Same values as published; the pass that the training step has already done is reused,
    and only the maps that count are made as large as the image.
    """
    size = images.shape[-2:]
    totals: list[Tensor] = []
    for scale in scales:
        sides = [max(1, round(side * scale / model.patch_size)) * model.patch_size for side in size]
        scaled = images
        if list(size) != sides:
            scaled = F.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        if scale == 1 and scale_one is not None:
            flipped = model.activation_maps(scaled.flip(-1))
            pairs = list(zip(scale_one, flipped, strict=True))
        else:
            maps = model.activation_maps(torch.cat([scaled, scaled.flip(-1)]))
            pairs = [(both[: len(images)], both[len(images) :]) for both in maps]
        for index, (plain, mirrored) in enumerate(pairs):
            together = torch.cat([_of_classes(plain, classes), _of_classes(mirrored, classes).flip(-1)])
            plain, mirrored = F.interpolate(together, size=size, mode="bilinear", align_corners=False).chunk(2)  # noqa: PLW2901
            strongest = torch.maximum(plain, mirrored).relu_()
            if len(totals) <= index:
                totals.append(strongest)
            else:
                totals[index] += strongest
    cam, aux_cam = (_normalise(total) for total in totals)
    return cam, aux_cam


def _of_classes(maps: Tensor, classes: Tensor | None) -> Tensor:
    """Return the maps of some classes in float32: ``[B, C, h, w]`` and ``[B, K]`` -> ``[B, K, h, w]``, contiguous."""
    if classes is not None:
        maps = maps.gather(1, classes[:, :, None, None].expand(-1, -1, *maps.shape[-2:]))
    return maps.float().contiguous()


def _normalise(cam: Tensor) -> Tensor:
    """Stretch each class of each image to [0, 1]."""
    cam = cam - cam.amin(dim=(-2, -1), keepdim=True)
    return cam / (cam.amax(dim=(-2, -1), keepdim=True) + 1e-5)


def valid_cam(cam: Tensor, image_labels: Tensor) -> Tensor:
    """Set the classes that an image's label does not name to 0: ``[B, C, H, W]`` and ``[B, C]`` -> ``[B, C, H, W]``."""
    return cam * image_labels[:, :, None, None].to(cam.dtype)


def label_from_cam(cam: Tensor, image_labels: Tensor, background_threshold: float) -> Tensor:
    """Return the label of each pixel: the strongest class of the image's label, or background.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        background_threshold: At or below it a pixel is background.

    Returns:
        int64 ``[B, H, W]``, 0..C.
    """
    strongest, label = valid_cam(cam, image_labels).max(dim=1)
    return torch.where(strongest <= background_threshold, 0, label + 1)


def three_way_label(cam: Tensor, image_labels: Tensor, low: float, high: float, boxes: Tensor | None = None) -> Tensor:
    """Return the label of each pixel where the CAM is sure, and 255 where it is not.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: At or below it a pixel is background.
        high: Above it a pixel has the strongest class; between the two it is 255.
        boxes: Part of each picture that is image and not padding, integer ``[B, 4]``: top, bottom, left, right in
            pixels, ends excluded. Outside it the label is 255. None: everything is image.

    Returns:
        int64 ``[B, H, W]``.

    Source: ToCo (CVPR 2023), equation 4; METHOD.md, step 2.
    """
    strongest, label = valid_cam(cam, image_labels).max(dim=1)
    label = torch.where(strongest <= high, IGNORE_INDEX, label + 1)
    label = torch.where(strongest <= low, 0, label)
    if boxes is None:
        return label
    return torch.where(inside_boxes(boxes, label.shape[-2], label.shape[-1]), label, IGNORE_INDEX)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie inside each box (top, bottom, left, right): ``[B, 4]`` -> bool ``[B, H, W]``."""
    top, bottom, left, right = boxes.long()[:, :, None, None].unbind(dim=1)
    rows = torch.arange(height, device=boxes.device)[None, :, None]
    columns = torch.arange(width, device=boxes.device)[None, None, :]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def roi_mask(cam: Tensor, image_labels: Tensor, low: float, high: float) -> Tensor:
    """Return where local crops may be taken: 0 background, 1 uncertain, 2 sure foreground.

    Args:
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: At or below it a pixel is 0.
        high: At or above it a pixel is 2.

    Returns:
        int64 ``[B, H, W]``.

    Source: ToCo (CVPR 2023), section 3.4; METHOD.md, step 4.
    """
    strongest = valid_cam(cam, image_labels).amax(dim=1)
    return (strongest > low).long() + (strongest >= high).long()


def token_affinity(labels: Tensor) -> Tensor:
    """Return the pseudo relation of each pair of tokens.

    Args:
        labels: Token labels, integer ``[B, h, w]``, 255 unknown.

    Returns:
        uint8 ``[B, N, N]``: 1 same label, 0 different, 255 where either is unknown and on the diagonal.

    Source: ToCo (CVPR 2023), section 3.3; METHOD.md, step 3.
    """
    flat = labels.flatten(1)
    affinity = (flat[:, :, None] == flat[:, None, :]).to(torch.uint8)
    unknown = flat == IGNORE_INDEX
    affinity.masked_fill_(unknown[:, :, None] | unknown[:, None, :], IGNORE_INDEX)
    affinity.diagonal(dim1=1, dim2=2).fill_(IGNORE_INDEX)
    return affinity


class PixelAdaptiveRefinement(nn.Module):
    """Refine maps so that they follow the edges of the image, by averaging over pixels that look alike (PAR).

    Each pixel takes a weighted mean of its 8 neighbours at every dilation, a fixed number of times. The weights come
    from colour (softmax over neighbours of the channel mean of ``-(|I_n - I| / std / 0.3)^2``) and, times 0.01, from
    distance.

    Memory: the weights, ``4 * 8 * len(dilations)`` bytes a pixel and image; neighbours are never gathered as a whole.
    At 224 x 224 (half of 448) that is 9.6 MB an image, and with 21 maps ``2 * 21 * 4`` bytes a pixel, 8.4 MB, beside.

    Args:
        dilations: Distances of the rings of neighbours, in pixels.
        num_iterations: How many times the average is taken.

    Source: PAR (Ru et al., AFA, CVPR 2022) as ToCo uses it; METHOD.md, step 5.
    """

    COLOUR_WIDTH = 0.3
    POSITION_WEIGHT = 0.01
    _EPSILON = 1e-8

    def __init__(self, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24), num_iterations: int = 10) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        ring = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
        self._offsets = [(row * d, column * d) for d in dilations for row, column in ring]
        self._reach = max(dilations)
        distance = torch.tensor([float(row**2 + column**2) for row, column in self._offsets]).sqrt()
        by_distance = -((distance / (distance.std() + self._EPSILON) / self.COLOUR_WIDTH) ** 2)
        self.register_buffer("_position", by_distance.softmax(dim=0) * self.POSITION_WEIGHT, persistent=False)
        self.register_buffer("_places", torch.tensor(self._offsets, dtype=torch.int32), persistent=False)
        self._position: Tensor
        self._places: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, maps: Tensor) -> Tensor:
        """Refine maps.

        Args:
            images: RGB in [0, 1], float ``[B, 3, H, W]``.
            maps: float ``[B, K, H, W]``.

        Returns:
            float ``[B, K, H, W]``.
        """
        weights = self.affinity(images)
        for _ in range(self.num_iterations):
            maps = self._average(maps, weights)
        return maps

    def _average(self, maps: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted mean of each pixel's neighbours, ``[B, K, H, W]``."""
        if runs_kernels(maps):
            return neighbour_average(maps.float(), self._places, weights)
        padded = self._pad(maps)
        average = torch.zeros_like(maps)
        for index in range(len(self._offsets)):
            average.addcmul_(self._shifted(padded, index, maps), weights[:, index : index + 1])
        return average

    def affinity(self, images: Tensor) -> Tensor:
        """Return the weight of each neighbour of each pixel, float ``[B, 8 * len(dilations), H, W]``."""
        if runs_kernels(images):
            return neighbour_affinity(
                images.float(), self._places, self._position, colour_width=self.COLOUR_WIDTH, epsilon=self._EPSILON
            )
        padded = self._pad(images)
        neighbours = [self._shifted(padded, index, images) for index in range(len(self._offsets))]
        mean = sum(neighbours, torch.zeros_like(images)) / len(neighbours)
        variance = torch.zeros_like(images)
        for neighbour in neighbours:
            variance.add_((neighbour - mean).square_())
        width = ((variance / (len(neighbours) - 1)).sqrt_() + self._EPSILON) * self.COLOUR_WIDTH
        by_colour = torch.stack([-((n - images) / width).square_().mean(dim=1) for n in neighbours], dim=1)
        return by_colour.softmax(dim=1) + self._position.to(images.dtype)[None, :, None, None]

    def _pad(self, maps: Tensor) -> Tensor:
        return F.pad(maps, [self._reach] * 4, mode="replicate")

    def _shifted(self, padded: Tensor, index: int, like: Tensor) -> Tensor:
        """Return the view of a padded map in which each pixel shows its neighbour of that index."""
        row, column = (self._reach + offset for offset in self._offsets[index])
        height, width = like.shape[-2:]
        return padded[..., row : row + height, column : column + width]


@torch.no_grad()
def refine_label(  # noqa: PLR0917  (the order in which the paper names them)
    images: Tensor,
    cam: Tensor,
    image_labels: Tensor,
    low: float,
    high: float,
    boxes: Tensor,
    refinement: PixelAdaptiveRefinement,
    *,
    classes: Tensor | None = None,
) -> Tensor:
    """Turn a CAM into a pseudo label for segmentation, refined along the edges of the image.

    The valid CAM is refined at half size twice, with a constant background of ``high`` and of ``low``. Where the
    cautious run (high) says foreground the label is that class, where both say background it is 0, else 255.

    Args:
        images: RGB in [0, 1], float ``[B, 3, H, W]``.
        cam: float ``[B, C, H, W]`` in [0, 1].
        image_labels: Multi-hot, ``[B, C]``.
        low: Background score of the generous run.
        high: Background score of the cautious run.
        boxes: Part of each picture that is image, integer ``[B, 4]``: top, bottom, left, right; outside it is 255.
        refinement: The refinement to apply.
        classes: The class of each map, integer ``[B, C]``, where the CAM is that of ``present_classes`` and the labels
            say which of them an image has. None: map and class are the same.

    Returns:
        int64 ``[B, H, W]``: 0, 255, or a class from 1 on.

    Source: METHOD.md, step 5. Same values as published; the affinity of an image is computed once for both runs.
    """
    height, width = images.shape[-2:]
    half = (height // 2, width // 2)
    half_images = F.interpolate(images, size=half, mode="bilinear", align_corners=False)
    scores = F.interpolate(valid_cam(cam, image_labels), size=half, mode="bilinear", align_corners=False)
    known = F.pad(image_labels.bool(), (1, 0), value=True)[:, :, None, None]
    if classes is None:
        classes = torch.arange(cam.shape[1], device=cam.device).expand(len(cam), -1)
    labels = F.pad(classes + 1, (1, 0), value=0)

    runs = [F.pad(scores, (0, 0, 0, 0, 1, 0), value=threshold) for threshold in (high, low)]
    maps = torch.cat([run.masked_fill(~known, -torch.inf).softmax(dim=1) for run in runs], dim=1)
    refined = refinement(half_images, maps)
    # max and not argmax, which is many times slower over this dimension on a CPU
    cautious, generous = (
        labels.gather(
            1, F.interpolate(run, size=(height, width), mode="bilinear", align_corners=False).max(1).indices.flatten(1)
        ).view(-1, height, width)
        for run in refined.chunk(2, dim=1)
    )
    label = torch.where(cautious > 0, cautious, torch.where(generous > 0, IGNORE_INDEX, 0))
    return torch.where(inside_boxes(boxes, height, width), label, IGNORE_INDEX)

"""What the paper's two figures show: how alike patch tokens become, block by block, and to which places one is alike.

L blocks, N images, h x w patch tokens of an image, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import timm.data
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toco_core.errors import ConfigError
from toco_core.fitting import Size, round_to_patches
from toco_core.images import read_image
from toco_train.data.source import Sample
from toco_train.inference.predict import mean_token_similarity, network_inputs, predict, resized
from toco_train.models.toco import ToCo
from toco_train.models.vit import Backbone, build_backbone

Point = tuple[float, float]
CENTRE: Point = (0.5, 0.5)


@dataclass(frozen=True)
class Subject:
    """A network to look into: that of a run, or a plain backbone, which has no class head and so no CAM.

    Attributes:
        name: What it is called in figures.
        backbone: Its ViT, in evaluation mode.
        image_size: Side of the square that it sees an image as, in pixels: networks of different sizes are then
            compared on the same grid of places, whatever the shape of the image.
        mean: Mean of each channel, images in [0, 1].
        std: Standard deviation of each channel.
        model: The network of a run; None for a plain backbone.
        cam_scales: Scales of its CAM; none for a plain backbone.
    """

    name: str
    backbone: Backbone
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model: ToCo | None = None
    cam_scales: tuple[float, ...] = ()

    @property
    def square(self) -> Size:
        """Height and width that it sees every image at."""
        return self.image_size, self.image_size

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the backbone takes them, float ``[B, 3, S, S]``."""
        device = next(self.backbone.parameters()).device
        return network_inputs(images, self.square, mean=self.mean, std=self.std, device=device)


@dataclass(frozen=True)
class BlockSimilarity:
    """How alike the patch tokens of images are after each block.

    Attributes:
        name: The network.
        values: Mean |cosine| over pairs of different tokens, 0 to 1: float64 ``[N, L + 1]``, a row for each image;
            columns are blocks 1 to L, then the final norm after block L.
    """

    name: str
    values: npt.NDArray[np.float64]

    @property
    def num_blocks(self) -> int:
        """L."""
        return self.values.shape[1] - 1

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean over the images, float64 ``[L + 1]``."""
        mean: npt.NDArray[np.float64] = self.values.mean(axis=0)
        return mean

    @property
    def spread(self) -> npt.NDArray[np.float64]:
        """Standard deviation over the images, float64 ``[L + 1]``."""
        spread: npt.NDArray[np.float64] = self.values.std(axis=0)
        return spread


@dataclass(frozen=True)
class PatchView:
    """What one network makes of a place in an image.

    Attributes:
        name: The network.
        similarity: |cosine| of the final patch tokens, after the norm, with the token at the place: float32
            ``[h, w]`` in [0, 1].
        cam: The strongest CAM of the image's tags, float32 ``[S, S]`` in [0, 1]; None where there is no class head
            or no tag.
    """

    name: str
    similarity: npt.NDArray[np.float32]
    cam: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class PlaceInImage:
    """A place in an image, and what each network makes of it.

    Attributes:
        sample: The image.
        image: Its pixels, H x W.
        point: The place: x and y as shares of width and height, 0 to 1.
        views: One for each network.
    """

    sample: Sample
    image: Image.Image
    point: Point
    views: tuple[PatchView, ...]


def run_subject(model: ToCo, name: str, cam_scales: tuple[float, ...]) -> Subject:
    """Return the network of a run, in evaluation mode, to look into."""
    config = model.config
    return Subject(name, model.backbone, config.image_size, config.mean, config.std, model, cam_scales)


def timm_subject(
    timm_id: str, name: str, device: torch.device, *, pretrained: bool, weights: str | None, image_size: int | None
) -> Subject:
    """Return a plain timm ViT, to look into, with the normalisation that timm knows for it.

    Args:
        timm_id: Its timm name.
        name: What it is called in figures.
        device: Where it computes.
        pretrained: Whether it has timm's weights, downloaded once, or random ones.
        weights: File of weights to use instead.
        image_size: Side of the square that it sees an image as, in pixels; None for its own.

    Raises:
        ConfigError: See ``build_backbone``; or the size is no multiple of the patch size.
        RunError: The file of weights cannot be read or does not fit.
    """
    backbone = build_backbone(timm_id, pretrained=pretrained, weights=weights, aux_block=-1)
    data = timm.data.resolve_model_data_config(backbone.vit)
    side: int = data["input_size"][-1] if image_size is None else image_size
    patch = backbone.patch_size
    if side % patch or side < patch:
        raise ConfigError(
            f"image size {side} px is not a multiple of the patch size {patch} of {timm_id}: "
            f"give {round_to_patches(side, patch)}"
        )
    return Subject(name, backbone.to(device).eval(), side, tuple(data["mean"]), tuple(data["std"]))


def similarity_by_block(
    subject: Subject, samples: Sequence[Sample], batch_size: int, progress: Callable[[int], None] = lambda images: None
) -> BlockSimilarity:
    """Measure over-smoothing: how alike the patch tokens are after each block.

    Args:
        subject: The network.
        samples: N images; neither tags nor masks are read.
        batch_size: Images a batch.
        progress: Called with the number of images of each batch that is done.

    Raises:
        DataError: An image cannot be read.

    Source: ToCo (CVPR 2023), section 3.2: cosine similarity of patch tokens over the blocks of a ViT. The final norm
    stands apart, since PTC acts on tokens after it; |cos| as in docs/method.md, step 3.
    """
    found = []
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        images = subject.images([read_image(sample.image) for sample in batch])
        by_block = [mean_token_similarity(tokens) for tokens in subject.backbone.patch_tokens_by_block(images)]
        found.append(torch.stack(by_block, dim=1).double().cpu())
        progress(len(batch))
    return BlockSimilarity(subject.name, torch.cat(found).numpy())


@torch.no_grad()
def similarity_map(subject: Subject, image: Image.Image, point: Point) -> Tensor:
    """Return |cosine| of the final patch tokens with the one at a point, float ``[h, w]`` on the CPU.

    Args:
        subject: The network.
        image: The image, RGB.
        point: x and y as shares of width and height, 0 to 1.
    """
    tokens = F.normalize(subject.backbone(subject.images([image])).patch_tokens[0].float(), dim=0)
    height, width = tokens.shape[1:]
    row, column = token_at(point, height, width)
    return torch.einsum("d,dhw->hw", tokens[:, row, column], tokens).abs().clamp(max=1).cpu()


def token_at(point: Point, height: int, width: int) -> tuple[int, int]:
    """Return row and column of the token, of ``[height, width]``, that a point lies in."""
    x, y = point
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def look_at(subjects: Sequence[Subject], sample: Sample, point: Point | None) -> PlaceInImage:
    """Return what networks make of a place in an image.

    Args:
        subjects: The networks.
        sample: The image.
        point: x and y as shares of width and height, 0 to 1. None: where the CAMs of all networks together are
            strongest, so that no network chooses alone; the centre where there is no CAM.

    Raises:
        DataError: The image cannot be read.
    """
    image = read_image(sample.image)
    cams = [_strongest_cam(subject, sample) for subject in subjects]
    if point is None:
        point = _strongest_point([cam for cam in cams if cam is not None])
    views = tuple(
        PatchView(subject.name, similarity_map(subject, image, point).numpy(), None if cam is None else cam.numpy())
        for subject, cam in zip(subjects, cams, strict=True)
    )
    return PlaceInImage(sample, image, point, views)


def _strongest_cam(subject: Subject, sample: Sample) -> Tensor | None:
    """Return the largest CAM over the image's tags, ``[S, S]`` in [0, 1]."""
    if subject.model is None or not sample.labels:
        return None
    prediction = next(predict(subject.model, [sample], subject.cam_scales, 1, sizes=[subject.square]))
    return prediction.cam.amax(dim=0).cpu()


def _strongest_point(cams: Sequence[Tensor]) -> Point:
    """Return the place where the sum of maps, each ``[S, S]``, is largest."""
    if not cams:
        return CENTRE
    side = min(len(cam) for cam in cams)
    total = torch.stack([resized(cam[None], (side, side))[0] for cam in cams]).sum(dim=0)
    row, column = divmod(int(total.argmax()), side)
    return (column + 0.5) / side, (row + 0.5) / side

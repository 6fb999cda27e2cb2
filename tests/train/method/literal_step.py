"""A training step by the plain formulae of docs/method.md: float64, slow, and nothing taken from the package.

The reference of ``test_whole_step.py``. Weights go by their published names. B images, C foreground classes, P patch.
Labels: 0 background, 1..C classes, 255 ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
IGNORED = 255
MASK_64 = (1 << 64) - 1


@dataclass(frozen=True)
class Settings:
    """What a step depends on beside weights and batch; named as in the project's configuration."""

    num_heads: int
    mean: Sequence[float]
    std: Sequence[float]
    loss_weights: Mapping[str, float]
    scales: Sequence[float]
    low: float
    high: float
    temperature: float
    num_local_crops: int
    local_crop_size: int
    negative_ratio: float
    sigma_rgb: float
    sigma_xy: float
    energy_scale: float
    decoder_dilation: int = 5
    aux_block: int = -3
    seg_from: str = "cam"


def literal_losses(weights: Weights, batch: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """Return every loss of a step and their weighted ``total``; ``batch`` has the fields of the project's ``Batch``."""
    images, view2, rendering = (normalised(batch[name], settings) for name in ("view1", "view2", "local"))
    labels, boxes = batch["image_labels"].double(), batch["boxes"].tolist()
    height, width = images.shape[-2:]
    cls_token, final, aux = vit(weights, images, settings)
    cam, aux_cam = multi_scale_cams(weights, images, settings)
    cam, aux_cam = (each * labels[:, :, None, None] for each in (cam, aux_cam))
    pseudo_label = torch.stack([
        refined_label(image.double() / 255, own, known.nonzero().flatten().tolist(), box, settings)
        for image, own, known, box in zip(
            batch["view1"], cam if settings.seg_from == "cam" else aux_cam, labels, boxes, strict=True
        )
    ])  # fmt: skip
    logits = resized(decoder(weights, final, settings), (height, width))
    positive, projections, teacher = [], [], []
    for index, seed in enumerate(batch["seeds"].tolist()):
        corners, flags = crop_corners(aux_cam[index], seed, settings)
        side = settings.local_crop_size
        crops = torch.stack([rendering[index, :, top : top + side, left : left + side] for top, left in corners])
        tokens = [cls_token[index], *vit(weights, view2[index][None], settings)[0], *vit(weights, crops, settings)[0]]
        projections.append(torch.stack([project(weights, "proj_head", token) for token in tokens]))
        with torch.no_grad():
            teacher.append(torch.stack([project(weights, "proj_head_t", token) for token in tokens[:2]]))
        positive.append([True, True, *flags])
    parts = {
        "cls": soft_margin(weights, "classifier", final, labels),
        "aux_cls": soft_margin(weights, "aux_classifier", aux, labels),
        "ptc": patch_token_contrast(final, token_labels(aux_cam, boxes, final.shape[-2:], settings)),
        "ctc": class_token_contrast(projections, teacher, positive, settings.temperature),
        "seg": segmentation_loss(logits, pseudo_label),
        "reg": dense_energy(batch["view1"].double(), logits.softmax(dim=1), pseudo_label, boxes, settings),
    }
    return parts | {"total": sum(settings.loss_weights[name] * loss for name, loss in parts.items())}


def normalised(images: Tensor, settings: Settings) -> Tensor:
    """Bytes to [0, 1], then by each channel's mean and standard deviation."""
    return torch.stack([(images[:, c].double() / 255 - settings.mean[c]) / settings.std[c] for c in range(3)], dim=1)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``[B, K, h, w]`` bilinearly."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def vit(weights: Weights, images: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Return class token ``[B, D]``, final patch tokens and auxiliary patch tokens, each ``[B, D, h, w]``."""
    w = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    kernel, embedding = w["patch_embed.proj.weight"], w["pos_embed"]
    dim, patch = kernel.shape[0], kernel.shape[-1]
    depth = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    patches = F.conv2d(images, kernel, w["patch_embed.proj.bias"], stride=patch)
    grid = patches.shape[-2:]
    side = round((embedding.shape[1] - 1) ** 0.5)
    positions = embedding[:, 1:].transpose(1, 2).reshape(1, dim, side, side)
    positions = F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
    x = (patches + positions).flatten(2).transpose(1, 2)
    x = torch.cat([(w["cls_token"] + embedding[:, :1]).expand(len(x), -1, -1), x], dim=1)
    aux = x
    for index in range(depth):
        block = {k.removeprefix(f"blocks.{index}."): v for k, v in w.items() if k.startswith(f"blocks.{index}.")}
        normed = F.layer_norm(x, (dim,), block["norm1.weight"], block["norm1.bias"], eps=1e-6)
        joint = F.linear(normed, block["attn.qkv.weight"], block["attn.qkv.bias"])
        q, k, v = (part.unflatten(2, (settings.num_heads, -1)).transpose(1, 2) for part in joint.split(dim, dim=2))
        attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(dim=3)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, block["attn.proj.weight"], block["attn.proj.bias"])
        normed = F.layer_norm(x, (dim,), block["norm2.weight"], block["norm2.bias"], eps=1e-6)
        hidden = F.gelu(F.linear(normed, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(hidden, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        if index == depth + settings.aux_block:
            aux = x
    x = F.layer_norm(x, (dim,), w["norm.weight"], w["norm.bias"], eps=1e-6)
    final, aux = (tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in (x, aux))
    return x[:, 0], final, aux


def decoder(weights: Weights, tokens: Tensor, settings: Settings) -> Tensor:
    """Return segmentation logits ``[B, C + 1, h, w]``."""
    dilation = settings.decoder_dilation
    for name in ("decoder.conv6.weight", "decoder.conv7.weight"):
        tokens = F.conv2d(tokens, weights[name], padding=dilation, dilation=dilation).relu()
    return F.conv2d(tokens, weights["decoder.conv8.weight"])


def project(weights: Weights, head: str, token: Tensor) -> Tensor:
    """Return the projection of one class token, ``[D] -> [K]``."""
    for layer in (0, 2, 4):
        token = F.linear(token, weights[f"{head}.mlp.{layer}.weight"], weights[f"{head}.mlp.{layer}.bias"])
        token = F.gelu(token) if layer != 4 else token / token.norm()
    rows = weights[f"{head}.last_layer.weight_v"]
    return (weights[f"{head}.last_layer.weight_g"] * rows / rows.norm(dim=1, keepdim=True)) @ token


def soft_margin(weights: Weights, head: str, tokens: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin of the head on the largest value of each channel over the tokens."""
    logits = F.conv2d(tokens.amax(dim=(2, 3), keepdim=True), weights[f"{head}.weight"])[:, :, 0, 0]
    return -(labels * F.logsigmoid(logits) + (1 - labels) * F.logsigmoid(-logits)).mean()


@torch.no_grad()
def multi_scale_cams(weights: Weights, images: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Step 1: CAM and aux CAM of all classes, each ``[B, C, H, W]`` in [0, 1]."""
    size, patch = images.shape[-2:], weights["encoder.patch_embed.proj.weight"].shape[-1]
    sums = [0, 0]
    for scale in settings.scales:
        scaled = resized(images, [round(side * scale / patch) * patch for side in size])
        plain, mirrored = (vit(weights, each, settings)[1:] for each in (scaled, scaled.flip(-1)))
        for which, head in enumerate(("classifier", "aux_classifier")):
            one, other = (F.conv2d(each[which], weights[f"{head}.weight"]) for each in (plain, mirrored))
            strongest = torch.maximum(resized(one, size), resized(other.flip(-1), size))
            sums[which] = sums[which] + strongest.relu()
    cams = []
    for total in sums:
        least = total.amin(dim=(2, 3), keepdim=True)
        cams.append((total - least) / ((total - least).amax(dim=(2, 3), keepdim=True) + 1e-5))
    return cams[0], cams[1]


def token_labels(valid_cam: Tensor, boxes: Sequence[Sequence[int]], grid: Sequence[int], settings: Settings) -> Tensor:
    """Steps 2 and 3: the three-way label of each token, 255 where it is not wholly inside the image: ``[B, h, w]``."""
    patch = valid_cam.shape[-1] // grid[1]
    strongest, winner = resized(valid_cam, grid).max(dim=1)
    labels = torch.full(strongest.shape, IGNORED)
    labels[strongest <= settings.low] = 0
    sure = strongest > settings.high
    labels[sure] = winner[sure] + 1
    for label, (top, bottom, left, right) in zip(labels, boxes, strict=True):
        for row in range(grid[0]):
            for column in range(grid[1]):
                rows_inside = row * patch >= top and (row + 1) * patch <= bottom
                if not (rows_inside and column * patch >= left and (column + 1) * patch <= right):
                    label[row, column] = IGNORED
    return labels


def token_affinity(labels: Tensor) -> Tensor:
    """Step 3: 1 same label, 0 different, 255 unknown or the token itself: ``[B, h, w] -> [B, N, N]``."""
    flat = labels.flatten(1).tolist()
    return torch.tensor([
        [
            [IGNORED if i == j or IGNORED in (one, other) else int(one == other) for j, other in enumerate(image)]
            for i, one in enumerate(image)
        ]
        for image in flat
    ])  # fmt: skip


def patch_token_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Step 3, the loss: final tokens ``[B, D, h, w]`` and their labels ``[B, h, w]``."""
    tokens, affinity = features.flatten(2), token_affinity(labels)
    cosine = torch.einsum("bdi,bdj->bij", tokens, tokens) / (
        tokens.norm(dim=1)[:, :, None] * tokens.norm(dim=1)[:, None, :]
    )
    similarity = cosine.abs()
    same, different = similarity[affinity == 1], similarity[affinity == 0]
    return 0.5 * (1 - same.sum() / (len(same) + 1)) + 0.5 * different.sum() / (len(different) + 1)


def split_mix_64(seed: int, number: int) -> int:
    """The published generator in whole numbers: its output of that number, from 1."""
    state = (seed + number * 0x9E3779B97F4A7C15) & MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
    return state ^ (state >> 31)


def crop_corners(valid_cam: Tensor, seed: int, settings: Settings) -> tuple[list[tuple[int, int]], list[bool]]:
    """Step 4: top left corners of an image's local crops, and which of them are positives."""
    side = settings.local_crop_size
    strongest = valid_cam.amax(dim=0)
    region = torch.ones(strongest.shape, dtype=torch.float64)
    region[strongest <= settings.low], region[strongest >= settings.high] = 0, 2
    rows, columns = (length - side + 1 for length in region.shape)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    random = {place: split_mix_64(seed, number + 1) >> 2 for number, place in enumerate(places)}
    uncertain = [(row, column) for row, column in places if region[row + side // 2, column + side // 2] <= 1]
    drawn_from = uncertain if len(uncertain) >= settings.num_local_crops else places
    corners = sorted(drawn_from, key=random.__getitem__, reverse=True)[: settings.num_local_crops]
    means = [region[top : top + side, left : left + side].mean() for top, left in corners]
    return corners, [bool(mean > settings.negative_ratio) for mean in means]


def class_token_contrast(
    student: Sequence[Tensor], teacher: Sequence[Tensor], positive: Sequence[Sequence[bool]], temperature: float
) -> Tensor:
    """Step 4, the loss: for each image projections of its views ``[V, K]`` and of its two global views ``[2, K]``."""
    images = []
    for views, globals_, flags in zip(student, teacher, positive, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for one in globals_:
            alike = (views @ one / temperature).exp()
            negatives = sum(
                (alike[j] for j, flag in enumerate(flags) if not flag), torch.zeros((), dtype=torch.float64)
            )
            for j, flag in enumerate(flags):
                if flag:
                    total = total - (alike[j] / (alike[j] + negatives + 1e-4)).log()
            total = total - (1 / (1 + negatives + 1e-4)).log()
        images.append(total / 2 / (sum(flags) + 1e-4))
    return torch.stack(images).mean()


def neighbour_indices(height: int, width: int, row: int, column: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of each pixel's neighbour at an offset; beyond the edge the nearest pixel counts."""
    rows = (torch.arange(height) + row).clamp(0, height - 1)
    return rows[:, None], (torch.arange(width) + column).clamp(0, width - 1)[None]


def pixel_adaptive_refinement(image: Tensor, maps: Tensor) -> Tensor:
    """Step 5, PAR: an image ``[3, H, W]`` in [0, 1] and maps ``[K, H, W]``."""
    ring = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
    offsets = [(r * d, c * d) for d in (1, 2, 4, 8, 12, 24) for r, c in ring]
    places = [neighbour_indices(*image.shape[1:], row, column) for row, column in offsets]
    neighbours = torch.stack([image[:, rows, columns] for rows, columns in places])
    spread = neighbours.std(dim=0, unbiased=True) + 1e-8
    weights = (-(((neighbours - image).abs() / spread / 0.3) ** 2).mean(dim=1)).softmax(dim=0)
    distance = torch.tensor(offsets, dtype=torch.float64).norm(dim=1)
    weights = weights + 0.01 * (-((distance / (distance.std() + 1e-8) / 0.3) ** 2)).softmax(dim=0)[:, None, None]
    for _ in range(10):
        maps = sum(weight * maps[:, rows, columns] for weight, (rows, columns) in zip(weights, places, strict=True))
    return maps


@torch.no_grad()
def refined_label(
    image: Tensor, valid_cam: Tensor, present: Sequence[int], box: Sequence[int], settings: Settings
) -> Tensor:
    """Step 5 for one image: RGB in [0, 1] ``[3, H, W]``, its CAM ``[C, H, W]``, its classes from 0: ``[H, W]``."""
    size = image.shape[-2:]
    half = [side // 2 for side in size]
    small_image, small_cam = (resized(each[None], half)[0] for each in (image, valid_cam))
    names, runs = torch.tensor([0, *(index + 1 for index in present)]), {}
    for background in (settings.high, settings.low):
        scores = torch.stack([torch.full(half, background, dtype=torch.float64), *(small_cam[c] for c in present)])
        maps = pixel_adaptive_refinement(small_image, scores.softmax(dim=0))
        runs[background] = names[resized(maps[None], size)[0].argmax(dim=0)]
    label = torch.full(size, IGNORED)
    label[(runs[settings.high] == 0) & (runs[settings.low] == 0)] = 0
    foreground = runs[settings.high] > 0
    label[foreground] = runs[settings.high][foreground]
    label[~inside(box, size)] = IGNORED
    return label


def inside(box: Sequence[int], size: Sequence[int]) -> Tensor:
    """Which pixels a box (top, bottom, left, right) holds: bool ``[H, W]``."""
    top, bottom, left, right = box
    mask = torch.zeros(tuple(size), dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Step 6: logits ``[B, C + 1, H, W]``, labels ``[B, H, W]``."""
    per_pixel = -logits.log_softmax(dim=1).gather(1, labels.where(labels != IGNORED, 0)[:, None])[:, 0]
    kinds = (per_pixel[labels == 0], per_pixel[(labels > 0) & (labels != IGNORED)])
    return 0.5 * sum(kind.mean() for kind in kinds if len(kind))


def dense_energy(
    images: Tensor, probabilities: Tensor, labels: Tensor, boxes: Sequence[Sequence[int]], settings: Settings
) -> Tensor:
    """Step 7: RGB in [0, 255] ``[B, 3, H, W]``, probabilities ``[B, C + 1, H, W]``; the whole kernel in memory."""
    size = [side // 2 for side in images.shape[-2:]]
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in size), indexing="ij")
    position = torch.stack([y, x]).flatten(1).T
    small = resized(probabilities, size)
    energies = []
    for index, box in enumerate(boxes):
        valid, unlabelled = (
            mask[::2, ::2].flatten() for mask in (inside(box, images.shape[-2:]), labels[index] == IGNORED)
        )
        s, colour = small[index].flatten(1), images[index, :, ::2, ::2].flatten(1).T
        kernel = torch.exp(
            -(torch.cdist(colour, colour) ** 2) / (2 * settings.sigma_rgb**2)
            - torch.cdist(position, position) ** 2 / (2 * (settings.sigma_xy / 2) ** 2)
        )
        gate = torch.where(unlabelled, 1.0, (1 - s.detach().amax(dim=0)).clamp(min=0))
        s = s * valid
        filtered = (gate * (s @ kernel)).detach()
        # The published gradient is -2 gate W S: that of the energy itself would hold W^T gate S, too.
        energies.append(-(s.detach() * filtered).sum() - 2 * ((s - s.detach()) * filtered).sum())
    return settings.energy_scale * torch.stack(energies).mean()


def moved_teacher(weights: Weights, momentum: float) -> dict[str, Tensor]:
    """The weights after the teacher's head has moved towards the student's."""
    moved = {
        name: momentum * value + (1 - momentum) * weights[name.replace("proj_head_t.", "proj_head.")]
        for name, value in weights.items()
        if name.startswith("proj_head_t.")
    }
    return {**weights, **{name: value.detach() for name, value in moved.items()}}

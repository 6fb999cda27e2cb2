"""The Vision Transformer: a timm model, or a small one spelled out, that takes images of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import timm
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from toco_core.errors import ConfigError, ImageSizeError
from toco_core.fitting import round_to_patches
from toco_core.text import nearest
from toco_train.config import ViTSpec
from toco_train.kernels.token_linear import use_token_linear
from toco_train.models.pretrained import load_backbone_weights

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Tokens:
    """The tokens that a backbone computes from images, float32.

    Attributes:
        cls_token: Class token after the final norm, ``[B, D]``.
        patch_tokens: Patch tokens after the final norm, ``[B, D, h, w]``.
        aux_tokens: Patch tokens of the auxiliary block, *without* the final norm, ``[B, D, h, w]``.
    """

    cls_token: Tensor
    patch_tokens: Tensor
    aux_tokens: Tensor


class Backbone(nn.Module):
    """A timm ``VisionTransformer`` that returns intermediate tokens and takes images of any multiple of the patch size.

    The patch part of the position embedding is resized bicubically *without antialias* (TensorRT rejects an
    antialiased Resize); its class part is added unchanged.

    Attributes:
        activation_checkpointing: Keep only the tokens between blocks for the backward pass, which computes each block
            again: a third more work in forward and backward, for less memory.

    Source: docs/method.md, network.
    """

    activation_checkpointing = False

    def __init__(self, vit: VisionTransformer, aux_block: int) -> None:
        super().__init__()
        use_token_linear(vit.blocks)
        self.vit = vit
        self.aux_block = range(len(vit.blocks))[aux_block]
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.width: int = vit.embed_dim
        rows, columns = vit.patch_embed.grid_size
        self.grid_size: tuple[int, int] = (rows, columns)

    def forward(self, images: Tensor) -> Tokens:
        """Return the tokens of normalised images, float ``[B, 3, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        tokens, grid = self._embed(images)
        aux_tokens = tokens
        for index, block in enumerate(self.vit.blocks):
            tokens = self._run_block(block, tokens)
            if index == self.aux_block:
                aux_tokens = tokens
        tokens = self.vit.norm(tokens)
        return Tokens(
            cls_token=tokens[:, 0],
            patch_tokens=self._as_map(tokens, grid),
            aux_tokens=self._as_map(aux_tokens, grid),
        )

    def class_token(self, images: Tensor) -> Tensor:
        """Return only the class tokens, ``[B, D]``, the same as ``forward`` does, without work for the other tokens.

        The last block's other tokens are not used, so its MLP, two thirds of the block's work, runs on the class token
        only.

        Args:
            images: Normalised images, float ``[B, 3, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        tokens, _ = self._embed(images)
        *blocks, last = self.vit.blocks
        for block in blocks:
            tokens = self._run_block(block, tokens)
        token: Tensor = self.vit.norm(self._run_block(partial(_class_token_of_block, last), tokens))
        return token

    @torch.no_grad()
    def patch_tokens_by_block(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the patch tokens after each block, and last those after the final norm, each ``[B, D, h, w]``.

        Args:
            images: Normalised images, float ``[B, 3, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        tokens, grid = self._embed(images)
        for block in self.vit.blocks:
            tokens = block(tokens)
            yield self._as_map(tokens, grid)
        yield self._as_map(self.vit.norm(tokens), grid)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks at their next call; all blocks share one graph for each shape of tokens."""
        for block in self.vit.blocks:
            block.compile(dynamic=False, backend=backend)

    def _run_block(self, block: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """Run a block on tokens ``[B, N, D]``; with checkpointing the backward pass computes its activations again."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            checkpointed: Tensor = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
            return checkpointed
        return block(tokens)

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the input of the first block, ``[B, 1 + h * w, D]``, and the grid of patches, h and w."""
        vit, patch = self.vit, self.patch_size
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise ImageSizeError(
                f"image is {height}x{width} px; both must be multiples of the patch size {patch}: "
                f"pad it to {-(-height // patch) * patch}x{-(-width // patch) * patch}"
            )
        rows, columns = height // patch, width // patch
        tokens = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return vit.norm_pre(tokens + self.position_embedding(rows, columns)), (rows, columns)

    def _as_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Drop the class token and reshape the others to a map: ``[B, 1 + h * w, D]`` -> ``[B, D, h, w]``."""
        return tokens[:, 1:].transpose(1, 2).reshape(-1, self.width, *grid)

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding for a grid of patches, ``[1, 1 + rows * columns, D]``."""
        embedding: Tensor = self.vit.pos_embed
        patches = embedding[0, 1:].view(*self.grid_size, self.width)
        device = embedding.device.type
        full_precision = (
            torch.autocast(device, enabled=False) if is_autocast_available(device) else contextlib.nullcontext()
        )
        with full_precision:
            patches = _bicubic_matrix(self.grid_size[0], rows, patches) @ patches.flatten(1)
            patches = _bicubic_matrix(self.grid_size[1], columns, patches) @ patches.view(rows, -1, self.width)
        return torch.cat([embedding[:, :1], patches.view(1, -1, self.width)], dim=1)


def scaled_sides(sides: Sequence[int], scale: float, patch_size: int) -> torch.Size:
    """Return image sides times a scale, each rounded to a multiple of the patch size, at least one patch."""
    return torch.Size(round_to_patches(side * scale, patch_size) for side in sides)


def _bicubic_matrix(number: int, size: int, like: Tensor) -> Tensor:
    """Return the matrix ``[size, number]`` that resizes one axis bicubically, as ``F.interpolate`` does.

    Matrix products are much faster on a GPU, where ``F.interpolate`` resizes one channel after another.
    """
    identity = torch.eye(number, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(identity, size=(size, number), mode="bicubic", align_corners=False)[0, 0]


def _class_token_of_block(block: Block, tokens: Tensor) -> Tensor:
    """Run a block for its class token only: ``[B, N, D]`` -> ``[B, D]``, equal to ``block(tokens)[:, 0]``."""
    attended = block.attn(block.norm1(tokens))[:, 0]
    token = tokens[:, 0] + block.drop_path1(block.ls1(attended))
    token = token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))
    return cast("Tensor", token)


def build_backbone(
    backbone: str | ViTSpec, *, pretrained: bool, weights: str | None = None, aux_block: int
) -> Backbone:
    """Build a backbone from a timm name or from a specification.

    Args:
        backbone: A timm name, or the dimensions of a small ViT.
        pretrained: Whether to start from timm's weights, downloaded once.
        weights: File of weights to start from instead (safetensors or a timm state dict); nothing is downloaded.
        aux_block: Block whose output gives the auxiliary tokens.

    Raises:
        ConfigError: timm does not know the name, the model is not a plain ViT with a class token, its weights could
            not be downloaded, or a specification cannot be pretrained.
        RunError: The file of weights cannot be read or does not fit the backbone.
    """
    download = pretrained and weights is None
    if isinstance(backbone, ViTSpec):
        if download:
            raise ConfigError("a backbone given by its numbers has no pretrained weights; name a timm model instead")
        vit = VisionTransformer(
            img_size=backbone.image_size,
            patch_size=backbone.patch_size,
            embed_dim=backbone.width,
            depth=backbone.depth,
            num_heads=backbone.num_heads,
            num_classes=0,
        )
    else:
        vit = _create_timm_model(backbone, download=download)
    if not -len(vit.blocks) <= aux_block < len(vit.blocks):
        raise ConfigError(f"aux_block {aux_block} does not exist: the backbone has {len(vit.blocks)} blocks")
    if weights is not None:
        load_backbone_weights(vit, Path(weights).expanduser())
    return Backbone(vit, aux_block)


def _create_timm_model(name: str, *, download: bool) -> VisionTransformer:
    """Create a plain ViT by its timm name."""
    _check_name(name)
    try:
        if download:
            _check_hub(name)
        vit = timm.create_model(name, pretrained=download, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds of errors if a download fails
        if not download:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"cannot get the pretrained weights of {name!r} ({reason}): connect to the network once, give a file with "
            "--weights FILE, or start from random weights with --no-pretrained"
        ) from error
    if not isinstance(vit, VisionTransformer) or vit.cls_token is None or vit.num_prefix_tokens != 1:
        raise ConfigError(f"{name!r} is not a plain ViT with one class token; try vit_base_patch16_224")
    return vit


def _check_name(name: str) -> None:
    """Refuse a model or a tag of weights that timm does not have, and suggest the nearest name."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models("*vit*") + timm.list_models("deit*")
        raise ConfigError(f"timm {timm.__version__} has no model {architecture!r}{nearest(architecture, known)}")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise ConfigError(
            f"timm {timm.__version__} has no weights {tag!r} of {architecture}{nearest(name, known)}; "
            f"it has {', '.join(sorted(each.partition('.')[2] for each in known)) or 'none'}"
        )


def _check_hub(name: str) -> None:
    """Ask the hub once for weights that are not cached: its own retries would take a minute to fail."""
    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if repository is None or any(isinstance(try_to_load_from_cache(repository, file), str) for file in HUB_FILES):
        return
    with contextlib.suppress(HfHubHTTPError):  # it answered; the download reports what is missing
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILES[0]), timeout=HUB_TIMEOUT_S)

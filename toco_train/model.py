"""The ToCo network: a ViT with two class heads, their class activation maps, a decoder and a projection head."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from toco.config import FrozenModel, parse_config, read_yaml
from toco.errors import RunError
from toco_train.backbone import Tokens, ViTSpec, build_backbone
from toco_train.heads import LargeFOV, ProjectionHead
from toco_train.weights import describe_misfit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"

_PUBLISHED_IMAGENET_HEAD = "encoder.head."
_PUBLISHED_PREFIXES = {
    "backbone.vit.": "encoder.",
    "teacher_projection.": "proj_head_t.",
    "projection.": "proj_head.",
}
_PUBLISHED_WEIGHT_NORM = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


class ModelConfig(FrozenModel):
    """The network, and what must be known to use it: class names, normalisation, size."""

    backbone: str | ViTSpec = Field(
        "vit_base_patch16_224.orig_in21k_ft_in1k", description="A timm name, or the numbers of a small ViT."
    )
    pretrained: bool = Field(True, description="Start from timm's weights (downloaded once).")
    weights: str | None = Field(
        None, description="File of backbone weights to start from, not timm's: safetensors or a timm state dict."
    )
    aux_block: int = Field(-3, description="Block whose output feeds the auxiliary head; negative counts from the end.")
    freeze_position_embedding: bool = Field(True, description="Keep the position embedding as it came.")
    decoder_channels: int = Field(512, gt=0, description="Channels of the segmentation decoder.")
    decoder_dilation: int = Field(5, gt=0, description="Dilation of its 3x3 convolutions, in tokens.")
    classes: tuple[str, ...] = Field((), description="Foreground class names, labels 1..C; filled in from the data.")
    image_size: int = Field(448, gt=0, description="Side of the training crop, in pixels; the size to serve at best.")
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="Mean of each channel, images in [0, 1].")
    std: tuple[float, float, float] = Field(IMAGENET_STD, description="Standard deviation of each channel.")

    @model_validator(mode="after")
    def _no_weights_for_a_specification(self) -> ModelConfig:
        if self.pretrained and self.weights is None and isinstance(self.backbone, ViTSpec):
            raise ValueError("a backbone given by its numbers cannot be pretrained: set pretrained: false")
        return self


@dataclass(frozen=True)
class ToCoOutput:
    """All that one forward pass gives, float; h = H / patch size, w = W / patch size, C foreground classes.

    Attributes:
        class_logits: Image-level logits of the final tokens, ``[B, C]``.
        aux_class_logits: Image-level logits of the auxiliary block's tokens, ``[B, C]``.
        seg_logits: Segmentation logits, ``[B, C + 1, h, w]``, background first.
        cam: Class activation map of the final tokens before ReLU, ``[B, C, h, w]``, without gradient.
        aux_cam: The same for the auxiliary block's tokens.
        cls_token: Class token after the final norm, ``[B, D]``.
        patch_tokens: Patch tokens after the final norm, ``[B, D, h, w]``.
    """

    class_logits: Tensor
    aux_class_logits: Tensor
    seg_logits: Tensor
    cam: Tensor
    aux_cam: Tensor
    cls_token: Tensor
    patch_tokens: Tensor


class ToCo(nn.Module):
    """Token Contrast network.

    Args:
        config: The network's configuration; ``config.classes`` names the C foreground classes.

    Raises:
        ConfigError: The backbone cannot be built, or its pretrained weights cannot be had.
        RunError: ``config.weights`` cannot be read or does not fit the backbone.
        ValueError: ``config.classes`` is empty.

    Source: ToCo (CVPR 2023), section 3; METHOD.md, network.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if not config.classes:
            raise ValueError("ModelConfig.classes is empty: a network needs the names of its foreground classes")
        self.config = config
        self.num_classes = len(config.classes)
        self.backbone = build_backbone(
            config.backbone, pretrained=config.pretrained, weights=config.weights, aux_block=config.aux_block
        )
        width = self.backbone.width
        self.classifier = nn.Conv2d(width, self.num_classes, 1, bias=False)
        self.aux_classifier = nn.Conv2d(width, self.num_classes, 1, bias=False)
        self.decoder = LargeFOV(
            width, self.num_classes + 1, channels=config.decoder_channels, dilation=config.decoder_dilation
        )
        self.projection = ProjectionHead(width)
        self.teacher_projection = copy.deepcopy(self.projection).requires_grad_(False)
        if config.freeze_position_embedding:
            self.backbone.vit.pos_embed.requires_grad_(False)

    @property
    def patch_size(self) -> int:
        """Side of a patch, in pixels: image sides must be multiples of it."""
        return self.backbone.patch_size

    def forward(self, images: Tensor) -> ToCoOutput:
        """Run the whole network on normalised images, float ``[B, 3, H, W]``.

        Raises:
            ImageSizeError: H or W is not a multiple of the patch size.
        """
        tokens: Tokens = self.backbone(images)
        cam, aux_cam = self._activation_maps(tokens)
        return ToCoOutput(
            class_logits=self.classifier(F.adaptive_max_pool2d(tokens.patch_tokens, 1)).flatten(1),
            aux_class_logits=self.aux_classifier(F.adaptive_max_pool2d(tokens.aux_tokens, 1)).flatten(1),
            seg_logits=self.decoder(tokens.patch_tokens),
            cam=cam,
            aux_cam=aux_cam,
            cls_token=tokens.cls_token,
            patch_tokens=tokens.patch_tokens,
        )

    @torch.no_grad()
    def activation_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return CAM and aux CAM before ReLU, each ``[B, C, h, w]``, without the decoder and without gradient."""
        return self._activation_maps(self.backbone(images))

    def segment(self, images: Tensor) -> Tensor:
        """Return segmentation logits alone, ``[B, C + 1, h, w]``: what is exported and served."""
        logits: Tensor = self.decoder(self.backbone(images).patch_tokens)
        return logits

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's projection head towards the student's: ``t = momentum * t + (1 - momentum) * s``."""
        self.teacher_projection.move_towards(self.projection, momentum)

    @torch.no_grad()
    def _activation_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        return self.classifier(tokens.patch_tokens), self.aux_classifier(tokens.aux_tokens)


def load_published_weights(model: ToCo, state_dict: Mapping[str, Tensor]) -> None:
    """Load a checkpoint of the published implementation, exactly.

    Args:
        model: Network of the same backbone and number of classes.
        state_dict: The published keys, with or without the ``module.`` prefix of data-parallel training. Its
            ``encoder.head`` (the ImageNet classifier, which segmentation does not use) is left out.

    Raises:
        RunError: A key is missing, left over, or has another shape; the model is left as it was.
    """
    found = {key.removeprefix("module."): value for key, value in state_dict.items()}
    found = {key: value for key, value in found.items() if not key.startswith(_PUBLISHED_IMAGENET_HEAD)}
    own = model.state_dict()
    if misfit := describe_misfit({_published_name(name): value for name, value in own.items()}, found):
        raise RunError(
            f"the published checkpoint does not fit this network: {misfit}; "
            "build the network with the backbone and the number of classes that it was trained with"
        )
    model.load_state_dict({name: found[_published_name(name)] for name in own})


def _published_name(ours: str) -> str:
    """Translate one of our keys to the published one."""
    for own, theirs in _PUBLISHED_PREFIXES.items():
        if ours.startswith(own):
            ours = theirs + ours.removeprefix(own)
            break
    for own, theirs in _PUBLISHED_WEIGHT_NORM.items():
        ours = ours.replace(own, theirs)
    return ours


def load_run(folder: str | Path) -> ToCo:
    """Load the network of a run folder, on the CPU, in evaluation mode.

    Args:
        folder: A folder with ``model.safetensors`` and ``config.yaml`` as ``toco-train`` writes them.

    Raises:
        RunError: A file is missing, or the weights do not fit the configuration.
        ConfigError: ``config.yaml`` is malformed.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} is not a finished run: it has no {name}; give the folder that toco-train --out wrote"
            )
    values = read_yaml(folder / CONFIG_FILE).get("model", {})
    config = parse_config(ModelConfig, values, f"'model' in {folder / CONFIG_FILE}")
    with torch.device("meta"):  # no random weights are drawn first: those of the file take their place
        model = ToCo(config.model_copy(update={"pretrained": False, "weights": None}))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE), assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE} beside it: {reason}") from error
    return model.float().eval()  # whatever type the file holds

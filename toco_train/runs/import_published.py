"""Checkpoints of the published implementation, turned into run folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
from safetensors.torch import save_file
from torch import Tensor

from toco_core.config import dump_yaml
from toco_core.errors import RunError
from toco_core.files import atomic_folder
from toco_train.config import ViTSpec, load_config
from toco_train.data.readers.voc import VOC_CLASSES
from toco_train.models.published_weights import load_published_weights
from toco_train.models.toco import ToCo
from toco_train.runs.layout import CONFIG_FILE, WEIGHTS_FILE

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
KNOWN_CLASSES = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}
_VIT_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}  # by width and depth


@dataclass(frozen=True)
class PublishedShape:
    """What the shapes of a published checkpoint say of its network.

    Attributes:
        backbone: timm name of the ViT of that size; None if no ViT of the usual sizes has it.
        num_classes: Number of foreground classes.
        description: The sizes in words.
    """

    backbone: str | None
    num_classes: int
    description: str


def published_shape(state_dict: Mapping[str, Tensor]) -> PublishedShape:
    """Work out backbone and number of classes of a published checkpoint.

    ViT-B and DeiT-B have the same shapes and compute the same: both are ``vit_base_patch16_224`` here.

    Raises:
        RunError: A tensor that tells them is missing: this is no ToCo checkpoint.
    """
    try:
        num_classes, width = state_dict["classifier.weight"].shape[:2]
        patch = state_dict["encoder.patch_embed.proj.weight"].shape[-1]
        grid = round((state_dict["encoder.pos_embed"].shape[1] - 1) ** 0.5)
    except KeyError as error:
        known = ", ".join(sorted(state_dict)[:3])
        raise RunError(
            f"this is no checkpoint of the published ToCo: it has no {error}, but {known}, ...; "
            "for the weights of a ViT alone use toco-train --weights"
        ) from error
    depth = len({key.split(".")[2] for key in state_dict if key.startswith("encoder.blocks.")})
    size = _VIT_SIZES.get((width, depth))
    name = f"vit_{size}_patch{patch}_{grid * patch}"
    return PublishedShape(
        backbone=name if timm.is_model(name) else None,
        num_classes=num_classes,
        description=f"width {width}, {depth} blocks, patch {patch}, made for {grid * patch} px",
    )


def import_published(
    state_dict: Mapping[str, Tensor], out: Path, *, backbone: str | ViTSpec, classes: tuple[str, ...]
) -> None:
    """Write a run folder, whole or not at all, that holds a published network.

    Its configuration is the recipe of the data set (COCO's for COCO's classes, else VOC's), so that thresholds and
    scales are those that the network was trained with.

    Args:
        state_dict: The published keys and tensors.
        out: The folder; what stands there is replaced.
        backbone: A timm name, or the numbers of a small ViT.
        classes: Foreground class names in label order.

    Raises:
        RunError: The weights do not fit the backbone and classes, or the folder cannot be written.
        ConfigError: The backbone cannot be built.
    """
    flags = {"model.backbone": backbone, "model.pretrained": False, "model.classes": classes}
    config = load_config("coco-vit-b" if classes == COCO_CLASSES else "voc-vit-b", None, flags)
    model = ToCo(config.model)
    load_published_weights(model, state_dict)
    config = config.model_copy(update={"model": config.model.model_copy(update={"sizes": model.sizes})})
    weights = {name: value.float().contiguous() for name, value in model.state_dict().items()}
    try:
        with atomic_folder(out) as folder:
            save_file(weights, folder / WEIGHTS_FILE)
            (folder / CONFIG_FILE).write_text(dump_yaml(config), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the run folder {out} ({error.strerror}); give another OUT") from error

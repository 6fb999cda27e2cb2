"""Every setting of a training run: default (the published recipe), range and meaning. Flags are made from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from toco_core.config import FrozenModel

SMALLEST_SCALE, LARGEST_SCALE = 0.25, 4.0


def _in_range(scales: tuple[float, ...]) -> tuple[float, ...]:
    if not all(SMALLEST_SCALE <= scale <= LARGEST_SCALE for scale in scales):
        raise ValueError(f"each scale must be between {SMALLEST_SCALE:g} and {LARGEST_SCALE:g}")
    return scales


Scales = Annotated[tuple[float, ...], Field(min_length=1), AfterValidator(_in_range)]


class ViTSpec(FrozenModel):
    """A plain ViT by its numbers, trained from scratch."""

    image_size: int = Field(96, gt=0, description="Image side for which the position embedding is made, in pixels.")
    patch_size: int = Field(8, gt=0, description="Side of a patch, in pixels.")
    width: int = Field(128, gt=0, description="Token dimension D.")
    depth: int = Field(12, gt=0, description="Number of blocks.")
    num_heads: int = Field(4, gt=0, description="Attention heads.")


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ModelConfig(FrozenModel):
    """The network, its classes, normalisation and image size."""

    backbone: str | ViTSpec = Field(
        "vit_base_patch16_224.orig_in21k_ft_in1k",
        title="NAME|YAML",
        description="A timm name, or the numbers of a small ViT: {image_size: 96, patch_size: 8, width: 128, depth: 12,"
        " num_heads: 4}.",
    )
    pretrained: bool = Field(True, description="Start from timm's weights (downloaded once).")
    weights: str | None = Field(
        None,
        title="FILE",
        description="File of backbone weights to start from, in place of timm's: safetensors or a timm state dict.",
    )
    aux_block: int = Field(-3, description="Block whose output feeds the auxiliary head; negative counts from the end.")
    freeze_position_embedding: bool = Field(True, description="Do not train the position embedding.")
    decoder_channels: int = Field(512, gt=0, description="Channels of the segmentation decoder.")
    decoder_dilation: int = Field(5, gt=0, description="Dilation of its 3x3 convolutions, in tokens.")
    classes: tuple[str, ...] = Field((), description="Foreground class names, labels 1..C; filled in from the data.")
    image_size: int = Field(
        448, gt=0, description="Side of the training crop, in pixels; also the longer side of sizes."
    )
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        (),
        description="Height and width of the sizes that images are fitted to when they are evaluated, labelled and "
        "served, each to the nearest in shape; filled in from image_size when a run starts.",
    )
    mean: tuple[float, float, float] = Field(IMAGENET_MEAN, description="Mean of each channel, images in [0, 1].")
    std: tuple[float, float, float] = Field(IMAGENET_STD, description="Standard deviation of each channel.")

    @model_validator(mode="after")
    def _no_weights_for_a_specification(self) -> ModelConfig:
        if self.pretrained and self.weights is None and isinstance(self.backbone, ViTSpec):
            raise ValueError("a backbone given by its numbers cannot be pretrained: set pretrained: false")
        return self


class DataConfig(FrozenModel):
    """Where the images are and how they are read."""

    path: str = Field(
        "",
        title="DIR",
        description="A VOC devkit, COCO, images/ with labels.csv, or a folder with one sub-folder per class.",
    )
    no_class: str | None = Field(
        None, title="NAME", description="Sub-folder or class that means that nothing is in the image."
    )
    group_by: str | None = Field(
        None,
        title="REGEX",
        description="Regular expression on file names; images with the same first group (or match) share a split.",
    )
    val_fraction: float = Field(
        0.2, gt=0, lt=1, description="Share of the images for validation, if the data has no split of its own."
    )
    coco_year: int | None = Field(None, title="YEAR", description="Year of COCO to use, if the folder holds several.")
    num_workers: int = Field(2, ge=0, description="Processes that read and augment images.")


class AugmentationConfig(FrozenModel):
    """Random geometry and colours of training images; the defaults are the published recipe."""

    fit_to_crop: bool = Field(False, description="First resize the image so that its longer side is that of the crop.")
    rescale: tuple[float, float] = Field((0.5, 2.0), description="Range of the random factor of the image size.")
    flip: float = Field(0.5, ge=0, le=1, description="Probability of a horizontal flip.")
    second_view_area: tuple[float, float] = Field((0.4, 1.0), description="Area of view 2 as a share of the image.")
    jitter: tuple[float, float, float, float] = Field(
        (0.4, 0.4, 0.2, 0.1), description="Brightness, contrast, saturation, hue jitter."
    )
    jitter_probability: float = Field(0.8, ge=0, le=1, description="Probability of the jitter.")
    grey: float = Field(0.2, ge=0, le=1, description="Probability of a grey rendering.")
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = Field((0.1, 2.0), description="Range of the blur's sigma, in px.")
    blur_view1: float = Field(1.0, ge=0, le=1, description="Probability of blur in view 1.")
    blur_view2: float = Field(0.1, ge=0, le=1, description="Probability of blur in view 2.")
    blur_local: float = Field(0.5, ge=0, le=1, description="Probability of blur in the local rendering.")
    solarize_view2: float = Field(0.2, ge=0, le=1, description="Probability that view 2 is solarised.")


class CamConfig(FrozenModel):
    """Class activation maps, and the thresholds that turn them into labels."""

    scales: Scales = Field((1.0, 0.5, 1.5), description="Image scales whose CAMs are added up, each also flipped.")
    low: float = Field(0.25, ge=0, le=1, description="At or below: background.")
    background: float = Field(0.5, ge=0, le=1, description="Threshold of background in evaluation.")
    high: float = Field(0.7, ge=0, le=1, description="Above: foreground. Between low and high: ignored.")


class ContrastConfig(FrozenModel):
    """Class-token contrast (CTC)."""

    temperature: float = Field(0.5, gt=0, description="Softmax temperature tau.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of the teacher's moving average.")
    num_local_crops: int = Field(8, gt=0, description="Local crops per image.")
    local_crop_size: int = Field(96, gt=0, description="Their side in pixels, a multiple of the patch size.")
    negative_ratio: float = Field(
        0.2, ge=0, le=2, description="A local crop is a negative if the mean of its region mask is at most this."
    )


class RegularizationConfig(FrozenModel):
    """Dense energy loss of the segmentation."""

    sigma_rgb: float = Field(15.0, gt=0, description="Kernel width in colour, in grey levels.")
    sigma_xy: float = Field(100.0, gt=0, description="Kernel width in position, in pixels at full size.")
    scale: float = Field(1e-7, ge=0, description="Factor that makes a sum over pixels a loss.")


class LossWeights(FrozenModel):
    """Weight of each loss in the total."""

    cls: float = Field(1.0, ge=0, description="Classification by the final tokens.")
    aux_cls: float = Field(1.0, ge=0, description="Classification by the auxiliary tokens.")
    ptc: float = Field(0.2, ge=0, description="Patch-token contrast.")
    ctc: float = Field(0.5, ge=0, description="Class-token contrast.")
    seg: float = Field(0.1, ge=0, description="Segmentation against the pseudo label.")
    reg: float = Field(0.05, ge=0, description="Dense energy.")


class Phase(FrozenModel):
    """Which losses are on from a step onwards; the two classification losses always are."""

    from_step: int = Field(ge=0, description="First step of the phase.")
    ptc: bool = True
    ctc: bool = True
    seg: bool = True
    reg: bool = True
    pseudo_label: Literal["cam", "aux_cam"] = Field("cam", description="What the segmentation learns from.")


class OptimizerConfig(FrozenModel):
    """AdamW and its schedule; the defaults are the published recipe."""

    lr: float = Field(6e-5, gt=0, description="Learning rate of the backbone.")
    head_lr_factor: float = Field(10.0, gt=0, description="Factor of the rate for heads, projection and decoder.")
    weight_decay: float = Field(0.01, ge=0, description="Decoupled weight decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the gradient's moments.")
    warmup_steps: int = Field(1500, ge=0, description="Steps of linear warm-up.")
    warmup_ratio: float = Field(1e-6, ge=0, le=1, description="Factor of the rate at step 0.")
    power: float = Field(0.9, gt=0, description="Power of the polynomial decay.")


class EvaluationConfig(FrozenModel):
    """When and how training evaluates the network."""

    every: int = Field(2000, gt=0, description="Steps between two evaluations.")
    max_images: int = Field(
        0, ge=0, description="Images per evaluation, evenly spread; 0: all. The last evaluation uses all."
    )
    batch_size: int = Field(4, gt=0, description="Images per batch.")


class CheckpointConfig(FrozenModel):
    """How often training is saved; it is also saved before and after an evaluation, at a stop and at the end."""

    every: int = Field(500, gt=0, description="Steps between two checkpoints.")
    keep: int = Field(
        1, gt=0, description="Number of newest checkpoints to keep; each is 3 times as large as the network."
    )


class TrainConfig(FrozenModel):
    """Everything that a run depends on; the defaults are the published recipe for VOC with ViT-B."""

    seed: int = Field(0, ge=0, description="Seed of weights, order and augmentation.")
    steps: int = Field(20_000, gt=0, description="Optimiser steps.")
    batch_size: int = Field(4, gt=0, description="Images per step, over all processes.")
    gradient_accumulation: int = Field(
        1, gt=0, description="Number of parts into which the images of a step are divided to save memory."
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Precision of matrix products.")
    compile: bool = Field(
        False, description="Compile the backbone's blocks at the first step; needs a C++ compiler, on a GPU Triton too."
    )
    cuda_graph: bool = Field(
        False, description="Capture forward and backward as one CUDA graph and replay it; needs one GPU."
    )
    activation_checkpointing: bool = Field(
        False,
        description="Compute activations again in the backward pass: less memory, more work.",
    )
    log_every: int = Field(10, gt=0, description="Steps between two lines in metrics.jsonl.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    cam: CamConfig = CamConfig()
    contrast: ContrastConfig = ContrastConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    weights: LossWeights = LossWeights()
    phases: tuple[Phase, ...] = Field(
        (Phase(from_step=0, seg=False, reg=False), Phase(from_step=2000)),
        description="Which losses are on from which step.",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        return "no" if value is False else value  # YAML reads an unquoted no as false

    @field_validator("phases")
    @classmethod
    def _phases_in_order(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        starts = [phase.from_step for phase in phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"phases must start at step 0 and follow in order, got from_step {starts}")
        return phases

    @model_validator(mode="after")
    def _local_crops_fit(self) -> TrainConfig:
        crop, size = self.contrast.local_crop_size, self.model.image_size
        if crop > size:
            raise ValueError(f"contrast.local_crop_size {crop} is larger than model.image_size {size}: make it smaller")
        places = (size - crop + 1) ** 2
        if places < self.contrast.num_local_crops:
            raise ValueError(
                f"contrast.num_local_crops {self.contrast.num_local_crops} is more than the {places} places that a "
                f"crop of {crop} has in {size} pixels: make contrast.local_crop_size smaller"
            )
        return self

    def phase_at(self, step: int) -> Phase:
        """Return the phase that a step (from 0) belongs to."""
        return [phase for phase in self.phases if phase.from_step <= step][-1]

"""The manifest of a model repository: what was exported, from what, how well it agrees, and what serves it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from toco_core.config import FrozenModel
from toco_core.errors import ServeError
from toco_core.files import write_atomic

MANIFEST_FILE = "manifest.json"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
Backend = Literal["python", "tensorrt", "onnxruntime"]


class Artefact(FrozenModel):
    """One file that a runtime can execute."""

    file: str = Field(description="File name in the version folder of the model 'toco', e.g. model.fp16.onnx.")
    format: Literal["onnx", "onnx-data", "tensorrt", "tensorrt-rtx"] = Field(
        description="What executes it; 'onnx-data' holds the weights of an ONNX file that is too large for one."
    )
    precision: Precision = Field(description="Precision of its matrix products, read back from the artefact.")
    kept_fp32: tuple[str, ...] = Field((), description="Layers left in fp32, which would overflow or lose the mask.")
    num_bytes: int = Field(gt=0, description="Size of the file.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Checksum of the file.")


class Shape(FrozenModel):
    """One corner of the range of inputs."""

    batch: int = Field(gt=0, description="Images in a batch.")
    height: int = Field(gt=0, description="Image height in pixels.")
    width: int = Field(gt=0, description="Image width in pixels.")


class Profile(FrozenModel):
    """The range of inputs that the artefacts take, and the one that they are tuned for."""

    min: Shape
    opt: Shape
    max: Shape


class Parity(FrozenModel):
    """How well an artefact's answers agree with PyTorch's at one size, on real images.

    Logits are those at the patches' stride; what nothing here can read (an engine's) is missing.
    """

    file: str = Field(description="The artefact, or e.g. 'torch-fp16' where no runtime here computes in fp16.")
    shape: Shape
    num_images: int = Field(gt=0, description="Images compared.")
    mask_agreement: float = Field(ge=0, le=1, description="Share of pixels with the same label.")
    mean_iou: float = Field(1.0, ge=0, le=1, description="Mean IoU between the masks over the labels of either.")
    num_labels: int = Field(2, gt=0, description="Different labels in its masks: 1 is a collapse.")
    max_confidence_difference: int = Field(ge=0, le=255, description="Largest difference of confidence, of 255.")
    max_logit_difference: float | None = Field(None, description="Largest difference of a logit.")
    mean_logit_difference: float | None = Field(None, description="Mean difference of the logits.")
    max_logit: float | None = Field(None, description="Largest magnitude of PyTorch's logits.")
    latency_ms: float | None = Field(None, description="Time of one call with this batch, where it was measured.")


class SizeScores(FrozenModel):
    """What it costs that not all of the run's sizes are served: mIoU of the segmentation on the same images."""

    served: float = Field(ge=0, le=1, description="Images fitted to the sizes that are served.")
    run: float = Field(ge=0, le=1, description="Images fitted to all sizes of the run.")
    num_images: int = Field(gt=0, description="Images scored: validation images with masks, evenly spread.")


class Manifest(FrozenModel):
    """What ``manifest.json`` at the root of a model repository says.

    The served contract is the same for every artefact: input ``image`` uint8 ``[B, H, W, 3]`` RGB with H and W
    multiples of ``patch_size``; outputs ``mask`` uint8 ``[B, H, W]`` (0 background, 1..C) and ``confidence`` uint8
    ``[B, H, W]`` (255 times the winner's softmax).
    """

    schema_version: Literal[1] = 1
    classes: tuple[str, ...] = Field(min_length=1, description="Foreground class names, labels 1..C.")
    palette: tuple[tuple[int, int, int], ...] = Field(description="RGB of labels 0..C.")
    patch_size: int = Field(gt=0, description="Image sides must be multiples of it.")
    image_size: int = Field(gt=0, description="Side that the network was trained at, in pixels.")
    sizes: tuple[tuple[int, int], ...] = Field(
        (), description="Height and width of the sizes that toco_image fits images to, each to the nearest in shape."
    )
    size_scores: SizeScores | None = Field(
        None, description="Where those are not all of the run's sizes: the scores with either; missing: not computed."
    )
    backbone: str = Field(description="timm name, or a description of the small ViT.")
    opset: int = Field(gt=0, description="ONNX opset of the fp32 artefact; bf16 needs a later one.")
    profile: Profile
    artefacts: tuple[Artefact, ...]
    backend: Backend = Field("python", description="Triton's backend that executes the model 'toco'.")
    tensorrt_provider: bool = Field(
        False, description="Backend onnxruntime: TensorRT's execution provider runs the graph, before CUDA's."
    )
    tensorrt_workspace_gib: float | None = Field(
        None, gt=0, description="Most memory in GiB that layers of that provider may use; missing: all of the GPU's."
    )
    container: str | None = Field(
        None, description="Release of Triton, such as 26.06, in whose image engines were built."
    )
    parity: tuple[Parity, ...]
    versions: dict[str, str] = Field(description="Package name to version, of all that produced the artefacts.")
    created: str = Field(description="UTC time of the export, ISO 8601.")


def triton_image(release: str) -> str:
    """Return NVIDIA's image of a release of Triton, such as ``26.06``."""
    return f"nvcr.io/nvidia/tritonserver:{release}-py3"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a model repository."""
    write_atomic(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a model repository.

    Raises:
        ServeError: There is none, or it is of another schema.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ServeError(f"{folder} is not a model repository: it has no {MANIFEST_FILE}; make one with toco-export")
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise ServeError(f"{path} is not a manifest that this version reads ({first}); export the run again") from error

"""What to export, for which inputs, and what to check it with."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from toco_core.config import FrozenModel
from toco_core.errors import ConfigError, ExportError
from toco_core.fitting import Size, network_sizes
from toco_core.manifest import Backend, Profile, Shape

Exported = Literal["fp32", "fp16", "bf16", "int8"]
Engine = Literal["tensorrt-rtx", "tensorrt"]
Target = Literal["onnx", "tensorrt", "tensorrt-rtx", "auto"]

RELEASE = r"^2\d\.(0[1-9]|1[0-2])$"  # of Triton: year and month
MAX_BATCH = 8
SMALLEST_PATCHES = 4
_SHAPE = "batch and size: BATCHxSIDE or BATCHxHEIGHTxWIDTH"


class ExportConfig(FrozenModel):
    """What to export, for which inputs, and what to check it with."""

    precisions: tuple[Exported, ...] = Field(
        ("fp32",), description="Precisions to export; the fp32 ONNX file, which every machine runs, is always written."
    )
    target: Target = Field(
        "auto",
        description="ONNX files alone, or an engine of each precision too; auto: one if its library is installed.",
    )
    min: Shape | None = Field(
        None,
        title="SHAPE",
        description=f"Smallest {_SHAPE}; without it one image, a square of {SMALLEST_PATCHES} patches.",
    )
    opt: Shape | None = Field(
        None, title="SHAPE", description=f"Tuned {_SHAPE}; without it one image of the run's size."
    )
    max: Shape | None = Field(
        None, title="SHAPE", description=f"Largest {_SHAPE}; without it {MAX_BATCH} images of twice the tuned size."
    )
    static: bool = Field(False, description="Fix height and width at those of opt; the batch stays variable.")
    images: Path | None = Field(
        None, title="DIR", description="Folder of real images to check with, in place of the run's data set."
    )
    num_images: int = Field(16, gt=0, description="Images to check with; for int8 as many others to calibrate with.")
    max_drop: float = Field(
        0.5,
        gt=0,
        lt=100,
        title="POINTS",
        description="int8: per cent of pixels whose label may differ from PyTorch's; costlier layers stay fp32.",
    )
    workspace_gib: float | None = Field(
        None, gt=0, title="GIB", description="Most memory for an engine's layers, beside its weights; without it, all."
    )
    timing_cache: Path | None = Field(
        None, title="FILE", description="File of TensorRT's kernel timings to reuse and add to."
    )
    in_container: str | None = Field(
        None,
        title="RELEASE",
        description="Build TensorRT engines with docker inside NVIDIA's Triton image of a release, such as 26.06: an "
        "engine is loaded only by the TensorRT that built it.",
    )
    backend: Literal["auto", "python", "onnxruntime", "onnxruntime-tensorrt", "tensorrt"] = Field(
        "auto",
        description="Backend of Triton that executes the network; auto: tensorrt if there is such an engine, else "
        "python, which runs everywhere; onnxruntime-tensorrt: TensorRT builds an engine from the ONNX file on the "
        "machine that serves it.",
    )
    portable: bool = Field(
        False, description="Build a TensorRT engine for other GPUs and later versions too, somewhat slower."
    )

    @field_validator("min", "opt", "max", mode="before")
    @classmethod
    def _shape_of_text(cls, value: object) -> object:
        """Read ``BATCHxSIDE`` or ``BATCHxHEIGHTxWIDTH``."""
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", value):
            raise ValueError("not a batch and size; give BATCHxSIDE or BATCHxHEIGHTxWIDTH, such as 8x448")
        batch, height, *width = map(int, value.split("x"))
        return Shape(batch=batch, height=height, width=width[0] if width else height)

    @field_validator("in_container")
    @classmethod
    def _release_of_triton(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(RELEASE, value):
            raise ValueError("not a release of Triton; give year and month, such as 26.06")
        return value


def resolve_backend(config: ExportConfig, engine: Engine | None) -> Backend:
    """Return which backend of Triton executes the network.

    Raises:
        ConfigError: Triton's backend for TensorRT is asked for, and no engine for it.
    """
    if config.backend == "tensorrt" and engine != "tensorrt":
        raise ConfigError("--backend tensorrt serves an engine of TensorRT; add --target tensorrt, or leave it out")
    if config.backend == "auto":
        return "tensorrt" if engine == "tensorrt" else "python"
    if config.backend == "onnxruntime-tensorrt":
        return "onnxruntime"
    return config.backend


def resolve_profile(config: ExportConfig, patch_size: int, sizes: Sequence[Size]) -> tuple[Profile, tuple[Size, ...]]:
    """Return the range of inputs, what was not given filled in, and the sizes in it that images are fitted to.

    Args:
        config: What was given.
        patch_size: The run's.
        sizes: Height and width of the run's sizes. Where the tuned size is none of them, those with its longer side
            take their place.

    Raises:
        ExportError: A size is not a multiple of the patch size, or the three are not in order.
    """
    height, width = max(sizes, key=math.prod)
    opt = config.opt or Shape(batch=1, height=height, width=width)
    tuned = (opt.height, opt.width)
    if tuned not in sizes:
        sizes = sorted({tuned, *network_sizes(max(tuned), patch_size)})
    smallest, longest = min(SMALLEST_PATCHES * patch_size, *map(min, sizes)), max(map(max, sizes))
    profile = Profile(
        min=config.min or Shape(batch=1, height=smallest, width=smallest),
        opt=opt,
        max=config.max
        or Shape(
            batch=max(MAX_BATCH, opt.batch), height=max(2 * opt.height, longest), width=max(2 * opt.width, longest)
        ),
    )
    if config.static:
        fixed = {"height": opt.height, "width": opt.width}
        profile = Profile(min=profile.min.model_copy(update=fixed), opt=opt, max=profile.max.model_copy(update=fixed))
    _check_profile(profile, patch_size)
    return profile, tuple(size for size in sizes if _holds(profile, size))


def _holds(profile: Profile, size: Size) -> bool:
    """Tell whether a size is in the range of inputs."""
    height, width = size
    low, high = profile.min, profile.max
    return low.height <= height <= high.height and low.width <= width <= high.width


def _check_profile(profile: Profile, patch_size: int) -> None:
    for name in ("height", "width"):
        for flag in ("min", "opt", "max"):
            size = getattr(getattr(profile, flag), name)
            if size % patch_size:
                down, up = size // patch_size * patch_size, -(-size // patch_size) * patch_size
                raise ExportError(
                    f"--{flag} has the {name} {size}, which is not a multiple of the patch size {patch_size}; "
                    f"give {f'{down} or ' if down else ''}{up}"
                )
    for name in ("batch", "height", "width"):
        low, middle, high = (getattr(shape, name) for shape in (profile.min, profile.opt, profile.max))
        if not low <= middle <= high:
            raise ExportError(
                f"the {name} of --min, --opt, --max is {low}, {middle}, {high}; give them in rising order"
            )

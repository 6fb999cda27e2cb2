"""What to export, for which inputs, and what to check it with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

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


class ExportConfig(FrozenModel):
    """What to export, for which inputs, and what to check it with."""

    precisions: tuple[Exported, ...] = Field(
        ("fp32",), description="Precisions to export; the fp32 ONNX file, which every machine runs, always comes along."
    )
    target: Target = Field("auto", description="What executes it: ONNX Runtime alone, or an engine of each precision.")
    min: Shape | None = Field(None, description="Smallest batch and size; default: one image, a square of 4 patches.")
    opt: Shape | None = Field(None, description="The ones that are tuned for; default: one image of the run's size.")
    max: Shape | None = Field(None, description="Largest batch and size; default: 8 images, twice the tuned size.")
    static: bool = Field(False, description="Fix height and width at those of opt; batches stay open.")
    images: Path | None = Field(None, description="Folder of real images to check with; default: the run's data set.")
    num_images: int = Field(16, gt=0, description="Images taken from it; for int8 as many others to calibrate with.")
    max_drop: float = Field(
        0.5, gt=0, lt=100, description="int8: percentage points of the pixels whose label may differ from PyTorch fp32."
    )
    workspace_gib: float | None = Field(
        None, gt=0, description="Most memory that an engine's layers may use beside its weights; default: all there is."
    )
    timing_cache: Path | None = Field(None, description="File of kernel timings to reuse and add to.")
    in_container: str | None = Field(
        None,
        pattern=RELEASE,
        description="Release of Triton, such as 26.06: TensorRT engines are built inside NVIDIA's image of it.",
    )
    backend: Literal["auto", "python", "onnxruntime", "onnxruntime-tensorrt", "tensorrt"] = Field(
        "auto",
        description="Triton's backend for the network; auto: tensorrt where there is such an engine, else python; "
        "onnxruntime-tensorrt: onnxruntime, which lets TensorRT build an engine as it loads the ONNX file.",
    )
    portable: bool = Field(False, description="An engine for other GPUs and later versions too, somewhat slower.")


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


def parse_shape(text: str) -> Shape:
    """Read ``BATCHxSIDE`` or ``BATCHxHEIGHTxWIDTH``, such as ``8x448`` or ``1x448x640``.

    Raises:
        ConfigError: It is neither.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise ConfigError(f"{text!r} is no batch and size; give BATCHxSIDE or BATCHxHEIGHTxWIDTH, such as 8x448")
    batch, height, *width = map(int, text.split("x"))
    return Shape(batch=batch, height=height, width=width[0] if width else height)


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
    longest = max(map(max, sizes))
    opt = config.opt or Shape(batch=1, height=longest, width=longest)
    tuned = (opt.height, opt.width)
    if tuned not in sizes:
        longest = max(tuned)
        sizes = sorted({tuned, *network_sizes(longest, patch_size)})
    smallest = min(SMALLEST_PATCHES * patch_size, *map(min, sizes))
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

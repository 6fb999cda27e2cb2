"""How well the exported artefacts agree with PyTorch in fp32, on real images, at several sizes and batches.

An fp16 TensorRT engine needs a GPU to run, so two stand-ins speak for it. ONNX Runtime on the CPU runs the fp16 ONNX
file, but computes in fp32: it has no fp16 matrix products there, casts around them and drops the casts that cancel
(1.31; seen in its optimised graph). That checks the file, and that rounding the weights does no harm; it cannot
overflow. PyTorch's fp16 network on the CPU ("torch-fp16") does round and overflow after every operation, as the
engine does, and is held to the same standard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.table import Table

from toco.errors import ExportError
from toco.manifest import Parity, Precision, Shape
from toco.palette import UInt8Array
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel
from toco_export.images import load_images

# Which size each image in turn is for: the full size costs several times what the others do, so it gets fewer.
DEAL = (0, 1, 0, 1, 2)

MIN_AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.995}

Answer = tuple[UInt8Array, UInt8Array]
Segmenter = Callable[[UInt8Array], Answer]


class ParityError(ExportError):
    """An artefact works, but its masks are not those of the network that was trained."""


@dataclass(frozen=True)
class Candidate:
    """Something whose answers must agree with PyTorch's.

    Attributes:
        name: File name of the artefact, or ``torch-fp16``.
        precision: Precision of its matrix products; sets how well it must agree.
        open: Makes it ready to run: images uint8 ``[B, H, W, 3]`` -> mask and confidence, uint8 ``[B, H, W]``.
    """

    name: str
    precision: Precision
    open: Callable[[], Segmenter]


def parity_cases(files: Sequence[Path], image_size: int, patch_size: int) -> list[UInt8Array]:
    """Deal real images out over three sizes and two batch sizes each.

    Args:
        files: The images; each is used once, more often only if they are too few.
        image_size: Side that the network was trained at, a multiple of ``patch_size``.
        patch_size: Image sides are multiples of it.

    Returns:
        Batches, uint8 ``[B, H, W, 3]``: at half the size, at a size that is not square, and at ``image_size``; first
        one image alone, then the others of that size together.
    """
    half = image_size // 2 // patch_size * patch_size or image_size + patch_size
    sizes = ((half, half), (half, half + 2 * patch_size), (image_size, image_size))
    cases: list[UInt8Array] = []
    for index, (height, width) in enumerate(sizes):
        dealt = [file for turn, file in enumerate(files) if DEAL[turn % len(DEAL)] == index]
        images = load_images(dealt or files, height, width)
        cases += [images[:1], images[1:] if len(images) > 2 else np.concatenate([images, images])]
    return cases


def measure_parity(reference: Segmenter, candidates: Sequence[Candidate], cases: Sequence[UInt8Array]) -> list[Parity]:
    """Compare each candidate with the reference in each case; only one candidate is open at a time.

    Raises:
        ExportError: A candidate does not load or run.
    """
    expected = [reference(images) for images in cases]
    return [parity for candidate in candidates for parity in _compare(candidate, cases, expected)]


def require_parity(parities: Sequence[Parity], candidates: Sequence[Candidate]) -> None:
    """Check that every candidate agrees with PyTorch as well as its precision can.

    Raises:
        ParityError: One does not, at one size at least; the message names the worst.
    """
    required = {candidate.name: MIN_AGREEMENT[candidate.precision] for candidate in candidates}
    failed = [parity for parity in parities if parity.mask_agreement < required[parity.file]]
    if not failed:
        return
    worst = min(failed, key=lambda parity: parity.mask_agreement - required[parity.file])
    precision = next(candidate.precision for candidate in candidates if candidate.name == worst.file)
    remedy = (
        "the network overflows in fp16 or its classes are tied: export without --fp16, or train longer"
        if precision == "fp16"
        else "if the network is hardly trained its classes are tied: train longer; else report it"
    )
    shape = worst.shape
    raise ParityError(
        f"{worst.file} at {shape.height}x{shape.width}, batch {shape.batch}, gives the label of PyTorch fp32 for "
        f"{worst.mask_agreement:.2%} of the pixels, expected at least {required[worst.file]:.1%} "
        f"({len(failed)} of {len(parities)} comparisons fail); {remedy}"
    )


def parity_table(parities: Sequence[Parity]) -> Table:
    """Lay the figures out for a terminal."""
    table = Table(title="Agreement with PyTorch fp32", title_justify="left")
    for heading in ("artefact", "size", "batch", "same label", "confidence off by"):
        table.add_column(heading, justify="left" if heading == "artefact" else "right")
    for parity in parities:
        shape = parity.shape
        table.add_row(
            parity.file,
            f"{shape.height}x{shape.width}",
            str(shape.batch),
            f"{parity.mask_agreement:.3%}",
            f"{parity.max_confidence_difference} of 255",
        )
    return table


def torch_segmenter(served: ServedModel) -> Segmenter:
    """Run a served graph in PyTorch."""

    @torch.inference_mode()
    def segment(images: UInt8Array) -> Answer:
        mask, confidence = served(torch.from_numpy(np.ascontiguousarray(images)))
        return mask.numpy(), confidence.numpy()

    return segment


def onnx_segmenter(file: Path) -> Segmenter:
    """Run an ONNX file with ONNX Runtime on the CPU.

    Raises:
        ExportError: ONNX Runtime does not take the file, or fails to run it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session: Any = _or_export_error(
        file, lambda: onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    )

    def segment(images: UInt8Array) -> Answer:
        mask, confidence = _or_export_error(file, lambda: session.run(list(OUTPUT_NAMES), {INPUT_NAME: images}))
        return mask, confidence

    return segment


def _or_export_error(file: Path, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} does not run {file.name}: {reason}; install another version of it"
        ) from error


def _compare(candidate: Candidate, cases: Sequence[UInt8Array], expected: Sequence[Answer]) -> list[Parity]:
    segment = candidate.open()
    parities: list[Parity] = []
    for images, (mask, confidence) in zip(cases, expected, strict=True):
        other_mask, other_confidence = segment(images)
        num_images, height, width, _ = images.shape
        parities.append(
            Parity(
                file=candidate.name,
                shape=Shape(batch=num_images, height=height, width=width),
                num_images=num_images,
                mask_agreement=float(np.mean(mask == other_mask)),
                max_confidence_difference=int(np.abs(confidence.astype(np.int16) - other_confidence).max()),
            )
        )
    return parities

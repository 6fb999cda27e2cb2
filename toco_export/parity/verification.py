"""Whether the exported artefacts answer like PyTorch in fp32, on real images, at several sizes and batches.

A reduced TensorRT engine needs a GPU to run, so stand-ins speak for it. ONNX Runtime on the CPU runs the fp16 ONNX
file, but computes in fp32: it has no fp16 matrix products there, casts around them and drops the casts that cancel
(1.31; seen in its optimised graph). That checks the file, and that rounding the weights does no harm; it cannot
overflow. PyTorch's own reduced network on the CPU ("torch-fp16") does round and overflow after every operation, as the
engine does, and is held to the same standard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image

from toco_core.errors import ExportError
from toco_core.fitting import Size, fit_to_network
from toco_core.manifest import Parity, Precision, Shape
from toco_core.palette import UInt8Array
from toco_export.parity.images import load_images
from toco_export.runtimes import Answer, InferenceBackend

NUM_SIZES = 3  # that are compared

MIN_AGREEMENT: Mapping[Precision, float] = {"fp32": 0.9995, "fp16": 0.997, "bf16": 0.98}  # int8: the user's gate
MAX_FP32_LOGIT_ERROR = 1e-4  # of the largest magnitude


class ParityError(ExportError):
    """An artefact works, but its masks are not those of the network that was trained."""


@dataclass(frozen=True)
class Candidate:
    """Something whose answers must agree with PyTorch's.

    Attributes:
        name: File name of the artefact, or of a stand-in such as ``torch-fp16``.
        precision: Precision of its matrix products.
        min_agreement: Share of the pixels that must get the same label.
        open: Makes it ready to run.
        is_artefact: Whether it is what is served, so that its time is of interest.
    """

    name: str
    precision: Precision
    min_agreement: float
    open: Callable[[], InferenceBackend]
    is_artefact: bool = True


@dataclass(frozen=True, eq=False)
class WorstImage:
    """The image that a candidate labels least like PyTorch: RGB ``[H, W, 3]`` and masks ``[H, W]``, uint8."""

    image: UInt8Array
    expected: UInt8Array
    got: UInt8Array


@dataclass(frozen=True)
class Verification:
    """What was compared, and what came out.

    Attributes:
        parities: Figures of each candidate at each size and batch.
        worst: The worst image of each candidate.
        failures: What is wrong, one sentence each; empty if all is well.
    """

    parities: tuple[Parity, ...]
    worst: Mapping[str, WorstImage]
    failures: tuple[str, ...]


def verification_cases(files: Sequence[Path], sizes: Sequence[Size], opt: Size, max_batch: int) -> list[UInt8Array]:
    """Fit real images to sizes that are served, and make two batches of each size.

    Args:
        files: The images.
        sizes: Height and width of all sizes that are served.
        opt: The one that is tuned for.
        max_batch: The largest batch.

    Returns:
        Batches, uint8 ``[B, H, W, 3]``, the largest size last: for each of ``verification_sizes`` one image alone,
        then, where larger batches are allowed, the others of that size together. An image is fitted to its own size;
        a size that no image has borrows images from the one that most have.
    """
    fitted: dict[Size, list[UInt8Array]] = {}
    for image in load_images(files, sizes):
        fitted.setdefault((image.shape[0], image.shape[1]), []).append(image)
    chosen = verification_sizes({size: len(images) for size, images in fitted.items()}, sizes, opt)
    common = max(chosen, key=lambda size: len(fitted.get(size, ())))
    lenders = [common, *(size for size in chosen if size not in fitted)]
    for turn, size in enumerate(lenders[1:], start=1):
        borrowed = fitted[common][turn :: len(lenders)] or fitted[common]
        fitted[size] = [np.asarray(fit_to_network(Image.fromarray(image), [size])) for image in borrowed]
    fitted[common] = fitted[common][:: len(lenders)]
    cases: list[UInt8Array] = []
    for size in chosen:
        images = np.stack(fitted[size])
        more = images[1:] if len(images) > 2 else np.concatenate([images, images])
        cases += [images[:1]] if max_batch == 1 else [images[:1], more[:max_batch]]
    return cases


def verification_sizes(counts: Mapping[Size, int], sizes: Sequence[Size], opt: Size) -> list[Size]:
    """Return up to three of the sizes that are served, the largest last.

    They are the tuned size, those that most images have (``counts``), and where that is fewer than three, the smallest.
    """
    common = sorted(counts, key=lambda size: -counts[size])
    smallest = sorted(sizes, key=math.prod)
    return sorted(list(dict.fromkeys([opt, *common, *smallest]))[:NUM_SIZES], key=math.prod)


def verify(
    expected: Sequence[Answer],
    candidates: Sequence[Candidate],
    cases: Sequence[UInt8Array],
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Compare each candidate with PyTorch in each case; only one candidate is open at a time.

    Args:
        expected: What the network answers in PyTorch, in fp32, in each case.
        candidates: What must agree with it.
        cases: Real images, uint8 ``[B, H, W, 3]`` each.
        progress: Called with what is compared now.

    Raises:
        ExportError: A candidate does not load or run.
    """
    parities: list[Parity] = []
    worst: dict[str, WorstImage] = {}
    failures = [*_constant("PyTorch fp32", {int(label) for answer in expected for label in np.unique(answer.mask)})]
    for candidate in candidates:
        progress(candidate.name)
        segment = candidate.open()
        answers, times = zip(*_run(segment, cases, timed=candidate.is_artefact), strict=True)
        own = [
            compare(candidate.name, wanted, got, latency_ms=time)
            for wanted, got, time in zip(expected, answers, times, strict=True)
        ]
        parities += own
        worst[candidate.name] = _worst_image(cases, expected, answers)
        failures += judge(own, answers, candidate)
        del segment  # before the next is opened
    return Verification(tuple(parities), worst, tuple(failures))


def compare(name: str, expected: Answer, got: Answer, latency_ms: float | None = None) -> Parity:
    """Work out how well two answers to one batch agree."""
    num_images, height, width = expected.mask.shape
    with np.errstate(invalid="ignore"):
        difference = np.abs(expected.logits - got.logits)
    confidence = np.abs(expected.confidence.astype(np.int16) - got.confidence)
    return Parity(
        file=name,
        shape=Shape(batch=num_images, height=height, width=width),
        num_images=num_images,
        mask_agreement=float(np.mean(expected.mask == got.mask)),
        mean_iou=mean_iou(expected.mask, got.mask),
        num_labels=len(np.unique(got.mask)),
        max_confidence_difference=int(confidence.max()),
        max_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        max_logit=float(np.abs(expected.logits).max()),
        latency_ms=latency_ms,
    )


def mean_iou(one: UInt8Array, other: UInt8Array) -> float:
    """Return the mean IoU of two label maps over the labels that either has."""
    labels = np.union1d(one, other)
    return float(np.mean([np.sum((one == n) & (other == n)) / np.sum((one == n) | (other == n)) for n in labels]))


def judge(parities: Sequence[Parity], answers: Sequence[Answer], candidate: Candidate) -> list[str]:
    """Say what is wrong with a candidate, one sentence each: it always fails on NaN and on masks of one label."""
    name, required = candidate.name, candidate.min_agreement
    if not all(np.isfinite(answer.logits).all() for answer in answers):
        return [f"{name} gives NaN or infinite logits; {_remedy(candidate.precision)}"]
    failures = _constant(name, {int(label) for answer in answers for label in np.unique(answer.mask)})
    worst = min(parities, key=lambda parity: parity.mask_agreement)
    if worst.mask_agreement < required:
        failures.append(
            f"{name} at {worst.shape.height}x{worst.shape.width}, batch {worst.shape.batch}, gives the label of "
            f"PyTorch fp32 for {worst.mask_agreement:.3%} of the pixels, expected at least {required:.2%}; "
            f"{_remedy(candidate.precision)}"
        )
    error = max((p.max_logit_difference or 0) / (p.max_logit or math.inf) for p in parities)
    if candidate.precision == "fp32" and error > MAX_FP32_LOGIT_ERROR:
        failures.append(f"{name} has logits {error:.1e} of the largest magnitude away from PyTorch's, expected at most "
                        f"{MAX_FP32_LOGIT_ERROR:.0e}; {_remedy('fp32')}")  # fmt: skip
    return failures


def _constant(name: str, labels: set[int]) -> list[str]:
    if len(labels) > 1:
        return []
    return [f"{name} gives every pixel of all images the label {min(labels)}, which proves nothing; train longer, or "
            "give images of several classes with --images"]  # fmt: skip


def _remedy(precision: Precision) -> str:
    if precision == "fp32":
        return "if the network is hardly trained its classes are tied: train longer; else report it"
    return f"export without {precision}, check with images like those of training (--images), or train longer"


def _run(segment: InferenceBackend, cases: Sequence[UInt8Array], *, timed: bool) -> list[tuple[Answer, float | None]]:
    """Segment each case, and time those of one image, in milliseconds, once something of their size has run."""
    run = []
    warm: set[tuple[int, ...]] = set()
    for images in reversed(cases):  # of each size the larger batch comes first, and makes the single image warm
        time = None
        if not timed or len(images) > 1:
            answer = segment(images)
        else:
            if images.shape[1:] not in warm:
                segment(images)
            began = perf_counter()
            answer = segment(images)
            time = 1e3 * (perf_counter() - began)
        warm.add(images.shape[1:])
        run.append((answer, time))
    return run[::-1]


def _worst_image(cases: Sequence[UInt8Array], expected: Sequence[Answer], got: Sequence[Answer]) -> WorstImage:
    """Find the image with the largest share of pixels labelled otherwise."""
    triples = [
        WorstImage(image, wanted, found)
        for images, one, other in zip(cases, expected, got, strict=True)
        for image, wanted, found in zip(images, one.mask, other.mask, strict=True)
    ]
    return max(triples, key=lambda triple: float(np.mean(triple.expected != triple.got)))

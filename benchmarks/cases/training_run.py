"""One training step, ready to be timed, and what it is made of: its phases, their operations, the images it eats."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

import toco_train.method.objective
from benchmarks.cases.published_step import PlainTokenContrast, leave_products_to_pytorch, materialise_attention
from benchmarks.harness.images import write_images
from benchmarks.harness.peaks import DTYPES, Precision, tensor_float32
from benchmarks.harness.phase_clock import PhaseClock
from benchmarks.harness.timing import interleaved, synchronise
from toco_train.config import Phase, TrainConfig
from toco_train.data.augmentation import Augmentation
from toco_train.data.loader import Batch, training_batches
from toco_train.method.objective import Losses, ToCoObjective
from toco_train.models.toco import ToCo
from toco_train.training.cuda_graph import ForwardBackward, GraphedStep
from toco_train.training.optimizer import build_optimizer

Schedule = Literal["plain", "ours"]

NUM_CLASSES = 20
ALL_LOSSES = Phase(from_step=0)
REST = "other losses"


@dataclass(frozen=True)
class Variant:
    """One way to run a step. fp32 means TF32 is off for products and convolutions; tf32 that it is on for both."""

    schedule: Schedule
    precision: Precision
    materialised_attention: bool = False
    linear_as_in_pytorch: bool = False
    compiled: bool = False
    graphed: bool = False
    activation_checkpointing: bool = False

    def suits(self, device: torch.device) -> bool:
        """Whether it is worth a row: a CPU is too slow for other types, a GPU knows one linear layer."""
        if device.type == "cuda":
            return self.schedule == "ours" or self.linear_as_in_pytorch
        return self.precision == "fp32" and not self.graphed


class TrainingRun:
    """One variant, ready to step: its own copy of the network, its optimiser and its state."""

    def __init__(self, variant: Variant, config: TrainConfig, model: ToCo, batch: Batch) -> None:
        self.variant, self._config, self._batch = variant, config, batch
        self.model = copy.deepcopy(model)
        self.objective = build_objective(variant.schedule, config, self.model)
        self.model.backbone.activation_checkpointing = variant.activation_checkpointing
        if variant.materialised_attention:
            materialise_attention(self.model)
        if variant.linear_as_in_pytorch:
            leave_products_to_pytorch(self.model)
        if variant.compiled:
            self.model.backbone.compile_blocks()
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self._forward_backward: ForwardBackward = self._losses_and_gradients
        if variant.graphed:
            self._forward_backward = GraphedStep(self._losses_and_gradients, self.model.parameters())

    def forward(self, batch: Batch | None = None, phase: Phase = ALL_LOSSES) -> Losses:
        """Compute the losses."""
        autocast = torch.autocast(
            self._batch.view1.device.type, DTYPES[self.variant.precision], enabled=self.variant.precision == "bf16"
        )
        with autocast:
            losses: Losses = self.objective(batch or self._batch, phase)
        return losses

    def _losses_and_gradients(self, batch: Batch, phase: Phase) -> Losses:
        losses = self.forward(batch, phase)
        torch.autograd.backward(losses.total)
        return replace(losses, total=losses.total.detach())

    def update(self) -> None:
        """Move the weights and the teacher."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_teacher(self._config.contrast.momentum)

    def step(self) -> None:
        """Run one whole step."""
        with tensor_float32(self.variant.precision == "tf32"):
            self._forward_backward(self._batch, ALL_LOSSES)
            self.update()


def build_objective(schedule: Schedule, config: TrainConfig, model: ToCo) -> ToCoObjective:
    """Return the training objective of a schedule, on the device of the network."""
    kind = PlainTokenContrast if schedule == "plain" else ToCoObjective
    objective = kind(model, cam=config.cam, contrast=config.contrast, regularization=config.regularization,
                     weights=config.weights)  # fmt: skip
    return objective.to(model.classifier.weight.device).train()


def noise_batch(config: TrainConfig, device: torch.device) -> Batch:
    """Return a seeded batch of noise; image i names ``1 + i % 2`` classes and every pixel is image."""
    number, size = config.batch_size, config.model.image_size
    generator = torch.Generator().manual_seed(0)
    view1, view2, local = torch.randint(256, (3, number, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(number, NUM_CLASSES)
    for image in range(number):
        labels[image, torch.randperm(NUM_CLASSES, generator=generator)[: 1 + image % 2]] = 1
    boxes = torch.tensor([[0, size, 0, size]]).repeat(number, 1)
    names = tuple(str(image) for image in range(number))
    batch = Batch(view1, view2, local, boxes=boxes, image_labels=labels, seeds=torch.arange(number), names=names,
                  max_classes=min(number, 2))  # fmt: skip
    return batch.to(device)


def phase_seconds(run: TrainingRun, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Take steps of ours apart: the seconds of each phase in each of them."""
    steps = [_phases_of_one_step(run, device, time.perf_counter) for _ in range(repeats)]
    return {name: [step[name] for step in steps] for name in steps[0]}


def phase_flops(schedule: Schedule, config: TrainConfig, model: ToCo, batch: Batch) -> dict[str, float]:
    """Count the operations of each phase, with attention written out: the counter knows no fused CPU kernel.

    The plain schedule has one phase of losses: it does not call what is timed in ours.
    """
    run = TrainingRun(Variant(schedule, "fp32", materialised_attention=True), config, model, batch)
    with FlopCounterMode(display=False) as counter:
        return _phases_of_one_step(run, batch.view1.device, counter.get_total_flops)


def _phases_of_one_step(run: TrainingRun, device: torch.device, clock: Callable[[], float]) -> dict[str, float]:
    """Run one step with its parts replaced by timed ones: the step itself knows nothing of measurements."""
    phases, step_module, model = PhaseClock(device, clock), toco_train.method.objective, run.model
    parts = (("CAM", step_module, "multi_scale_cam"), ("forward", model, "forward"),
             ("forward", model.backbone, "class_token"), ("PAR and label", step_module, "refine_label"),
             ("dense energy", step_module, "dense_energy_loss"))  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(tensor_float32(run.variant.precision == "tf32"))
        for name, owner, attribute in parts:
            stack.enter_context(patch.object(owner, attribute, phases.timed(name, getattr(owner, attribute))))
        began = clock()
        total = run.forward().total
        synchronise(device)
        whole = clock() - began
    phases.seconds[REST] = whole - sum(phases.seconds.values())
    with tensor_float32(run.variant.precision == "tf32"):
        phases.timed("backward", torch.autograd.backward)(total)
        phases.timed("optimiser", run.update)()
    return dict(phases.seconds)


def loading_rate(config: TrainConfig, batches: int = 6) -> float:
    """Return the images a second that one loading process makes of photographs for this recipe: the median batch.

    The photographs are those of ``benchmarks/data_loading.py``; seconds of one thread count, so that what else the
    machine does falls out.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            augmentation = Augmentation(config.augmentation, config.model.image_size)
            stream = training_batches(
                write_images(Path(folder), 16), augmentation, batch_size=config.batch_size, num_workers=0, seed=0
            )
            next(stream)
            seconds = interleaved({"batch": partial(next, stream)}, torch.device("cpu"), batches, time.thread_time)
    finally:
        torch.set_num_threads(threads)
    return config.batch_size / seconds["batch"].median

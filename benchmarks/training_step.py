"""What a training step costs: ours beside the published order of computation, phase by phase.

    python -m benchmarks.training_step --backbone demo [--variants plain-fp32 ours-fp32] [--report FOLDER/NAME]
    python -m benchmarks.training_step --backbone vit_base_patch16_224 --size 448 --batch 4 --device cuda

A step is forward, all six losses, backward, AdamW and the teacher's average, on one seeded batch of noise that already
lies on the device. Variants take turns in one process. Weights are random.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import toco_train.step
from benchmarks.measuring import (
    DTYPES,
    PhaseClock,
    Precision,
    gemm_peak,
    interleaved,
    markdown_table,
    one_line,
    provenance,
    provenance_text,
    save_report,
    synchronise,
    tensor_float32,
)
from benchmarks.plain_schedule import PlainTokenContrast, materialise_attention
from toco.command import run_command
from toco_train.config import TrainConfig, load_config
from toco_train.data.loading import Batch
from toco_train.model import ToCo
from toco_train.optimization import build_optimizer
from toco_train.step import Phase, TokenContrast

NUM_CLASSES = 20
ALL_LOSSES = Phase(from_step=0)
WARMUP_STEPS = 2
RECOMPILE_LIMIT = 64  # a block sees five shapes in one step; the default gives up at eight


@dataclass(frozen=True)
class Variant:
    """One way to run a step. fp32 means TF32 is off for products and convolutions; tf32 that it is on for both."""

    schedule: Literal["plain", "ours"]
    precision: Precision
    materialised_attention: bool = False
    compiled: bool = False


VARIANTS = {
    "plain-materialised-fp32": Variant("plain", "fp32", materialised_attention=True),
    "plain-fp32": Variant("plain", "fp32"),
    "ours-fp32": Variant("ours", "fp32"),
    "plain-tf32": Variant("plain", "tf32"),
    "ours-tf32": Variant("ours", "tf32"),
    "ours-bf16": Variant("ours", "bf16"),
    "ours-bf16-compiled": Variant("ours", "bf16", compiled=True),
}
METHOD = """\
Variants take turns, step by step, in one process; each step is timed from the host with the device synchronised before
and after. Median over {repeats} rounds after {warmup} warm-up steps, with the quartiles. plain: the published order of
computation (benchmarks/plain_schedule.py), same loss functions; materialised: attention without a fused kernel; fp32:
TF32 off; tf32: on for products and convolutions; bf16: autocast; compiled: torch.compile of each ViT block alone, one
graph a shape. FLOPs: multiply-adds times 2 of products and convolutions, counted on one step with attention written
out (so nothing that a fused kernel recomputes counts). Peak: a square product of the same type, measured in this run.
Memory: the variant's own state and the most that one step allocates beside it. Phases: separate steps, synchronised
at every border, so their sum is more than the step above. Batch: noise, image i has {classes} classes; no loading."""


class TrainingRun:
    """One variant, ready to step: its own copy of the network, its optimiser and its state."""

    def __init__(self, variant: Variant, config: TrainConfig, model: ToCo, batch: Batch) -> None:
        self.variant, self._config, self._batch = variant, config, batch
        self.model = copy.deepcopy(model)
        self.objective = build_objective(variant.schedule, config, self.model)
        if variant.materialised_attention:
            materialise_attention(self.model)
        if variant.compiled:
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
            for block in self.model.backbone.vit.blocks:
                block.compile(dynamic=False)
        self.optimizer = build_optimizer(self.model, config.optimizer)

    def forward(self) -> torch.Tensor:
        """Compute the total loss."""
        autocast = torch.autocast(
            self._batch.view1.device.type, DTYPES[self.variant.precision], enabled=self.variant.precision == "bf16"
        )
        with autocast:
            total: torch.Tensor = self.objective(self._batch, ALL_LOSSES).total
        return total

    def update(self) -> None:
        """Move the weights and the teacher."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_teacher(self._config.contrast.momentum)

    def step(self) -> None:
        """Run one whole step."""
        with tensor_float32(self.variant.precision == "tf32"):
            total = self.forward()
            torch.autograd.backward(total)
            self.update()


def main(argv: Sequence[str] | None = None) -> int:
    """Time the variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--size", type=int, help="side of the training crop, in pixels (default: the recipe's)")
    parser.add_argument("--batch", type=int, help="images a step (default: the recipe's)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="rows (default: all; tf32 on a GPU only)")
    parser.add_argument("--report", type=Path, help="write the tables there, as .json and .md")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    names = arguments.variants or [n for n, v in VARIANTS.items() if device.type == "cuda" or v.precision != "tf32"]
    config = recipe(arguments.backbone, size=arguments.size, batch=arguments.batch)
    found = provenance(device, "benchmarks.training_step", argv)  # first: the load average is that before our own
    result = {"provenance": found, **measure(names, config, device, repeats=arguments.repeats)}
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what runs where."""
    parser.add_argument("--backbone", default="demo", help="timm name, or 'demo' for the small ViT of that preset")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")


def recipe(backbone: str, *, size: int | None = None, batch: int | None = None) -> TrainConfig:
    """Return the demo preset, or the published recipe with a timm backbone; random weights in both."""
    flags: dict[str, Any] = {"model.pretrained": False, "model.classes": [f"class{i}" for i in range(NUM_CLASSES)]}
    flags |= {} if backbone == "demo" else {"model.backbone": backbone}
    flags |= {} if size is None else {"model.image_size": size}
    flags |= {} if batch is None else {"batch_size": batch}
    return load_config("demo" if backbone == "demo" else None, None, flags)


def build_objective(schedule: Literal["plain", "ours"], config: TrainConfig, model: ToCo) -> TokenContrast:
    """Return the training objective of a schedule, on the device of the network."""
    kind = PlainTokenContrast if schedule == "plain" else TokenContrast
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
    seeds = torch.arange(number)
    return Batch(view1, view2, local, boxes=boxes, image_labels=labels, seeds=seeds, names=names).to(device)


def measure(names: Sequence[str], config: TrainConfig, device: torch.device, *, repeats: int) -> dict[str, Any]:
    """Time the variants against each other and take one of ours apart."""
    torch.manual_seed(config.seed)
    model, batch = ToCo(config.model).to(device), noise_batch(config, device)
    flops = {schedule: count_flops(schedule, config, model, batch)
             for schedule in ("plain", "ours") if any(VARIANTS[n].schedule == schedule for n in names)}  # fmt: skip
    runs: dict[str, TrainingRun] = {}
    left_out: dict[str, str] = {}
    state_bytes: dict[str, int] = {}
    for name in names:
        before = allocated_bytes(device)
        try:
            run = TrainingRun(VARIANTS[name], config, model, batch)
            for _ in range(WARMUP_STEPS):
                run.step()
        except Exception as error:  # no compiler on this machine, or too little memory: time the others
            left_out[name] = one_line(error)
            continue
        runs[name], state_bytes[name] = run, allocated_bytes(device) - before
    seconds = interleaved({name: run.step for name, run in runs.items()}, device, repeats)
    precisions: set[Precision] = {run.variant.precision for run in runs.values()}
    peaks = {precision: gemm_peak(device, precision) for precision in sorted(precisions)}
    return {
        "setting": {"backbone": str(config.model.backbone), "size": config.model.image_size,
                    "batch": config.batch_size, "repeats": repeats},
        "gemm_flops_per_second": peaks,
        "variants": {
            name: summary(
                seconds[name],
                flops=flops[run.variant.schedule],
                peak=peaks[run.variant.precision],
                memory=step_memory(run.step, device, state_bytes[name]),
            )
            for name, run in runs.items()
        },
        "phases": {name: phase_seconds(run, device, repeats)
                   for name, run in runs.items() if run.variant.schedule == "ours"},
        "left_out": left_out,
    }  # fmt: skip


def count_flops(schedule: Literal["plain", "ours"], config: TrainConfig, model: ToCo, batch: Batch) -> int:
    """Count the floating-point operations of one step, attention written out: the counter knows no fused CPU kernel."""
    run = TrainingRun(Variant(schedule, "fp32", materialised_attention=True), config, model, batch)
    with FlopCounterMode(display=False) as counter:
        run.step()
    return int(counter.get_total_flops())


def summary(seconds: Sequence[float], *, flops: int, peak: float, memory: dict[str, int] | None) -> dict[str, Any]:
    """Reduce the times of a variant to what the table shows; the times themselves stay in the JSON."""
    low, middle, high = (float(q) for q in np.percentile(seconds, [25, 50, 75]))
    return {"median_s": middle, "q1_s": low, "q3_s": high, "flops": flops, "flops_per_second": flops / middle,
            "share_of_gemm_peak": flops / middle / peak, "memory": memory, "seconds": list(seconds)}  # fmt: skip


def phase_seconds(run: TrainingRun, device: torch.device, repeats: int) -> dict[str, float]:
    """Take steps of ours apart: the median seconds of each phase."""
    steps = [_phases_of_one_step(run, device) for _ in range(repeats)]
    return {name: median(step[name] for step in steps) for name in steps[0]}


def _phases_of_one_step(run: TrainingRun, device: torch.device) -> dict[str, float]:
    """Run one step with its parts replaced by timed ones: the step itself knows nothing of measurements."""
    clock, step_module, model = PhaseClock(device), toco_train.step, run.model
    parts = (("CAM", step_module, "multi_scale_cam"), ("forward", model, "forward"),
             ("forward", model.backbone, "forward"), ("refinement and label", step_module, "refine_label"),
             ("dense energy", step_module, "dense_energy_loss"))  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(tensor_float32(run.variant.precision == "tf32"))
        for name, owner, attribute in parts:
            stack.enter_context(patch.object(owner, attribute, clock.timed(name, getattr(owner, attribute))))
        began = time.perf_counter()
        total = run.forward()
        synchronise(device)
        whole = time.perf_counter() - began
    clock.seconds["other losses"] = whole - sum(clock.seconds.values())
    with tensor_float32(run.variant.precision == "tf32"):
        clock.timed("backward", torch.autograd.backward)(total)
        clock.timed("optimiser", run.update)()
    return dict(clock.seconds)


def allocated_bytes(device: torch.device) -> int:
    """Return the bytes of live tensors on a GPU, 0 on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def step_memory(step: Callable[[], object], device: torch.device, state_bytes: int) -> dict[str, int] | None:
    """Return the bytes that a variant keeps between steps and the most that it needs within one, on a GPU."""
    if device.type != "cuda":
        return None
    before = allocated_bytes(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronise(device)
    return {"state": state_bytes, "peak": state_bytes + torch.cuda.max_memory_allocated(device) - before}


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables, with what they were measured on and how."""
    setting, variants = result["setting"], result["variants"]
    first = next(iter(variants), None)
    rows = []
    for name, found in variants.items():
        memory = found["memory"]
        rows.append([
            name,
            f"{1e3 * found['median_s']:.1f}",
            f"{1e3 * found['q1_s']:.1f} to {1e3 * found['q3_s']:.1f}",
            f"{variants[first]['median_s'] / found['median_s']:.2f}",
            f"{found['flops'] / 1e12:.3g}",
            f"{found['flops_per_second'] / 1e12:.3g}",
            f"{found['share_of_gemm_peak']:.0%}",
            "" if memory is None else f"{memory['peak'] / 2**30:.2f}",
        ])  # fmt: skip
    title = f"# Training step: {setting['backbone']}, {setting['size']} px, batch {setting['batch']}"
    headings = ("variant", "median, ms", "quartiles, ms", f"speed against {first}", "TFLOP a step", "TFLOP/s",
                "of the product peak", "peak memory, GiB")  # fmt: skip
    text = [title, provenance_text(result["provenance"]), markdown_table(headings, rows)]
    if result["phases"]:
        phases = {phase: None for times in result["phases"].values() for phase in times}
        cells = [[phase, *(f"{1e3 * times[phase]:.1f}" for times in result["phases"].values())] for phase in phases]
        text.append(markdown_table(("phase of ours, ms", *result["phases"]), cells))
    peaks = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in result["gemm_flops_per_second"].items())
    text.append(f"Peak of a square product, TFLOP/s: {peaks}.")
    text += [f"Left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    text.append(METHOD.format(repeats=setting["repeats"], warmup=WARMUP_STEPS, classes="1 + i % 2"))
    return "\n\n".join(text)


if __name__ == "__main__":
    sys.exit(run_command("training_step")(main)(None))

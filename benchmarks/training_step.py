"""What a training step costs: ours beside the published order of computation, phase by phase.

    python -m benchmarks.training_step --backbone demo [--variants plain-fp32 ours-fp32] [--report FOLDER/NAME]
    python -m benchmarks.training_step --backbone vit_base_patch16_224 --size 448 --batch 4 --device cuda

A step is forward, all six losses, backward, AdamW and the teacher's average, on one seeded batch of noise that already
lies on the device. Variants take turns. Weights are random.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks.cases.recipe import add_network_arguments, recipe
from benchmarks.cases.training_run import (
    Schedule,
    TrainingRun,
    Variant,
    loading_rate,
    noise_batch,
    phase_flops,
    phase_seconds,
)
from benchmarks.harness.peaks import Precision, gemm_peak
from benchmarks.harness.processes import Found, add_processes_argument, in_another, in_processes, in_words
from benchmarks.harness.provenance import provenance, provenance_text, save_report
from benchmarks.harness.timing import SPREAD, Series, interleaved, ratio_cell, spread_cell, synchronise, warm_up
from toco_core.cli import run_command
from toco_core.memory import peak_memory
from toco_core.text import markdown_table, one_line
from toco_train.config import TrainConfig
from toco_train.models.toco import ToCo

WARMUP_STEPS = 2
VARIANTS = {
    "plain-materialised-fp32": Variant("plain", "fp32", materialised_attention=True, linear_as_in_pytorch=True),
    "plain-fp32": Variant("plain", "fp32", linear_as_in_pytorch=True),
    "plain-fp32-onednn": Variant("plain", "fp32"),
    "ours-fp32": Variant("ours", "fp32"),
    "ours-fp32-checkpointed": Variant("ours", "fp32", activation_checkpointing=True),
    "ours-fp32-compiled": Variant("ours", "fp32", compiled=True),
    "plain-tf32": Variant("plain", "tf32", linear_as_in_pytorch=True),
    "ours-tf32": Variant("ours", "tf32"),
    "ours-bf16": Variant("ours", "bf16"),
    "ours-bf16-compiled": Variant("ours", "bf16", compiled=True),
    "ours-bf16-graph": Variant("ours", "bf16", graphed=True),
    "ours-bf16-compiled-graph": Variant("ours", "bf16", compiled=True, graphed=True),
}
METHOD = """\
Variants take turns, step by step, in {processes}; each step is timed from the host with the device synchronised before
and after: {repeats} rounds in a process after {warmup_steps} warm-up steps. Speed: the first variant's step divided by
this one's. plain: the published order of computation (benchmarks/cases/published_step.py), same loss functions,
PyTorch's own linear layers; onednn: with ours in it (toco_train/kernels/token_linear.py), so that only the order
differs; materialised: attention's matrix written out and scaled as a whole, as published; fp32: TF32 off; tf32: on for
products and convolutions; bf16: autocast; compiled: torch.compile of the ViT blocks, one graph a shape; graph:
forward and backward replayed as one CUDA graph; checkpointed: activations computed again in the backward pass.
FLOPs: multiply-adds times 2 of products and convolutions, counted on one step with attention written out (so nothing
that a fused kernel or a checkpoint recomputes counts; those of Triton's kernels, the dense energy and PAR on a GPU, are
not). Peak: a square product of the same type, the median of one
before each round. {memory}
Phases: separate steps, synchronised at every border, so their sum is more than the step above. Batch: noise, image i
has 1 + i % 2 classes; no loading. Loading: photographs of 500 x 375 px, one thread of this host, CPU seconds."""
MEMORY = {
    "cuda": "Memory: the variant's own state and the most that one step allocates beside it.",
    "cpu": "Memory: the most that a process holds that takes two steps of the variant alone, libraries included.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Time the variants and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--size", type=int, help="side of the training crop, in pixels (default: the recipe's)")
    parser.add_argument("--batch", type=int, help="images a step (default: the recipe's)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each variant in a process")
    add_processes_argument(parser)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS),
                        help="rows (default: all on a GPU, those in fp32 on a CPU)")  # fmt: skip
    parser.add_argument("--without-energy", action="store_true", help="leave it out: both schedules share its cost")
    parser.add_argument("--report", type=Path, help="write the tables there, as .json and .md")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    names = arguments.variants or [name for name, variant in VARIANTS.items() if variant.suits(device)]
    config = recipe(arguments.backbone, size=arguments.size, batch=arguments.batch)
    if arguments.without_energy:
        config = config.model_copy(update={"weights": config.weights.model_copy(update={"reg": 0.0})})
    found = provenance(device, "benchmarks.training_step", argv)  # first: the load average is that before our own
    result = {
        "provenance": found,
        **measure(names, config, device, repeats=arguments.repeats, processes=arguments.processes),
    }
    text = as_markdown(result)
    print(text)
    if arguments.report:
        save_report(arguments.report, result, text)
    return 0


def measure(
    names: Sequence[str], config: TrainConfig, device: torch.device, *, repeats: int, processes: int
) -> dict[str, Any]:
    """Time the variants against each other and take ours apart."""
    flops = _operations({VARIANTS[name].schedule for name in names}, config, device)
    memory: dict[str, int] = {}
    left_out: dict[str, str] = {}
    for name in names if device.type == "cpu" else ():
        try:
            memory[name] = process_memory(name, config)
        except Exception as error:  # no compiler on this machine, or too little memory: time the others
            left_out[name] = f"{type(error).__name__}: {one_line(error)}"
    fitting = [name for name in names if name not in left_out]
    *_, found = in_processes(processes, time_steps, fitting, config, device, repeats)
    memory |= found["memory_bytes"]
    peak = {precision: float(np.median(rates)) for precision, rates in found["gemm_flops_per_second"].items()}
    seconds: Mapping[str, Series] = found["seconds"]
    return {
        "setting": {"backbone": str(config.model.backbone), "size": config.model.image_size,
                    "batch": config.batch_size, "repeats": repeats, "processes": processes, "device": device.type,
                    "energy": config.weights.reg > 0, "warmup_steps": WARMUP_STEPS},
        "gemm_flops_per_second": found["gemm_flops_per_second"],
        "variants": {
            name: summary(times, next(iter(seconds.values())), flops=sum(flops[VARIANTS[name].schedule].values()),
                          peak=peak[VARIANTS[name].precision])
            | {"memory_bytes": memory[name], "graphs": found["graphs"][name]}
            for name, times in seconds.items()
        },
        "graphs_compiled_in_timed_steps": sum(found["graphs_compiled_in_timed_steps"]),
        "phases": {name: {phase: float(np.median(times)) for phase, times in phases.items()}
                   for name, phases in found["phases"].items()},
        "phase_flops": flops.get("ours"),
        "peak": peak,
        "images_per_second_per_loading_process": loading_rate(config),
        "left_out": left_out | found["left_out"],
    }  # fmt: skip


def time_steps(names: Sequence[str], config: TrainConfig, device: torch.device, repeats: int) -> Iterator[Found]:
    """Time the variants against each other in this process and take ours apart; give what is found, once."""
    torch.manual_seed(config.seed)
    model, batch = ToCo(config.model).to(device), noise_batch(config, device)
    runs: dict[str, TrainingRun] = {}
    left_out: dict[str, str] = {}
    memory: dict[str, int] = {}
    graphs: dict[str, int] = {}
    for name in names:
        before = held_bytes(device)
        try:
            run = TrainingRun(VARIANTS[name], config, model, batch)
            warm_up(run.step, device, WARMUP_STEPS)
            if device.type == "cuda":
                memory[name] = gpu_memory(run, device, before)
        except Exception as error:  # no compiler on this machine, or too little memory: time the others
            left_out[name] = f"{type(error).__name__}: {one_line(error)}"
            continue
        runs[name] = run
        graphs[name] = counters["stats"]["unique_graphs"] - sum(graphs.values())
    precisions: set[Precision] = {run.variant.precision for run in runs.values()}
    peaks: dict[Precision, list[float]] = {precision: [] for precision in sorted(precisions)}

    def find_peak(precision: Precision) -> None:
        peaks[precision].append(gemm_peak(device, precision))

    turns: dict[str, Callable[[], object]] = {precision: partial(find_peak, precision) for precision in peaks}
    seconds = interleaved(turns | {name: run.step for name, run in runs.items()}, device, repeats)
    late = counters["stats"]["unique_graphs"] - sum(graphs.values())
    ours = {name: run for name, run in runs.items() if run.variant.schedule == "ours" and not run.variant.graphed}
    yield {
        "seconds": {name: seconds[name] for name in runs},
        "gemm_flops_per_second": peaks,
        "memory_bytes": memory,
        "graphs": graphs,
        "graphs_compiled_in_timed_steps": [late],
        "phases": {name: phase_seconds(run, device, repeats) for name, run in ours.items()},
        "left_out": left_out,
    }


def _operations(schedules: Iterable[Schedule], config: TrainConfig, device: torch.device) -> dict[Schedule, Any]:
    """Count the operations of each phase of each schedule."""
    model, batch = ToCo(config.model).to(device), noise_batch(config, device)
    return {schedule: phase_flops(schedule, config, model, batch) for schedule in schedules}


def summary(seconds: Series, first: Series, *, flops: float, peak: float) -> dict[str, Any]:
    """Reduce the times of a variant to what the table shows; the times themselves stay in the JSON."""
    return {"time_s": seconds.as_json(), "speed": first.over(seconds).as_json(), "flops": flops,
            "flops_per_second": flops / seconds.median, "share_of_gemm_peak": flops / seconds.median / peak,
            "seconds": seconds.values}  # fmt: skip


def held_bytes(device: torch.device) -> tuple[int, int]:
    """Return the bytes of live tensors on a GPU and of what is set aside for them, nothing unused; 0 on the CPU."""
    if device.type == "cpu":
        return 0, 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def gpu_memory(run: TrainingRun, device: torch.device, before: tuple[int, int]) -> int:
    """Return the bytes that a variant keeps between steps and the most that a step needs beside them."""
    if run.variant.graphed:  # what a graph needs is set aside for it, and live tensors only while it is recorded
        return held_bytes(device)[1] - before[1]
    torch.cuda.reset_peak_memory_stats(device)
    run.step()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before[0]


def process_memory(name: str, config: TrainConfig) -> int:
    """Return the most bytes that a process of its own holds when it takes steps of a variant on the CPU."""
    (found,) = in_another(_steps_alone, name, config)
    peak: int = found["peak"]
    return peak


def _steps_alone(name: str, config: TrainConfig) -> Iterator[Found]:
    """Take steps of a variant and give the most bytes that this process has held."""
    cpu = torch.device("cpu")
    run = TrainingRun(VARIANTS[name], config, ToCo(config.model), noise_batch(config, cpu))
    for _ in range(WARMUP_STEPS):
        run.step()
    yield {"peak": peak_memory() or 0}  # 0: the system does not tell


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the tables, with what they were measured on and how."""
    setting, variants = result["setting"], result["variants"]
    rows = [
        [
            name,
            f"{1e3 * found['time_s']['median']:.1f}",
            spread_cell(found["time_s"]),
            ratio_cell(found["speed"]),
            f"{found['flops'] / 1e12:.3g}",
            f"{found['flops_per_second'] / 1e12:.3g}",
            f"{found['share_of_gemm_peak']:.0%}",
            f"{found['memory_bytes'] / 2**30:.2f}",
            str(found["graphs"] or ""),
        ]
        for name, found in variants.items()
    ]
    title = f"# Training step: {setting['backbone']}, {setting['size']} px, batch {setting['batch']}"
    title += "" if setting["energy"] else ", without the dense energy"
    headings = ("variant", "median, ms", "spread", f"speed against {next(iter(variants), None)}",
                "TFLOP a step", "TFLOP/s", "of the product peak", "peak memory, GiB", "graphs")  # fmt: skip
    text = [title, provenance_text(result["provenance"]), markdown_table(headings, rows)]
    text += [phase_table(result, name, times) for name, times in result["phases"].items()]
    text.append(loading_line(result))
    peaks = ", ".join(
        f"{name} {np.median(found) / 1e12:.3g} ({min(found) / 1e12:.3g} to {max(found) / 1e12:.3g})"
        for name, found in result["gemm_flops_per_second"].items()
    )
    text.append(f"Peak of a square product, TFLOP/s, median (least to most): {peaks}.")
    if any(found["graphs"] for found in variants.values()):
        text.append(f"Graphs compiled in the timed steps: {result['graphs_compiled_in_timed_steps']}.")
    text += [f"Left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    text.append(
        METHOD.format(**{**setting, "processes": in_words(setting["processes"])}, memory=MEMORY[setting["device"]])
    )
    text.append(SPREAD)
    return "\n\n".join(text)


def phase_table(result: Mapping[str, Any], name: str, times: Mapping[str, float]) -> str:
    """Return the phases of one of our variants: time, share, operations and how near the peak they come."""
    flops, peak = result["phase_flops"], result["peak"][VARIANTS[name].precision]
    whole = sum(times.values())
    rows = [
        [
            phase,
            f"{1e3 * seconds:.1f}",
            f"{seconds / whole:.0%}",
            f"{flops[phase] / 1e12:.3g}",
            f"{flops[phase] / seconds / peak:.0%}",
        ]
        for phase, seconds in times.items()
    ]
    return markdown_table((f"phase of {name}", "ms", "share", "TFLOP", "of the product peak"), rows)


def loading_line(result: Mapping[str, Any]) -> str:
    """Return the sentence that sets the loader's rate against the fastest step's appetite."""
    rate = result["images_per_second_per_loading_process"]
    name, fastest = min(result["variants"].items(), key=lambda item: item[1]["time_s"]["median"])
    appetite = result["setting"]["batch"] / fastest["time_s"]["median"]
    return (
        f"Loading: one process makes {rate:.1f} images a second; the fastest step ({name}) eats {appetite:.1f}, so "
        f"{appetite / rate:.2f} processes feed it."
    )


if __name__ == "__main__":
    sys.exit(run_command("training_step")(main)(None))

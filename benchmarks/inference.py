"""How fast the served graph runs: bytes in, mask out, in PyTorch, ONNX Runtime and TensorRT, over sizes and batches.

    python -m benchmarks.inference --backbone demo --sizes 64 96 --batches 1 4 --device cpu
    python -m benchmarks.inference --backbone vit_base_patch16_224 --report benchmarks/results/NAME

Images are noise that already lies where the backend reads it; weights are random. Backends take turns at each size and
batch. One that cannot run here is left out, with its reason.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import (
    Precision,
    gemm_peak,
    interleaved,
    markdown_table,
    one_line,
    provenance,
    provenance_text,
    save_report,
    tensor_float32,
    timed_call,
)
from benchmarks.plain_schedule import materialise_attention
from benchmarks.training_step import add_network_arguments, recipe
from toco.command import run_command
from toco.errors import TocoError
from toco.manifest import Profile, Shape
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel, exported_model
from toco_export.reduced import reduced_model
from toco_train.model import ToCo

CPU = torch.device("cpu")
MIN_CALLS, MAX_CALLS = 3, 200
WARMUP_CALLS = 3
MIN_CALLS_FOR_P99 = 50

METHOD = """\
Each call is timed from the host, from an idle device to an idle device: the latency of one batch, with input and output
where the backend has them (host memory for ONNX Runtime on the CPU). Backends take turns at each size and batch:
{least} to {most} calls each, about {seconds:g} s of them, after {warmup} to warm up; p99 where there are {p99} calls.
A backend that takes more than {limit:g} s a call is not timed at larger sizes. fp32: TF32 off; tf32: on; bf16:
autocast; fp16: the network that toco-export --fp16 writes (ONNX Runtime on the CPU computes it in fp32). compiled:
torch.compile of each ViT block alone, sizes open. graph: replayed as one CUDA graph. FLOPs: multiply-adds times 2 of
products and convolutions. Peak: a square product of the same type on the same processor, measured in this run."""


@dataclass(frozen=True)
class Prepared:
    """A backend ready for one batch.

    Attributes:
        run: The call to time.
        precision: What its products run in; sets the peak that it is held against.
        device: Where they run.
    """

    run: Callable[[], object]
    precision: Precision
    device: torch.device

    def __call__(self) -> object:
        """Segment the batch once."""
        with torch.inference_mode(), tensor_float32(self.precision == "tf32"):
            return self.run()


class Bench:
    """A network with random weights, and what is made of it once: copies, compiled graphs, files, engines."""

    def __init__(self, backbone: str, device: torch.device, profile: Profile, folder: Path) -> None:
        config = recipe(backbone)
        torch.manual_seed(config.seed)
        self.model = ToCo(config.model).eval()
        self.device = device
        self._profile, self._folder = profile, folder
        self._sessions: dict[str, Any] = {}
        self._engines: dict[str, tuple[Any, Any]] = {}

    @cached_property
    def full(self) -> ServedModel:
        """The served graph in fp32, on the device."""
        return ServedModel(copy.deepcopy(self.model)).to(self.device).eval()

    @cached_property
    def half(self) -> ServedModel:
        """The served graph in fp16 where that is safe, on the device."""
        return ServedModel(reduced_model(self.model, "fp16")).to(self.device).eval()

    @cached_property
    def compiled_full(self) -> ServedModel:
        """The fp32 graph, its blocks compiled."""
        return _with_compiled_blocks(self.full)

    @cached_property
    def compiled_half(self) -> ServedModel:
        """The fp16 graph, its blocks compiled."""
        return _with_compiled_blocks(self.half)

    def flops_per_image(self, size: int) -> int:
        """Count the floating-point operations of one image, attention written out: the counter misses a fused one."""
        model = copy.deepcopy(self.model)
        materialise_attention(model)
        image = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ServedModel(model).to(self.device)(image)
        return int(counter.get_total_flops())

    def onnx_file(self, precision: Literal["fp32", "fp16"]) -> Path:
        """Export the graph in a precision, once, and return its file.

        Raises:
            ExportError: It has no valid ONNX form with the versions here.
        """
        from toco_export.onnx_file import export_onnx  # noqa: PLC0415  (slow to import, and not always asked for)

        path = self._folder / f"{precision}.onnx"
        if not path.is_file():
            half = precision == "fp16"
            model = reduced_model(self.model, "fp16") if half else exported_model(self.model)
            export_onnx(ServedModel(model).eval(), path, precision)
        return path

    def onnx_session(self, precision: Literal["fp32", "fp16"]) -> Any:
        """Open the graph with ONNX Runtime, once: on the GPU if the bench is there and this build can, else the CPU."""
        import onnxruntime  # noqa: PLC0415

        if precision not in self._sessions:
            wanted = [*(["CUDAExecutionProvider"] if self.device.type == "cuda" else []), "CPUExecutionProvider"]
            available = onnxruntime.get_available_providers()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            self._sessions[precision] = onnxruntime.InferenceSession(
                str(self.onnx_file(precision)), options, providers=[name for name in wanted if name in available]
            )
        return self._sessions[precision]

    def engine(self, target: Literal["tensorrt", "tensorrt-rtx"]) -> Any:
        """Build and load a TensorRT engine of the fp16 graph, once a target.

        Raises:
            ExportError: The library is not there, or does not build the graph.
            TocoError: There is no GPU, or the engine does not load on this one.
        """
        from toco_export.engine import build_engine, load_library  # noqa: PLC0415

        if target not in self._engines:
            trt = load_library(target)
            if self.device.type != "cuda":
                raise TocoError("an engine runs on a GPU; give --device cuda")
            file = self._folder / f"{target}.engine"
            build_engine(self.onnx_file("fp16"), file, self._profile, target=target, progress=lambda text: None)
            runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            engine = runtime.deserialize_cuda_engine(file.read_bytes())
            if engine is None:
                raise TocoError(f"{target} {trt.__version__} does not load its own engine on this GPU")
            self._engines[target] = (runtime, engine)  # an engine must not outlive its runtime
        return self._engines[target][1]


def _with_compiled_blocks(served: ServedModel) -> ServedModel:
    """Return a copy whose ViT blocks are compiled with open sizes: twelve alike, so one graph for all of them."""
    compiled = copy.deepcopy(served)
    for block in compiled.model.backbone.vit.blocks:
        block.compile(dynamic=True)
    return compiled


Prepare = Callable[[Bench, Tensor], Prepared]


def on_device(precision: Precision, graph: Callable[[Bench], Callable[[Tensor], object]]) -> Prepare:
    """Run one of the bench's PyTorch graphs as it is."""
    return lambda bench, images: Prepared(partial(graph(bench), images), precision, bench.device)


def autocast_bf16(bench: Bench, images: Tensor) -> Prepared:
    """Run the fp32 graph under bf16 autocast."""

    def run() -> object:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return bench.full(images)

    return Prepared(run, "bf16", bench.device)


def cuda_graph(prepare: Prepare) -> Prepare:
    """Capture another backend's call, and replay it."""

    def capture(bench: Bench, images: Tensor) -> Prepared:
        if bench.device.type != "cuda":
            raise TocoError("a CUDA graph runs on a GPU; give --device cuda")
        call = prepare(bench, images)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what a first call does (compile, choose kernels, allocate) cannot be captured
            for _ in range(WARMUP_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call()

        def replay() -> object:
            graph.replay()
            return outputs

        return Prepared(replay, call.precision, call.device)

    return capture


def onnx_runtime(precision: Literal["fp32", "fp16"]) -> Prepare:
    """Run the ONNX file, with input and output bound where ONNX Runtime computes."""

    def bind(bench: Bench, images: Tensor) -> Prepared:
        import onnxruntime  # noqa: PLC0415

        session = bench.onnx_session(precision)
        on_gpu = session.get_providers()[0] == "CUDAExecutionProvider"
        place = "cuda" if on_gpu else "cpu"
        binding = session.io_binding()
        value = onnxruntime.OrtValue.ortvalue_from_numpy(images.cpu().numpy(), place, 0)
        binding.bind_ortvalue_input(INPUT_NAME, value)
        for name in OUTPUT_NAMES:
            binding.bind_output(name, place)

        def run() -> object:
            session.run_with_iobinding(binding)
            return value  # held here: on the CPU the binding only points into it

        return Prepared(run, precision, bench.device) if on_gpu else Prepared(run, "fp32", CPU)

    return bind


def tensorrt(target: Literal["tensorrt", "tensorrt-rtx"]) -> Prepare:
    """Run an fp16 engine on PyTorch's tensors."""

    def bind(bench: Bench, images: Tensor) -> Prepared:
        context = bench.engine(target).create_execution_context()
        context.set_input_shape(INPUT_NAME, tuple(images.shape))
        tensors = {INPUT_NAME: images, **{name: torch.empty_like(images[..., 0]) for name in OUTPUT_NAMES}}
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        # not the default stream: there TensorRT would synchronise more than it has to
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

        def run() -> object:
            if not context.execute_async_v3(stream.cuda_stream):
                raise TocoError(f"{target} does not run its engine at {tuple(images.shape)}")
            return tensors

        return Prepared(run, "fp16", bench.device)

    return bind


BACKENDS: dict[str, Prepare] = {
    "eager-fp32": on_device("fp32", lambda bench: bench.full),
    "eager-tf32": on_device("tf32", lambda bench: bench.full),
    "eager-bf16": autocast_bf16,
    "eager-fp16": on_device("fp16", lambda bench: bench.half),
    "compiled-fp32": on_device("fp32", lambda bench: bench.compiled_full),
    "compiled-fp16": on_device("fp16", lambda bench: bench.compiled_half),
    "graph-fp16": cuda_graph(on_device("fp16", lambda bench: bench.half)),
    "graph-compiled-fp16": cuda_graph(on_device("fp16", lambda bench: bench.compiled_half)),
    "ort-fp32": onnx_runtime("fp32"),
    "ort-fp16": onnx_runtime("fp16"),
    "tensorrt-fp16": tensorrt("tensorrt"),
    "tensorrt-rtx-fp16": tensorrt("tensorrt-rtx"),
}
SLOW_ON_A_CPU = {"eager-tf32", "eager-fp16", "compiled-fp16", "graph-fp16", "graph-compiled-fp16"}


def main(argv: Sequence[str] | None = None) -> int:
    """Time the backends over the grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network_arguments(parser)
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 448, 512], help="image sides, in pixels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8, 16, 32], help="images at a time")
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), help="rows (default: what suits the device)")
    parser.add_argument("--seconds", type=float, default=0.5, help="calls of each backend at each size and batch")
    parser.add_argument("--call-limit", type=float, default=1.0, help="seconds a call that end a backend's turn")
    parser.add_argument("--report", type=Path, help="write the table there, as .json and .md; kept up to date")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    names = arguments.backends or [n for n in BACKENDS if device.type == "cuda" or n not in SLOW_ON_A_CPU]
    grid = [(size, batch) for size in arguments.sizes for batch in arguments.batches]
    cells = sorted(grid, key=lambda cell: cell[0] ** 2 * cell[1])
    result: dict[str, Any] = {
        "provenance": provenance(device, "benchmarks.inference", argv),
        "setting": {"backbone": arguments.backbone, "seconds": arguments.seconds, "call_limit": arguments.call_limit},
        "cells": [],
        "gemm_flops_per_second": {},
        "left_out": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.backbone, device, profile_of(cells), Path(folder))
        result["flops_per_image"] = {size: bench.flops_per_image(size) for size in arguments.sizes}
        for size, batch in cells:
            measure_cell(bench, names, size, batch, result)
            if arguments.report:
                save_report(arguments.report, result, as_markdown(result))
    print(as_markdown(result))
    return 0


def profile_of(cells: Sequence[tuple[int, int]]) -> Profile:
    """Return the range of an engine that takes every cell, tuned for the one in the middle."""
    sizes, batches = zip(*cells, strict=True)

    def shape(size: int, batch: int) -> Shape:
        return Shape(batch=batch, height=size, width=size)

    return Profile(
        min=shape(min(sizes), min(batches)),
        opt=shape(*cells[len(cells) // 2]),
        max=shape(max(sizes), max(batches)),
    )


def measure_cell(bench: Bench, names: Sequence[str], size: int, batch: int, result: dict[str, Any]) -> None:
    """Time every backend that is still in on one size and batch, and add what was found to the result."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, size, size, 3), generator=generator, dtype=torch.uint8).to(bench.device)
    seconds, limit = result["setting"]["seconds"], result["setting"]["call_limit"]
    calls: dict[str, Prepared] = {}
    repeats: dict[str, int] = {}
    for name in names:
        if name in result["left_out"]:
            continue
        try:
            call = BACKENDS[name](bench, images)
            once = [timed_call(call, bench.device) for _ in range(WARMUP_CALLS)][-1]
        except Exception as error:  # each library has its own families; whatever it is, the others are still timed
            result["left_out"][name] = one_line(error)
            continue
        calls[name], repeats[name] = call, min(MAX_CALLS, max(MIN_CALLS, round(seconds / once)))
        if once > limit:
            result["left_out"][name] = f"sizes beyond {size} px, batch {batch}, where one call took {once:.1f} s"
    times = interleaved(calls, bench.device, repeats)
    flops = batch * result["flops_per_image"][size]
    for name, call in calls.items():
        peak = _peak(result["gemm_flops_per_second"], call)
        result["cells"].append(
            {"size": size, "batch": batch, "backend": name, "device": call.device.type,
             **summary(times[name], batch=batch, flops=flops, peak=peak)}
        )  # fmt: skip
    calls.clear()
    gc.collect()  # captured graphs hold their memory until they go
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def _peak(known: dict[str, float], call: Prepared) -> float:
    """Return the product peak that a call is held against, measured when it is first asked for."""
    key = f"{call.precision} on {call.device.type}"
    if key not in known:
        known[key] = gemm_peak(call.device, call.precision)
    return known[key]


def summary(seconds: Sequence[float], *, batch: int, flops: int, peak: float) -> dict[str, Any]:
    """Reduce the times of a backend to what the table shows."""
    middle, late = (float(q) for q in np.percentile(seconds, [50, 99]))
    return {"calls": len(seconds), "median_s": middle, "p99_s": late if len(seconds) >= MIN_CALLS_FOR_P99 else None,
            "images_per_second": batch / middle, "flops_per_second": flops / middle,
            "share_of_gemm_peak": flops / middle / peak}  # fmt: skip


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the table, with what it was measured on and how."""
    rows = [
        [f"{cell['size']} px, batch {cell['batch']}", cell["backend"], cell["device"], str(cell["calls"]),
         f"{1e3 * cell['median_s']:.2f}", "" if cell["p99_s"] is None else f"{1e3 * cell['p99_s']:.2f}",
         f"{cell['images_per_second']:.1f}", f"{cell['share_of_gemm_peak']:.0%}"]
        for cell in result["cells"]
    ]  # fmt: skip
    headings = ("input", "backend", "on", "calls", "median, ms", "p99, ms", "images/s", "of the product peak")
    setting = result["setting"]
    peaks = ", ".join(f"{name} {peak / 1e12:.3g}" for name, peak in result["gemm_flops_per_second"].items())
    return "\n\n".join([
        f"# Inference: {setting['backbone']}",
        provenance_text(result["provenance"]),
        markdown_table(headings, rows),
        f"Peak of a square product, TFLOP/s: {peaks}.",
        *(f"Left out: {name}: {reason}" for name, reason in result["left_out"].items()),
        METHOD.format(least=MIN_CALLS, most=MAX_CALLS, seconds=setting["seconds"], warmup=WARMUP_CALLS,
                      p99=MIN_CALLS_FOR_P99, limit=setting["call_limit"]),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command("inference")(main)(None))

"""What the inference benchmark times: one network in PyTorch, ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases.published_step import materialise_attention
from benchmarks.cases.recipe import recipe
from benchmarks.harness.peaks import Precision, tensor_float32
from toco_core.errors import TocoError
from toco_core.manifest import Profile
from toco_core.palette import UInt8Array
from toco_export.graph import INPUT_NAME, OUTPUT_NAMES, ServedModel, exported_model
from toco_export.onnx.reduced import product_layers, reduced_model
from toco_train.models.toco import ToCo

CPU = torch.device("cpu")
WARMUP_CALLS = 3
MAX_COMPILED_SIZES = 64

OnnxKind = Literal["fp32", "fp16", "int8", "plain"]
WeightKind = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Prepared:
    """A backend ready for one batch.

    Attributes:
        run: The call to time.
        precision: What its products run in; sets the peak that it is held against.
        device: Where they run.
        weights: What its weights are kept in; sets the bytes that it must read.
    """

    run: Callable[[], object]
    precision: Precision
    device: torch.device
    weights: WeightKind

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
        image = torch.empty(1, size, size, 3, dtype=torch.uint8, device="meta")  # shapes alone: nothing is computed
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ServedModel(model).to("meta")(image)
        return int(counter.get_total_flops())

    @cached_property
    def weight_bytes(self) -> dict[WeightKind, int]:
        """The bytes of the weights that segment, by what they are kept in; int8 has those of linear layers in int8."""
        linear = sum(layer.weight.numel() for _, layer in product_layers(self.model) if isinstance(layer, nn.Linear))
        full, half = (_segmenting_bytes(model) for model in (self.model, reduced_model(self.model, "fp16")))
        return {"fp32": full, "fp16": half, "int8": full - 3 * linear}

    def least_bytes(self, images: Tensor, weights: WeightKind) -> int:
        """Count the bytes that a batch must move: weights and images read once, labels and confidence written."""
        return self.weight_bytes[weights] + images.nbytes + len(OUTPUT_NAMES) * images[..., 0].nbytes

    def activation_bytes(self, size: int) -> int:
        """Estimate the most that one image needs: attention's scores and logits at full size, twice each, in fp32."""
        tokens = (size // self.model.patch_size) ** 2 + 1
        heads: int = self.model.backbone.vit.blocks[0].attn.num_heads
        return 4 * 2 * (heads * tokens**2 + (self.model.num_classes + 1) * size**2)

    def onnx_file(self, kind: OnnxKind) -> Path:
        """Export the graph, once for each kind, and return its file.

        Raises:
            ExportError: It has no valid ONNX form with the versions here.
        """
        from toco_export.int8.calibration import calibrate  # noqa: PLC0415  (slow to import, and not always asked for)
        from toco_export.int8.quantization import write_quantized  # noqa: PLC0415
        from toco_export.onnx.file import export_onnx  # noqa: PLC0415
        from toco_export.onnx.fp16_bf16 import convert  # noqa: PLC0415

        path = self._folder / f"{kind}.onnx"
        if path.is_file():
            return path
        if kind == "plain":
            _export_plainly(ServedModel(self.model).eval(), path)
        elif kind == "int8":
            found = calibrate(self.model, [noise(1, self._profile.opt.height)])
            bounds = {name: layer.bound for name, layer in found.items()}
            write_quantized(self.onnx_file("fp32"), path, bounds)
        elif kind == "fp16":
            convert(self.model, kind, self.onnx_file("fp32"), path, ranges={})
        else:
            export_onnx(ServedModel(exported_model(self.model)).eval(), path)
        return path

    def onnx_session(self, kind: OnnxKind) -> Any:
        """Open the graph with ONNX Runtime, once: on the GPU if the bench is there and this build can, else the CPU."""
        import onnxruntime  # noqa: PLC0415

        if kind not in self._sessions:
            wanted = [*(["CUDAExecutionProvider"] if self.device.type == "cuda" else []), "CPUExecutionProvider"]
            available = onnxruntime.get_available_providers()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = torch.get_num_threads()
            options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads wait idly for the others
            self._sessions[kind] = onnxruntime.InferenceSession(
                str(self.onnx_file(kind)), options, providers=[name for name in wanted if name in available]
            )
        return self._sessions[kind]

    def engine(self, target: Literal["tensorrt", "tensorrt-rtx"]) -> Any:
        """Build and load a TensorRT engine of the fp16 graph, once a target.

        Raises:
            ExportError: The library is not there, or does not build the graph.
            TocoError: There is no GPU, or the engine does not load on this one.
        """
        from toco_export.tensorrt.builder import build_engine, load_library  # noqa: PLC0415

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


def noise(batch: int, size: int) -> UInt8Array:
    """Return images of noise, uint8 ``[B, size, size, 3]``, the same ones every time."""
    return np.random.default_rng(0).integers(256, size=(batch, size, size, 3), dtype=np.uint8)


def _segmenting_bytes(model: ToCo) -> int:
    return sum(weight.nbytes for part in (model.backbone, model.decoder) for weight in part.parameters())


def _with_compiled_blocks(served: ServedModel) -> ServedModel:
    """Return a copy whose ViT blocks are compiled for each size: twelve alike, so one graph for all of them."""
    torch._dynamo.config.recompile_limit = MAX_COMPILED_SIZES
    compiled = copy.deepcopy(served)
    for block in compiled.model.backbone.vit.blocks:
        block.compile(dynamic=False)
    return compiled


def _export_plainly(served: ServedModel, path: Path) -> None:
    """Export as PyTorch's own documentation does: timm's attention, the exporter's optimisations, open sizes."""
    patch = served.model.patch_size
    sizes = {0: Dim("batch"), 1: patch * Dim("rows"), 2: patch * Dim("columns")}
    example = torch.zeros(2, 5 * patch, 7 * patch, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            served, (example,), str(path), dynamo=True, dynamic_shapes=(sizes,), verbose=False,
            input_names=[INPUT_NAME], output_names=list(OUTPUT_NAMES), external_data=False,
        )  # fmt: skip


Prepare = Callable[[Bench, Tensor], Prepared]


def on_device(precision: Precision, graph: Callable[[Bench], Callable[[Tensor], object]]) -> Prepare:
    """Run one of the bench's PyTorch graphs as it is."""
    weights: WeightKind = "fp16" if precision == "fp16" else "fp32"
    return lambda bench, images: Prepared(partial(graph(bench), images), precision, bench.device, weights)


def autocast_bf16(bench: Bench, images: Tensor) -> Prepared:
    """Run the fp32 graph under bf16 autocast."""

    def run() -> object:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return bench.full(images)

    return Prepared(run, "bf16", bench.device, "fp32")


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

        return replace(call, run=replay)

    return capture


def onnx_runtime(kind: OnnxKind) -> Prepare:
    """Run the ONNX file, with input and output bound where ONNX Runtime computes."""

    def bind(bench: Bench, images: Tensor) -> Prepared:
        import onnxruntime  # noqa: PLC0415

        session = bench.onnx_session(kind)
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

        precision: Precision = "fp32"
        if on_gpu:
            precision = "fp16" if kind == "fp16" else "tf32"  # which its CUDA provider uses unless told otherwise
        return Prepared(run, precision, bench.device if on_gpu else CPU, "fp32" if kind == "plain" else kind)

    return bind


def openvino(bench: Bench, images: Tensor) -> Prepared:
    """Run the fp32 ONNX file with OpenVINO, tuned for the latency of one batch of this size."""
    import openvino as ov  # noqa: PLC0415  (the extra "bench")

    core = ov.Core()
    model = core.read_model(str(bench.onnx_file("fp32")))
    model.reshape({INPUT_NAME: tuple(images.shape)})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads(),
             "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    tensor = ov.Tensor(images.cpu().numpy())

    def run() -> object:
        return request.infer({INPUT_NAME: tensor}, share_inputs=True, share_outputs=True)

    return Prepared(run, "fp32", CPU, "fp32")


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

        return Prepared(run, "fp16", bench.device, "fp16")

    return bind


BACKENDS: dict[str, Prepare] = {
    "eager-fp32": on_device("fp32", lambda bench: bench.full),
    "eager-tf32": on_device("tf32", lambda bench: bench.full),
    "eager-bf16": autocast_bf16,
    "eager-fp16": on_device("fp16", lambda bench: bench.half),
    "compiled-fp32": on_device("fp32", lambda bench: bench.compiled_full),
    "compiled-fp16": on_device("fp16", lambda bench: bench.compiled_half),
    "graph-bf16": cuda_graph(autocast_bf16),
    "graph-fp16": cuda_graph(on_device("fp16", lambda bench: bench.half)),
    "graph-compiled-fp16": cuda_graph(on_device("fp16", lambda bench: bench.compiled_half)),
    "ort-fp32": onnx_runtime("fp32"),
    "ort-fp16": onnx_runtime("fp16"),
    "ort-int8": onnx_runtime("int8"),
    "ort-plain-fp32": onnx_runtime("plain"),
    "openvino-fp32": openvino,
    "tensorrt-fp16": tensorrt("tensorrt"),
    "tensorrt-rtx-fp16": tensorrt("tensorrt-rtx"),
}
SLOW_ON_A_CPU = {
    "eager-bf16", "eager-tf32", "eager-fp16", "compiled-fp16", "graph-bf16", "graph-fp16", "graph-compiled-fp16"
}  # fmt: skip

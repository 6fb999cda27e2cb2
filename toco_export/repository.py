"""The model repository that Triton serves: its configuration made from the manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2 as triton

from toco_core.errors import ExportError
from toco_core.manifest import Artefact, Manifest, Precision, sha256_of, write_manifest

VERSION = 1
MODEL, IMAGE_MODEL = "toco", "toco_image"
SHARED_CODE = ("fitting.py", "rgb.py", "rle.py")  # of toco_core: ``toco_image`` imports copies beside its own code

GPU_PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8", "fp32")

MAX_QUEUE_SIZE = 64
QUEUE_TIMEOUT_US = 30_000_000
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 32 * 2**20
IMAGE_INSTANCES = 4
ENGINE_CACHE = "/tmp"  # exists everywhere and is the one place that the read-only container can write to
# Triton's way to say HEURISTIC: the default times every convolution anew, for each size and batch, while requests wait.
CUDA_OPTIONS = {"cudnn_conv_algo_search": "1"}
NETWORK_INSTANCES = 2  # of the python backend: while one hands over its answers, the other keeps the processors busy


def artefact_folder(repository: Path) -> Path:
    """Return the folder of a model repository that holds the artefacts."""
    return repository / MODEL / str(VERSION)


def complete_repository(folder: Path, manifest: Manifest) -> None:
    """Make a model repository of a folder that holds the artefacts: add manifest, configurations and models' code.

    Args:
        folder: Where; its ``artefact_folder`` holds what the manifest describes, and nothing else.
        manifest: What is served; every configuration value comes from it.

    Raises:
        ExportError: An artefact is missing, left over or not the one that the manifest describes; there is no fp32
            ONNX file; or a size does not fit the manifest's patch size and profile.
    """
    configs = {MODEL: model_config(manifest), IMAGE_MODEL: image_model_config(manifest)}
    _check_artefacts(manifest, artefact_folder(folder))
    for name, config in configs.items():
        version = folder / name / str(VERSION)
        version.mkdir(parents=True, exist_ok=True)
        (folder / name / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
        if config.backend == "python":
            code = resources.files("triton_models") / name / str(VERSION) / "model.py"
            (version / "model.py").write_bytes(code.read_bytes())
    for name in SHARED_CODE:
        code = resources.files("toco_core") / name
        (folder / IMAGE_MODEL / str(VERSION) / name).write_bytes(code.read_bytes())
    write_manifest(folder, manifest)


def model_config(manifest: Manifest) -> triton.ModelConfig:
    """Return the configuration of ``toco``: dynamic batches of one size, warm before it is ready.

    Its queue has no policy on purpose. A limit or a timeout makes Triton fill batches in another way, in which a
    request that finds every instance busy can lie for 500 ms: measured on 2.51, up to one request in six. Requests
    that their clients gave up leave the queue all the same; ``toco_image``, with several instances, has the limits.
    """
    smallest, largest = manifest.profile.min, manifest.profile.max
    parameters = {
        "classes": json.dumps(manifest.classes, ensure_ascii=False),
        "palette": json.dumps(manifest.palette),
        "patch_size": str(manifest.patch_size),
        "image_size": str(manifest.image_size),
        "min_height": str(smallest.height),
        "min_width": str(smallest.width),
        "max_height": str(largest.height),
        "max_width": str(largest.width),
    }
    onnx_files = _onnx_files(manifest)
    count, kind = 1, triton.ModelInstanceGroup.KIND_GPU
    if manifest.backend == "python":
        parameters |= {"num_threads": "0", **onnx_files, **_rtx_engine(manifest)}
        count, kind = NETWORK_INSTANCES, triton.ModelInstanceGroup.KIND_AUTO
    elif manifest.backend == "onnxruntime":
        parameters |= CUDA_OPTIONS
    return triton.ModelConfig(
        name=MODEL,
        backend=manifest.backend,
        default_model_filename="" if manifest.backend == "python" else served_file(manifest),
        max_batch_size=largest.batch,
        version_policy=_this_version(),
        input=[triton.ModelInput(name="image", data_type=triton.TYPE_UINT8, dims=[-1, -1, 3])],
        output=_outputs([-1, -1]),
        instance_group=[triton.ModelInstanceGroup(count=count, kind=kind)],
        dynamic_batching=triton.ModelDynamicBatching(),
        optimization=_tensorrt_provider(manifest),
        model_warmup=[_warmup(manifest)],
        parameters=_parameters(parameters),
    )


def served_file(manifest: Manifest) -> str:
    """Return the file that a backend of Triton's own executes: on a GPU, where fp16 comes before all others.

    Raises:
        ExportError: There is none for the manifest's backend.
    """
    wanted = "tensorrt" if manifest.backend == "tensorrt" else "onnx"
    if file := _gpu_file(manifest, wanted):
        return file
    raise ExportError(f"the manifest has no {wanted} artefact, which the backend {manifest.backend} would serve")


def image_model_config(manifest: Manifest) -> triton.ModelConfig:
    """Return the configuration of ``toco_image``: one image a request, several decoders, a bounded queue."""
    _check_sizes(manifest)
    parameters = {
        "buckets": json.dumps(manifest.sizes),
        "max_image_bytes": str(MAX_IMAGE_BYTES),
        "max_image_pixels": str(MAX_IMAGE_PIXELS),
    }
    return triton.ModelConfig(
        name=IMAGE_MODEL,
        backend="python",
        max_batch_size=0,
        version_policy=_this_version(),
        input=[triton.ModelInput(name="image_bytes", data_type=triton.TYPE_STRING, dims=[1])],
        output=[*_outputs([-1, -1]), *_encoded_outputs()],
        instance_group=[triton.ModelInstanceGroup(count=IMAGE_INSTANCES, kind=triton.ModelInstanceGroup.KIND_CPU)],
        dynamic_batching=_bounded_queue(),
        parameters=_parameters(parameters),
    )


def _check_sizes(manifest: Manifest) -> None:
    """Refuse sizes that the network does not take."""
    patch, low, high = manifest.patch_size, manifest.profile.min, manifest.profile.max
    if not manifest.sizes:
        raise ExportError("the manifest names no size that images are fitted to; export the run again")
    for height, width in manifest.sizes:
        if height % patch or width % patch:
            raise ExportError(
                f"the size {height}x{width} is not a multiple of the patch size {patch}; export with another"
            )
        if not (low.height <= height <= high.height and low.width <= width <= high.width):
            raise ExportError(
                f"the size {height}x{width} is outside the profile, {low.height}x{low.width} to "
                f"{high.height}x{high.width}; export with a profile that holds it"
            )


def _check_artefacts(manifest: Manifest, folder: Path) -> None:
    """Compare the files with what the manifest says of them."""
    described = {artefact.file: artefact for artefact in manifest.artefacts}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if described.keys() != found:
        raise ExportError(
            f"the artefacts are {', '.join(sorted(found)) or 'none'}, "
            f"but the manifest describes {', '.join(sorted(described)) or 'none'}; give every one that it describes"
        )
    for name, artefact in described.items():
        if sha256_of(folder / name) != artefact.sha256:
            raise ExportError(f"{folder / name} is not that of the manifest: its SHA-256 differs; export it again")


def _onnx_files(manifest: Manifest) -> dict[str, str]:
    """Name the ONNX file of each precision that the python backend can choose between."""
    onnx: list[Artefact] = [artefact for artefact in manifest.artefacts if artefact.format == "onnx"]
    files = {f"onnx_{artefact.precision}": artefact.file for artefact in onnx if artefact.precision != "bf16"}
    if "onnx_fp32" not in files:
        raise ExportError("the manifest has no fp32 ONNX artefact, which every machine can run; export one")
    return files


def _rtx_engine(manifest: Manifest) -> dict[str, str]:
    """Name the engine of TensorRT-RTX that the python backend prefers on a GPU, if there is one."""
    file = _gpu_file(manifest, "tensorrt-rtx")
    return {"rtx_engine": file} if file else {}


def _gpu_file(manifest: Manifest, kind: str) -> str | None:
    """Return the file of a format of the manifest that is the first choice on a GPU, if there is one."""
    files = {artefact.precision: artefact.file for artefact in manifest.artefacts if artefact.format == kind}
    return next((files[precision] for precision in GPU_PRECISIONS if precision in files), None)


def _tensorrt_provider(manifest: Manifest) -> triton.ModelOptimizationPolicy | None:
    """Let ONNX Runtime hand the graph to TensorRT where that is asked for; CUDA runs what TensorRT cannot.

    The engine is built while Triton loads the model, for all of the profile: without stated shapes a request of a new
    size would wait for another. ``precision_mode`` is left out on purpose: the file states its types and a network
    without a mode keeps them, while ``FP16`` lets TensorRT compute in fp16 what was kept in fp32.

    Source: README of Triton's onnxruntime_backend; ONNX Runtime's TensorRT execution provider.
    """
    if not manifest.tensorrt_provider:
        return None
    shapes = {name: getattr(manifest.profile, name) for name in ("min", "opt", "max")}
    options = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": ENGINE_CACHE,
        "trt_engine_cache_prefix": f"toco_{_weights_key(manifest)}",
        **{f"trt_profile_{name}_shapes": f"image:{s.batch}x{s.height}x{s.width}x3" for name, s in shapes.items()},
    }
    if manifest.tensorrt_workspace_gib:
        options["max_workspace_size_bytes"] = str(round(manifest.tensorrt_workspace_gib * 2**30))
    accelerators = triton.ModelOptimizationPolicy.ExecutionAccelerators(
        gpu_execution_accelerator=[{"name": "tensorrt", "parameters": options}]
    )
    return triton.ModelOptimizationPolicy(execution_accelerators=accelerators)


def _weights_key(manifest: Manifest) -> str:
    """Tell exports apart: the cache knows a graph by its names alone, so other weights would get the old engine."""
    checksums = "".join(artefact.sha256 for artefact in manifest.artefacts)
    return hashlib.sha256(checksums.encode()).hexdigest()[:16]


def _this_version() -> triton.ModelVersionPolicy:
    """Serve the one version that the parameters describe."""
    return triton.ModelVersionPolicy(specific=triton.ModelVersionPolicy.Specific(versions=[VERSION]))


def _outputs(dims: list[int]) -> list[triton.ModelOutput]:
    """The two outputs of the contract."""
    return [triton.ModelOutput(name=name, data_type=triton.TYPE_UINT8, dims=dims) for name in ("mask", "confidence")]


def _encoded_outputs() -> list[triton.ModelOutput]:
    """The same as PNG files, and the mask as run lengths."""
    names = ("mask_png", "confidence_png", "mask_rle")
    return [triton.ModelOutput(name=name, data_type=triton.TYPE_STRING, dims=[1]) for name in names]


def _bounded_queue() -> triton.ModelDynamicBatching:
    """Refuse at once what finds the queue full, and what waited too long; Triton states both under batching."""
    policy = triton.ModelQueuePolicy(
        timeout_action=triton.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=QUEUE_TIMEOUT_US,
        allow_timeout_override=True,
        max_queue_size=MAX_QUEUE_SIZE,
    )
    return triton.ModelDynamicBatching(default_queue_policy=policy)


def _warmup(manifest: Manifest) -> triton.ModelWarmup:
    """One image of zeros at the size that the artefacts are tuned for."""
    opt = manifest.profile.opt
    image = triton.ModelWarmup.Input(data_type=triton.TYPE_UINT8, dims=[opt.height, opt.width, 3], zero_data=True)
    return triton.ModelWarmup(name="opt", batch_size=1, inputs={"image": image})


def _parameters(values: Mapping[str, str]) -> dict[str, Any]:
    """Wrap strings as Triton's parameters."""
    return {key: triton.ModelParameter(string_value=value) for key, value in values.items()}

"""ONNX file to TensorRT engine, with TensorRT-RTX (no GPU needed to build) or TensorRT: one builder serves both."""

from __future__ import annotations

import importlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toco_core.errors import ExportError
from toco_core.files import atomic_path, write_atomic
from toco_core.manifest import Profile, Shape
from toco_core.text import one_line
from toco_export.config import Engine
from toco_export.graph import INPUT_NAME
from toco_export.tensorrt.engine_report import EngineLayer, EngineReport, layers_of_inspector, layers_of_log

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


class EngineLibraryError(ExportError):
    """The library that builds engines is not installed, or does not load."""


@dataclass(frozen=True)
class EngineLibrary:
    """Where an engine builder comes from: the module to import, the package to install, the suffix of its files."""

    module: str
    package: str
    suffix: str


LIBRARIES: dict[Engine, EngineLibrary] = {
    "tensorrt-rtx": EngineLibrary("tensorrt_rtx", "tensorrt-rtx-cu13", ".rtx"),
    "tensorrt": EngineLibrary("tensorrt", "tensorrt", ".plan"),
}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        workspace_gib: Most memory that a layer may use beside the weights, in GiB; ``None``: what the library allows,
            which is all of the GPU's. A layer that needs more cannot be built: attention in fp32 writes its scores
            out, which takes 4.3 GiB for 8 images of 896 px in a ViT-B.
        timing_cache: File of kernel timings to reuse and add to; TensorRT-RTX has none.
        portable: For other GPUs (Ampere and later) and later versions too; TensorRT only.
    """

    workspace_gib: float | None = None
    timing_cache: Path | None = None
    portable: bool = False


def load_library(target: Engine) -> Any:
    """Import the builder of a target.

    Raises:
        EngineLibraryError: It is not installed, or one of its libraries does not load.
    """
    library = LIBRARIES[target]
    try:
        return importlib.import_module(library.module)
    except (ImportError, OSError) as error:
        raise EngineLibraryError(
            f"building an engine for {target} needs the Python module {library.module}, which does not load "
            f"({one_line(error)}): pip install {library.package}"
        ) from error


def build_engine(
    onnx_file: Path,
    engine_file: Path,
    profile: Profile,
    *,
    target: Engine,
    progress: Progress,
    options: BuildOptions = BuildOptions(),
) -> EngineReport:
    """Build an engine from an ONNX file, in the types that the file states, and read back what it is made of.

    Args:
        onnx_file: The graph; the network is strongly typed, so every type in it is kept.
        engine_file: Where to write the engine.
        profile: The range of inputs that it takes, and the one that it is tuned for.
        target: Which library builds it.
        progress: Called with a short text as building goes on.
        options: How it is built.

    Raises:
        EngineLibraryError: The library is not installed.
        ExportError: The ONNX file does not parse, or the build fails.
    """
    trt = load_library(target)
    if options.portable and target == "tensorrt-rtx":
        raise ExportError("engines of TensorRT-RTX run on all RTX GPUs as they are; leave --portable out")
    log = _build_log(trt)
    with _held_interrupt() as interrupted:
        builder = trt.Builder(log)
        config = _configure(trt, builder, profile, options)
        monitor = _build_monitor(trt, progress, interrupted)  # a name of its own: the library holds none
        config.progress_monitor = monitor
        plan = _build(trt, log, builder, config, onnx_file, workspace_gib=options.workspace_gib)
        layers = _read_back(trt, log, plan)
    if options.timing_cache:
        write_atomic(options.timing_cache, bytes(config.get_timing_cache().serialize()))
    with atomic_path(engine_file) as temporary:
        temporary.write_bytes(plan)
    return EngineReport(tuple(layers), LIBRARIES[target].module, trt.__version__)


def _configure(trt: Any, builder: Any, profile: Profile, options: BuildOptions) -> Any:
    """State inputs, memory, timings and compatibility."""
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT_NAME, *(_dimensions(shape) for shape in (profile.min, profile.opt, profile.max)))
    config.add_optimization_profile(shapes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the report names layers without their types
    if options.workspace_gib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, round(options.workspace_gib * 2**30))
    if options.timing_cache:
        known = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    if options.portable:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    return config


def _build(trt: Any, log: Any, builder: Any, config: Any, onnx_file: Path, *, workspace_gib: float | None) -> Any:
    """Parse and build; return the serialised engine, a buffer."""
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx_file)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        causes = [f"{error.node_operator()} node {error.node_name()!r}: {error.desc()}" for error in errors]
        raise ExportError(
            f"TensorRT {trt.__version__} cannot parse {onnx_file.name}: {'; '.join(causes) or log.last_error}; "
            "install another version of it, or export with --target onnx"
        )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        remedy = "install another version of it"
        if workspace_gib and re.search("workspace|memory", log.last_error, re.IGNORECASE):
            remedy = f"allow it more than --workspace-gib {workspace_gib:g}"
        raise ExportError(
            f"TensorRT {trt.__version__} cannot build {onnx_file.name}: {log.last_error or 'it does not say why'}; "
            f"{remedy}, or export with --target onnx"
        )
    return plan


def _read_back(trt: Any, log: Any, plan: Any) -> list[EngineLayer]:
    """Ask the finished engine for its layers: the inspector where the engine can be loaded, else the builder's log.

    Loading needs a GPU of a kind that the engine is for. Without one the builder's closing log is what there is: it
    is the inspector's report of the finished engine in another form.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is not None:
        inspector = engine.create_engine_inspector()
        return layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return layers_of_log(log.engine_report)


def _network_flags(trt: Any) -> int:
    """Ask for a strongly typed network; TensorRT 10 has to be told, later ones build nothing else."""
    flag = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    return 0 if flag is None else 1 << int(flag)


def _dimensions(shape: Shape) -> tuple[int, int, int, int]:
    return (shape.batch, shape.height, shape.width, 3)


def _build_log(trt: Any) -> Any:
    """Make a TensorRT logger that keeps the last error and the report of the finished engine."""

    class BuildLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""
            self.engine_report = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = message
            elif severity == trt.ILogger.VERBOSE and "LayerType: " in message:
                self.engine_report = message
            logger.debug("%s: %s", severity, message)

    return BuildLog()


def _build_monitor(trt: Any, progress: Progress, interrupted: threading.Event) -> Any:
    """Make a monitor that tells how far the build is, and stops it once the user has interrupted."""

    class BuildMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.num_steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            self.num_steps[phase] = num_steps

        def phase_finish(self, phase: str) -> None:
            self.num_steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(f"{phase} {step + 1}/{self.num_steps.get(phase, step + 1)}")
            return not interrupted.is_set()

    return BuildMonitor()


@contextmanager
def _held_interrupt() -> Iterator[threading.Event]:
    """Note Ctrl-C while the library runs, and raise it at the end: raised in a callback, the library swallows it."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield interrupted
        return
    previous = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupted.is_set():
            raise KeyboardInterrupt

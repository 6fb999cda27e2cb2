"""TensorRT engines built inside NVIDIA's Triton image: by the very libraries that will load them.

An engine loads only in the TensorRT that built it, to the last digit, and those of Triton's image are not all to be had
elsewhere. The image carries ``trtexec``, so neither Python packages nor a network are needed in it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from toco_core.errors import ExportError
from toco_core.manifest import Profile, Shape, triton_image
from toco_export.graph import INPUT_NAME
from toco_export.tensorrt.builder import BuildOptions, EngineLibraryError, Progress
from toco_export.tensorrt.engine_report import EngineReport, layers_of_inspector

TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
VERSION = re.compile(r"TensorRT version: (\d[\d.]*\d)")


def require_docker(release: str) -> None:
    """Check that containers can be run here.

    Raises:
        EngineLibraryError: They cannot; the message ends with the command that would be run.
    """
    docker = shutil.which("docker")
    asked = docker and subprocess.run([docker, "version"], capture_output=True, text=True, check=False)
    if not asked or asked.returncode:
        shape = Shape(batch=1, height=448, width=448)
        command = container_command(
            Path("REPOSITORY/toco/1/model.fp16.onnx"), Path("REPOSITORY/toco/1/model.fp16.plan"),
            Profile(min=shape, opt=shape, max=shape), release, BuildOptions(),
        )  # fmt: skip
        reason = f"does not run here ({' '.join(asked.stderr.split())})" if asked else "is not here"
        raise EngineLibraryError(
            f"building inside {triton_image(release)} needs docker, which {reason}; export again on the machine that "
            "will serve, with docker and the GPU. It then runs, with its own paths and sizes: " + shlex.join(command)
        )


def container_command(
    onnx_file: Path, engine_file: Path, profile: Profile, release: str, options: BuildOptions
) -> list[str]:
    """Return the command that builds an engine beside an ONNX file, without a network and as the user that asks.

    Args:
        onnx_file: The graph.
        engine_file: Where the engine goes, in the same folder; its layers go beside it, with ``.json`` after the name.
        profile: The range of inputs.
        release: Release of Triton, such as ``26.06``.
        options: How it is built.
    """
    inside = Path("/engine")
    trtexec = {
        "onnx": inside / onnx_file.name,
        "saveEngine": inside / engine_file.name,
        "minShapes": _shapes(profile.min),
        "optShapes": _shapes(profile.opt),
        "maxShapes": _shapes(profile.max),
        "profilingVerbosity": "detailed",
        "exportLayerInfo": inside / _layer_file(engine_file).name,
    }
    if options.workspace_gib:
        trtexec["memPoolSize"] = f"workspace:{round(options.workspace_gib * 1024)}"  # MiB
    mounts = ["--volume", f"{onnx_file.parent.absolute()}:{inside}"]
    if options.timing_cache:
        mounts += ["--volume", f"{options.timing_cache.parent.absolute()}:/timings"]
        trtexec["timingCacheFile"] = Path("/timings") / options.timing_cache.name
    portable = ["--versionCompatible", "--hardwareCompatibilityLevel=ampere+"] if options.portable else []
    user = f"{os.getuid()}:{os.getgid()}"
    return [
        "docker", "run", "--rm", "--gpus", "all", "--network", "none", "--user", user, *mounts,
        triton_image(release), TRTEXEC, *(f"--{name}={value}" for name, value in trtexec.items()),
        "--stronglyTyped", "--skipInference", *portable,
    ]  # fmt: skip


def build_in_container(
    onnx_file: Path, engine_file: Path, profile: Profile, *, release: str, progress: Progress, options: BuildOptions
) -> EngineReport:
    """Build an engine inside NVIDIA's image, and read back what it is made of.

    Args:
        onnx_file: The graph.
        engine_file: Where the engine goes, in the same folder.
        profile: The range of inputs.
        release: Release of Triton.
        progress: Called with what is going on.
        options: How it is built.

    Raises:
        ExportError: The container cannot be run, or the build fails.
    """
    command = container_command(onnx_file, engine_file, profile, release, options)
    progress(f"in {triton_image(release)} (the first time it is downloaded: some 20 GB)")
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    layer_file, version = _layer_file(engine_file), VERSION.search(result.stdout)
    if result.returncode or not (engine_file.is_file() and layer_file.is_file() and version):
        said = " | ".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-3:])
        raise ExportError(
            f"building {engine_file.name} inside {triton_image(release)} failed (status {result.returncode}): "
            f"{said or 'it said nothing'}; run it by hand to see more: {shlex.join(command)}"
        )
    layers = layers_of_inspector(layer_file.read_text(encoding="utf-8"))
    layer_file.unlink()
    return EngineReport(tuple(layers), "tensorrt", version.group(1))


def _layer_file(engine_file: Path) -> Path:
    return engine_file.with_name(f"{engine_file.name}.json")


def _shapes(shape: Shape) -> str:
    return f"{INPUT_NAME}:{shape.batch}x{shape.height}x{shape.width}x3"
